"""Copies of disks that a move left at its source, and its VM left: deleted when a person says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.drivers.base import FileAt
from novacron.control.migrations.kept_copies import KeptCopies
from novacron.control.once import Once
from novacron.control.store.kinds import POOLS, VMS, VOLUMES
from novacron.errors import DeadlineExceeded, NodeUnreachable, NovaCronError, StaleGeneration, StateConflict
from novacron.model.migration import Migration, MigrationState
from novacron.model.pool import spec_of
from novacron.testing import fake_snapshots
from novacron.testing.fake_world import FakeMachine
from novacron.wire.moving import DiscardCopies, PlacedVolume
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio


def file_of(machine: FakeMachine) -> Path:
    (disk,) = machine.launch.disks
    assert isinstance(disk.source, FileAt)
    return disk.source.path


async def moved_otherwise(h: House) -> tuple[Migration, Path]:
    """A VM has gone from a to b, and its disk there is not what it was: the migration, and the copy that was kept."""
    vm_id = await h.running_vm("a", local=True)
    h.cluster["b"].lose("migration.verify", error=DeadlineExceeded("late"))  # so that it comes after what follows
    migration_id = await h.migrate(vm_id, "b")
    await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
    h.guest_rests(vm_id)
    here, there = (h.cluster[name].host.machines[vm_id] for name in "ab")
    source = file_of(here)
    fake_snapshots.write(source, "what did not come")
    there.watched = dict.fromkeys(there.watched, fake_snapshots.read(file_of(there)).content)
    assert await h.ended(migration_id) is MigrationState.COMPLETED
    await h.until(lambda: vm_id not in h.cluster["a"].host.machines, "the source lets go")
    assert source.exists()
    return h.migration(migration_id), source


async def discard(h: House, migration_id: str) -> Migration:
    kept = KeptCopies(h.records, h.cluster, h.clock)
    outcome = await kept.discard(migration_id, "ada", None, Once(h.records.store, "", "", h.clock.wall()))
    assert outcome.status == 200
    record: Migration = outcome.stored.record
    return record


async def refused(h: House, migration_id: str) -> NovaCronError:
    with pytest.raises(StateConflict) as wrong:
        await discard(h, migration_id)
    return wrong.value


async def test_they_go_once_and_the_record_says_so(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        migration, source = await moved_otherwise(h)
        done = await discard(h, migration.id)
        assert not source.exists()
        assert (done.copies_discarded_by, done.copies_discarded_at) == ("ada", h.clock.wall())
        assert done.explanation[-1] == "copies on a deleted at the wish of ada"
        assert "ada had them deleted at" in (await refused(h, migration.id)).message
        assert h.cluster.world.running(migration.vm_id) == ["b"]


async def test_an_answer_that_is_lost_is_asked_for_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        migration, source = await moved_otherwise(h)
        h.cluster["a"].lose("migration.discard_copies", after=True, error=DeadlineExceeded("lost"))
        with pytest.raises(DeadlineExceeded):
            await discard(h, migration.id)
        assert not source.exists()
        assert h.migration(migration.id).copies_discarded_at is None
        assert (await discard(h, migration.id)).copies_discarded_at is not None


async def test_what_a_target_that_died_at_once_left_behind_is_kept_and_can_go(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        h.cluster["b"].lose("migration.verify", error=DeadlineExceeded("late"))
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
        source = file_of(h.cluster["a"].host.machines[vm_id])
        h.cluster["b"].host.crash(vm_id)
        assert await h.ended(migration_id) is MigrationState.FAILED
        await h.until(lambda: vm_id not in h.cluster["a"].host.machines, "the source lets go")
        assert source.exists()
        await discard(h, migration_id)
        assert not source.exists()
        assert h.vm(vm_id).node_id == h.cluster["b"].node_id


async def test_nothing_goes_that_was_not_kept_or_while_its_node_is_away(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        plain = await h.migrate(vm_id, "b")
        assert await h.ended(plain) is MigrationState.COMPLETED
        assert (await refused(h, plain)).reasons[0].code == "copies.none"
        migration, source = await moved_otherwise(h)
        await h.cluster.kill("a")
        with pytest.raises(NodeUnreachable, match="copies on a cannot be deleted: the node is away") as away:
            await discard(h, migration.id)
        assert "novacron node show a" in away.value.reasons[0].remedy
        assert source.exists()
        await h.cluster.boot("a")
        await discard(h, migration.id)
        assert not source.exists()


async def test_a_disk_that_is_there_again_stays(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        migration, source = await moved_otherwise(h)
        source.unlink()  # by hand: else nothing of it could move here
        back = await h.migrate(migration.vm_id, "a")
        await h.until(lambda: h.migration(back).began != (), "it begins")
        wrong = await refused(h, migration.id)
        assert wrong.reasons[0].code == "copies.in_use"
        assert await h.ended(back) is MigrationState.COMPLETED
        assert (await refused(h, migration.id)).reasons[0].code == "copies.in_use"
        assert source.exists()
        await h.check_peace(migration.vm_id)


async def test_a_node_deletes_no_disk_of_a_machine_it_has(tmp_path: Path) -> None:
    """Whatever the server believes: it may have looked before the VM came back."""
    async with house(tmp_path) as h:
        migration, source = await moved_otherwise(h)
        source.unlink()
        back = await h.migrate(migration.vm_id, "a")
        assert await h.ended(back) is MigrationState.COMPLETED
        (move,) = migration.disks
        pool = spec_of(h.records.find(POOLS, move.from_pool_id).record)
        assert h.records.find(VOLUMES, move.volume_id).record.node_id == h.cluster["a"].node_id
        for generation, error in (
            (migration.generation + 1, StaleGeneration),
            (h.vm(migration.vm_id).generation, StateConflict),
        ):
            verb = DiscardCopies(
                vm_id=migration.vm_id,
                generation=generation,
                migration_id=migration.id,
                copies=(PlacedVolume(pool=pool, volume_id=move.volume_id),),
            )
            with pytest.raises(error):
                await h.cluster.call(h.cluster["a"].node_id, verb, type(None), deadline_s=5.0)
        assert source.exists()
        assert h.records.find(VMS, migration.vm_id).record.node_id == h.cluster["a"].node_id
