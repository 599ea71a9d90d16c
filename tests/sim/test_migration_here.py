"""Disks into another pool of their node: the faults at each step; the guest finds what it wrote last, always."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.store.kinds import MIGRATIONS
from novacron.errors import DeadlineExceeded, MigrationFailed, StateConflict
from novacron.model import migration_steps as machine
from novacron.model.migration import MigrationState, is_final
from novacron.model.migration_steps import steps_of
from tests.sim.house import House, house
from tests.sim.test_migration_disks import at_rest, moved_at_rest
from tests.sim.test_migration_story import killed_after_write

pytestmark = pytest.mark.anyio

RUNNING = ("copy_here", "pivot", "tidy")
AT_REST = ("copy_here", "halt", "tidy")


def pool_of(h: House, vm_id: str) -> str:
    return h.vm(vm_id).spec.disks[0].pool_id


async def test_there_and_back_and_then_to_another_node(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        first = pool_of(h, vm_id)
        for _ in range(2):
            before = pool_of(h, vm_id)
            migration_id = await h.rehouse(vm_id)
            assert await h.ended(migration_id) is MigrationState.COMPLETED
            assert await h.check_peace(vm_id) == "a"
            assert pool_of(h, vm_id) != before
            done = h.migration(migration_id)
            assert done.did == tuple(step.name for step in steps_of(done)) == ("copy_here", "pivot", "commit", "tidy")
        assert pool_of(h, vm_id) == first
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize("verb", RUNNING)
async def test_a_lost_word_is_only_a_delay(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        h.cluster["a"].lose(f"migration.{verb}", after=after, error=DeadlineExceeded("late"))
        assert await h.ended(await h.rehouse(vm_id)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "a"


@pytest.mark.parametrize("number", range(1, 9))
async def test_a_conductor_killed_after_any_write_is_continued_by_the_next(tmp_path: Path, number: int) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        strike = await killed_after_write(h, number)
        assert await h.ended(await h.rehouse(vm_id)) is MigrationState.COMPLETED
        strike.cancel()
        assert await h.check_peace(vm_id) == "a"


@pytest.mark.parametrize("step", RUNNING)
async def test_an_agent_killed_during_any_step(tmp_path: Path, step: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.rehouse(vm_id)
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill("a")
        await h.clock.advance(20.0)
        await h.cluster.boot("a")
        assert await h.ended(migration_id) in (MigrationState.COMPLETED, MigrationState.ROLLED_BACK)
        assert await h.check_peace(vm_id) == "a"


@pytest.mark.parametrize("verb", ["copy_here", "pivot"])
async def test_a_refusal_leaves_it_with_what_it_had(tmp_path: Path, verb: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        before = pool_of(h, vm_id)
        h.cluster["a"].host.fail(verb, MigrationFailed("the copy broke"))
        assert await h.ended(await h.rehouse(vm_id)) is MigrationState.ROLLED_BACK
        assert await h.check_peace(vm_id) == "a"
        assert pool_of(h, vm_id) == before
        assert await h.ended(await h.rehouse(vm_id)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "a"


async def test_called_off_while_it_copies_and_never_later(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=3.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.rehouse(vm_id)
        await h.until(lambda: "copy_here" in h.migration(migration_id).began, "it copies")
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"
        h.cluster["a"].lose("migration.pivot", error=DeadlineExceeded("late"), times=3)
        late = await h.rehouse(vm_id)
        await h.until(lambda: "pivot" in h.migration(late).began, "it works with its new disks")
        with pytest.raises(StateConflict):
            machine.cancelled(h.migration(late), h.clock.wall())
        assert await h.ended(late) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "a"


async def test_at_rest_there_and_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        migration_id = await h.rehouse(vm_id)
        assert await moved_at_rest(h, vm_id, migration_id) == "a"
        done = h.migration(migration_id)
        assert done.did == ("copy_here", "halt", "commit", "tidy")


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize("verb", AT_REST)
async def test_at_rest_a_lost_word_is_only_a_delay(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        h.cluster["a"].lose(f"migration.{verb}", after=after, error=DeadlineExceeded("late"))
        migration_id = await h.rehouse(vm_id)
        assert await moved_at_rest(h, vm_id, migration_id) == "a"
        assert h.migration(migration_id).state is MigrationState.COMPLETED


@pytest.mark.parametrize("step", AT_REST)
async def test_at_rest_an_agent_killed_during_any_step(tmp_path: Path, step: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await at_rest(h)
        migration_id = await h.rehouse(vm_id)
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill("a")
        await h.cluster.boot("a")
        await moved_at_rest(h, vm_id, migration_id)


@pytest.mark.parametrize("verb", ["copy_here", "halt"])
async def test_at_rest_a_refusal_leaves_it_where_it_was(tmp_path: Path, verb: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        h.cluster["a"].host.fail(verb, MigrationFailed("the copy broke"))
        migration_id = await h.rehouse(vm_id)
        await moved_at_rest(h, vm_id, migration_id)
        assert h.migration(migration_id).state is MigrationState.ROLLED_BACK
