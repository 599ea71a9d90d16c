"""Moves whose disks go along: the faults at each step, for each way; the guest finds what it wrote last, always."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.errors import DeadlineExceeded, MigrationFailed, NodeUnreachable
from novacron.model import migration_steps as machine
from novacron.model.machine import ENDED
from novacron.model.migration import MigrationState, is_final
from novacron.model.migration_steps import steps_of
from novacron.model.vm import Desired, Task, TaskKind, VmState
from tests.sim.house import WAYS, House, _with, house
from tests.sim.test_migration_story import killed_after_write

pytestmark = pytest.mark.anyio

SIDES = {
    "accept": "b",
    "copy_disks": "a",
    "send": "a",
    "halt": "a",
    "take_over": "b",
    "settle": "b",
    "release": "a",
}
RUNNING = [("live", verb) for verb in ("accept", "copy_disks", "send", "take_over", "release")] + [
    ("cold", verb) for verb in ("accept", "copy_disks", "halt", "take_over", "release")
]
AT_REST = ("accept", "copy_disks", "halt", "settle", "release")


async def at_rest(h: House) -> str:
    """A VM with a disk of its node's own, stopped."""
    vm_id = await h.running_vm("a", local=True)
    await h.until(lambda: h.written(vm_id) > 2, "its guest has written")
    now = h.clock.wall()
    task = Task(id=h.records.new_id(), kind=TaskKind.STOP, requested_at=now)
    await h.records.change(VMS, vm_id, lambda vm: _with(vm, desired=Desired.STOPPED, task=task))
    await h.until(lambda: h.state(vm_id) is VmState.STOPPED and h.vm(vm_id).task is None, "it is stopped")
    return vm_id


async def started(h: House, vm_id: str) -> None:
    """It runs again, and its guest finds what it wrote."""
    now = h.clock.wall()
    task = Task(id=h.records.new_id(), kind=TaskKind.START, requested_at=now)
    before = h.written(vm_id)
    await h.records.change(VMS, vm_id, lambda vm: _with(vm, desired=Desired.RUNNING, task=task))
    await h.until(lambda: h.written(vm_id) > before, "its guest writes")
    assert h.cluster.world.violations == []


async def moved_at_rest(h: House, vm_id: str, migration_id: str) -> str:
    """Once that migration has ended: where it is, and has its disk alone; nothing of it is open anywhere."""
    await h.ended(migration_id)
    name = next(agent.name for agent in h.cluster.agents.values() if agent.node_id == h.vm(vm_id).node_id)
    await h.until(lambda: h.disk_lies_on(vm_id) == [name], "its disk is where it is")
    assert h.vm(vm_id).migration_id == ""
    assert all(
        vm_id not in agent.host.machines or agent.host.machines[vm_id].report.status in ENDED
        for agent in h.cluster.agents.values()
    )
    await started(h, vm_id)
    return name


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize(("way", "verb"), RUNNING)
async def test_a_lost_word_is_only_a_delay(tmp_path: Path, way: str, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        h.cluster[SIDES[verb]].lose(f"migration.{verb}", after=after, error=DeadlineExceeded("late"))
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("number", range(1, 15))
@pytest.mark.parametrize("way", ["live", "hybrid", "cold"])
async def test_a_conductor_killed_after_any_write_is_continued_by_the_next(
    tmp_path: Path, way: str, number: int
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        strike = await killed_after_write(h, number)
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        strike.cancel()
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize(("way", "step"), RUNNING)
async def test_an_agent_killed_during_any_step(tmp_path: Path, way: str, step: str, node: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill(node)
        await h.cluster.boot(node)
        state = await h.ended(migration_id)
        where = await h.check_peace(vm_id)
        assert (state, where) in {(MigrationState.COMPLETED, "b"), (MigrationState.ROLLED_BACK, "a")}


@pytest.mark.parametrize(("way", "verb"), [("live", "copy_disks"), ("live", "send"), ("cold", "halt")])
async def test_a_refusal_leaves_the_source_and_its_disk(tmp_path: Path, way: str, verb: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        h.cluster["a"].host.fail(verb, MigrationFailed("the copy broke"))
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.ROLLED_BACK
        assert await h.check_peace(vm_id) == "a"
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("step", ["accept", "copy_disks", "send"])
async def test_called_off_it_is_where_it_was(tmp_path: Path, step: str) -> None:
    async with house(tmp_path, transfer_s=3.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: step in h.migration(migration_id).began, step)
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"


async def test_a_source_that_is_silent_at_the_end_loses_its_copy_when_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
        await h.cluster.disconnect("a")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        await h.cluster.connect("a")
        assert await h.check_peace(vm_id) == "b"


async def test_a_source_that_lost_power_at_the_end_loses_its_copy_when_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
        await h.cluster.kill("a")
        h.cluster["a"].host.reboot()
        await h.ended(migration_id)
        await h.cluster.boot("a")
        assert await h.check_peace(vm_id) == "b"


# -- at rest -----------------------------------------------------------------------------------------------------


async def test_at_rest_there_and_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        migration_id = await h.migrate(vm_id, "b", "cold")
        assert await moved_at_rest(h, vm_id, migration_id) == "b"
        done = h.migration(migration_id)
        assert done.did == tuple(step.name for step in steps_of(done))
        assert done.figures.disk_bytes


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize("verb", AT_REST)
async def test_at_rest_a_lost_word_is_only_a_delay(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        h.cluster[SIDES[verb]].lose(f"migration.{verb}", after=after, error=NodeUnreachable("cut"))
        assert await moved_at_rest(h, vm_id, await h.migrate(vm_id, "b", "cold")) == "b"


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("step", AT_REST)
async def test_at_rest_an_agent_killed_during_any_step(tmp_path: Path, step: str, node: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await at_rest(h)
        migration_id = await h.migrate(vm_id, "b", "cold")
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill(node)
        await h.cluster.boot(node)
        await moved_at_rest(h, vm_id, migration_id)


@pytest.mark.parametrize("verb", ["copy_disks", "halt"])
async def test_at_rest_a_refusal_leaves_it_where_it_was(tmp_path: Path, verb: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await at_rest(h)
        h.cluster["a"].host.fail(verb, MigrationFailed("the copy broke"))
        migration_id = await h.migrate(vm_id, "b", "cold")
        assert await moved_at_rest(h, vm_id, migration_id) == "a"
        assert h.migration(migration_id).state is MigrationState.ROLLED_BACK


def test_every_way_is_among_the_stories() -> None:
    assert {way for way, _ in RUNNING} <= set(WAYS)
