"""A machine that dies while a migration holds it is found dead by its record, with what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.model.migration import MigrationState
from tests.sim.house import house

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("way", ["live", "hybrid", "warm"])
@pytest.mark.parametrize("after", ["accept", "send"])
async def test_a_source_that_crashes_is_an_error_that_says_what_to_type(tmp_path: Path, way: str, after: str) -> None:
    async with house(tmp_path, transfer_s=5.0) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: after in h.migration(migration_id).began, after)
        h.cluster["a"].host.crash(vm_id)
        assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
        assert h.cluster.world.running(vm_id) == []
        await h.until(lambda: h.vm(vm_id).problem is not None, "the problem")
        problem = h.vm(vm_id).problem
        assert problem is not None
        assert problem.code == "machine.crashed"
        assert problem.remedy == f"novacron vm start {h.vm(vm_id).name}"
