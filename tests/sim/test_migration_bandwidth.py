"""A bandwidth changed while a migration streams reaches its source, whoever dies or does not answer meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.once import Once
from novacron.errors import StateConflict
from novacron.model.migration import Migration, MigrationState
from novacron.testing.fake_driver import FakeDriver
from novacron.wire.rest.migrations import MigrationCreate
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")  # the one VMs are placed by


def once(h: House) -> Once:
    return Once(h.records.store, "", "", h.clock.wall())


async def streaming(h: House, vm_id: str, rate: int = 4 * MIB) -> Migration:
    asked = MigrationCreate(vm=vm_id, bandwidth_bytes_per_s=rate)
    made = (await h.migrations.create(asked, "admin", once(h))).stored.record
    assert isinstance(made, Migration)
    await h.until(lambda: h.cluster.agents["a"].host.machines[vm_id].transfer is not None, "it streams")
    return made


async def change(h: House, migration: Migration, rate: int) -> None:
    await h.migrations.set_bandwidth(migration.id, rate, "ada", None, once(h))


def paces(h: House, vm_id: str) -> list[int]:
    return h.cluster.agents["a"].host.machines[vm_id].paces


async def test_the_source_is_told_once_and_the_record_says_who(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=20.0) as h:
        vm_id = await h.running_vm("a")
        moving = await streaming(h, vm_id)
        await change(h, moving, MIB)
        await h.until(lambda: paces(h, vm_id) == [MIB], "it is told")
        await change(h, moving, MIB)
        await change(h, moving, 0)
        await h.until(lambda: paces(h, vm_id) == [MIB, 0], "it is told again")
        story = h.migration(moving.id)
        assert story.paced_by == "ada"
        assert story.explanation[-2:] == (
            "bandwidth changed by ada: at most 1.0 MiB/s", "bandwidth changed by ada: as fast as the link",
        )  # fmt: skip
        assert await h.ended(moving.id) is MigrationState.COMPLETED
        with pytest.raises(StateConflict):
            await change(h, moving, MIB)
        assert await h.check_peace(vm_id) == "b"


async def test_calls_that_are_lost_and_a_server_that_dies_are_made_up_for(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=30.0) as h:
        vm_id = await h.running_vm("a")
        moving = await streaming(h, vm_id)
        h.cluster.agents["a"].lose("migration.set_bandwidth", times=2)
        await change(h, moving, MIB)
        await h.until(lambda: paces(h, vm_id) == [MIB], "it is told in the end")
        await h.kill_worker("conductor")
        await change(h, moving, 2 * MIB)
        assert paces(h, vm_id) == [MIB]
        h.start_worker("conductor")
        await h.until(lambda: paces(h, vm_id)[-1] == 2 * MIB, "the next one tells it")
        assert await h.ended(moving.id) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


async def test_one_that_waits_begins_with_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await h.kill_worker("conductor")
        made = (await h.migrations.create(MigrationCreate(vm=vm_id), "admin", once(h))).stored.record
        await change(h, made, MIB)
        h.start_worker("conductor")
        assert await h.ended(made.id) is MigrationState.COMPLETED
        assert h.migration(made.id).goals.bandwidth_bytes_per_s == MIB
