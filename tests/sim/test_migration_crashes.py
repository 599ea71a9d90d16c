"""A machine that dies while a migration holds it is found dead by its record, with what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.store.kinds import VMS
from novacron.control.vms import asked
from novacron.errors import DeadlineExceeded
from novacron.model.migration import MigrationState
from novacron.wire.agent import REPORT_INTERVAL_S
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


@pytest.mark.parametrize("way", ["live", "hybrid", "warm"])
@pytest.mark.parametrize("at", ["verify", "release"])
async def test_a_target_that_crashes_at_the_end_is_found_dead_at_once_and_can_be_started(
    tmp_path: Path, way: str, at: str
) -> None:
    """What its agent says then comes while the migration holds the VM, and is not said again for half a minute."""
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["b" if at == "verify" else "a"].lose(f"migration.{at}", error=DeadlineExceeded("late"))
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: at in h.migration(migration_id).began, at)
        h.cluster["b"].host.crash(vm_id)
        await h.ended(migration_id)
        ended_s = h.clock.monotonic_s()
        await h.until(lambda: (one := h.vm(vm_id).problem) is not None and one.code == "machine.crashed", "found dead")
        assert h.clock.monotonic_s() - ended_s < REPORT_INTERVAL_S
        ask = asked.Ask(task_id=h.records.new_id(), by="ada", now=h.clock.wall())
        await h.records.change(VMS, vm_id, lambda vm: asked.start(vm, ask))
        await h.until(lambda: h.cluster.world.running(vm_id) == ["b"], "it runs again")
