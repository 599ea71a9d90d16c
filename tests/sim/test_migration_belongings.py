"""What belongs to a VM beside its disks goes along between pools that nodes do not share; paused VMs stay paused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from novacron.control.migrations.strays import leaves_belongings
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.errors import DeadlineExceeded, MigrationFailed
from novacron.model import migration_steps as machine
from novacron.model.migration import MigrationState, is_final
from novacron.model.vm import Desired, Task, TaskKind, VmState
from tests.sim.house import House, _with, house
from tests.sim.test_migration_story import killed_after_write

pytestmark = pytest.mark.anyio

WAYS = ("live", "hybrid", "postcopy", "warm", "cold", "paused", "paused postcopy", "at rest")
SIDES = {
    "accept": "b",
    "pack_belongings": "a",
    "unpack_belongings": "b",
    "halt": "a",
    "send": "a",
    "open_postcopy": "a",
    "take_over": "b",
    "fetch_rest": "a",
    "settle": "b",
    "release": "a",
}
STEPS = [
    *(("paused", verb) for verb in ("accept", "send", "pack_belongings", "unpack_belongings", "take_over", "release")),
    *(("paused postcopy", verb) for verb in ("send", "pack_belongings", "open_postcopy", "take_over", "fetch_rest")),
    *(("cold", verb) for verb in ("accept", "halt", "pack_belongings", "unpack_belongings", "take_over", "release")),
    *(("at rest", verb) for verb in ("accept", "pack_belongings", "unpack_belongings", "settle", "release")),
    *(("live", verb) for verb in ("accept", "take_over", "release")),
]


async def a_vm(h: House, way: str) -> str:
    """It has variables, and runs, is paused or stopped as that way asks."""
    vm_id = await h.running_vm("a", uefi=True)
    if way.startswith("paused"):
        await told(h, vm_id, TaskKind.PAUSE, Desired.PAUSED, VmState.PAUSED)
    if way == "at rest":
        await told(h, vm_id, TaskKind.STOP, Desired.STOPPED, VmState.STOPPED)
    return vm_id


async def told(h: House, vm_id: str, kind: TaskKind, to: Desired, state: VmState) -> None:
    task = Task(id=h.records.new_id(), kind=kind, requested_at=h.clock.wall())
    await h.records.change(VMS, vm_id, lambda vm: _with(vm, desired=to, task=task))
    await h.until(lambda: h.state(vm_id) is state and h.vm(vm_id).task is None, f"it is {state}")


async def moved(h: House, vm_id: str, way: str) -> str:
    return await h.migrate(
        vm_id, "b", {"paused": "live", "paused postcopy": "postcopy", "at rest": "cold"}.get(way, way)
    )


def variables(h: House, vm_id: str) -> dict[str, str]:
    """By node, what is there of it."""
    found = {name: h.root / name / "pool" / "machines" / vm_id for name in h.cluster.agents}
    return {name: (path / "vars").read_text() for name, path in found.items() if path.exists()}


async def settled(h: House, vm_id: str, way: str) -> str:
    """Where it is: there alone with its variables, and as it was before; it then runs there as any other."""
    name = next(agent.name for agent in h.cluster.agents.values() if agent.node_id == h.vm(vm_id).node_id)
    await h.until(lambda: list(variables(h, vm_id)) == [name], "its variables are where it is, alone")
    assert variables(h, vm_id) == {name: "as a makes it"}
    if way.startswith("paused"):
        assert h.state(vm_id) is VmState.PAUSED
        assert h.cluster.world.running(vm_id) == []
        await told(h, vm_id, TaskKind.RESUME, Desired.RUNNING, VmState.RUNNING)
    if way == "at rest":
        await told(h, vm_id, TaskKind.START, Desired.RUNNING, VmState.RUNNING)
    assert await h.check_peace(vm_id) == name
    assert variables(h, vm_id) == {name: "as a makes it"}
    return name


@pytest.mark.parametrize("way", WAYS)
async def test_they_go_along_and_one_copy_is_left(tmp_path: Path, way: str) -> None:
    async with house(tmp_path, own_pools=True) as h:
        vm_id = await a_vm(h, way)
        migration_id = await moved(h, vm_id, way)
        assert await h.ended(migration_id) is MigrationState.COMPLETED, h.story()
        assert await settled(h, vm_id, way) == "b"


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize(("way", "verb"), STEPS)
async def test_a_lost_word_is_only_a_delay(tmp_path: Path, way: str, verb: str, after: bool) -> None:
    async with house(tmp_path, own_pools=True) as h:
        vm_id = await a_vm(h, way)
        h.cluster[SIDES[verb]].lose(f"migration.{verb}", after=after, error=DeadlineExceeded("late"))
        assert await h.ended(await moved(h, vm_id, way)) is MigrationState.COMPLETED
        assert await settled(h, vm_id, way) == "b"


@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("way", ["cold", "paused", "paused postcopy", "at rest"])
async def test_a_conductor_killed_after_any_write_is_continued(tmp_path: Path, way: str, number: int) -> None:
    async with house(tmp_path, own_pools=True) as h:
        vm_id = await a_vm(h, way)
        strike = await killed_after_write(h, number)
        assert await h.ended(await moved(h, vm_id, way)) is MigrationState.COMPLETED
        strike.cancel()
        assert await settled(h, vm_id, way) == "b"


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize(("way", "step"), [pair for pair in STEPS if not pair[1].startswith("pack")])
async def test_an_agent_killed_during_any_step(tmp_path: Path, way: str, step: str, node: str) -> None:
    step = "copy_belongings" if step == "unpack_belongings" else step
    async with house(tmp_path, own_pools=True, transfer_s=1.0) as h:
        vm_id = await a_vm(h, way)
        migration_id = await moved(h, vm_id, way)
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill(node)
        await h.cluster.boot(node)
        state = await h.ended(migration_id)
        where = await settled(h, vm_id, way)
        assert (state, where) in {(MigrationState.COMPLETED, "b"), (MigrationState.ROLLED_BACK, "a")}


@pytest.mark.parametrize(("way", "verb"), [("cold", "unpack"), ("paused", "unpack"), ("at rest", "pack")])
async def test_a_refusal_leaves_them_where_they_were(tmp_path: Path, way: str, verb: str) -> None:
    async with house(tmp_path, own_pools=True) as h:
        vm_id = await a_vm(h, way)
        node = "a" if verb == "pack" else "b"
        h.cluster[node].host.fail(verb, MigrationFailed("the disk is full"))
        assert await h.ended(await moved(h, vm_id, way)) is MigrationState.ROLLED_BACK
        assert await settled(h, vm_id, way) == "a"


async def test_called_off_nothing_of_them_is_left_there(tmp_path: Path) -> None:
    async with house(tmp_path, own_pools=True, transfer_s=3.0) as h:
        vm_id = await a_vm(h, "live")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "b" in variables(h, vm_id), "its directory is made")
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await settled(h, vm_id, "live") == "a"


async def test_what_lies_there_already_is_not_touched(tmp_path: Path) -> None:
    async with house(tmp_path, own_pools=True) as h:
        vm_id = await a_vm(h, "live")
        twin = h.root / "b" / "pool" / "machines" / vm_id
        twin.mkdir(parents=True)
        (twin / "vars").write_text("precious")
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.ROLLED_BACK
        assert variables(h, vm_id) == {"a": "as a makes it", "b": "precious"}
        assert await h.check_peace(vm_id) == "a"


async def test_a_source_that_is_silent_at_the_end_loses_its_own_when_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path, own_pools=True, transfer_s=1.0) as h:
        vm_id = await a_vm(h, "live")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
        await h.cluster.disconnect("a")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        await h.cluster.connect("a")
        assert await settled(h, vm_id, "live") == "b"
        done, vm = h.migration(migration_id), h.vm(vm_id)
        pools = {done.source_node: "one", done.target_node: "other"}
        assert leaves_belongings(done.source_node, vm, [done], pools)
        shared = dict.fromkeys(pools, "one")  # a third node may see the very files that count
        assert not leaves_belongings(done.source_node, vm, [done], shared)
        on_its_way = msgspec.structs.replace(vm, migration_id="m")
        assert not leaves_belongings(done.source_node, on_its_way, [done], pools)


@pytest.mark.parametrize("way", ["live", "hybrid", "postcopy", "warm"])
async def test_a_paused_one_is_not_said_to_have_lost_time_or_to_be_dead(tmp_path: Path, way: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await a_vm(h, "paused")
        migration_id = await h.migrate(vm_id, "b", way)
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        done = h.migration(migration_id)
        assert (done.figures.downtime_qemu_ms, done.figures.downtime_stopped_ms) == (None, None)
        assert done.figures.total_ms is not None
        assert done.verdict is not None
        found = {check.name: check for check in done.verdict.checks}
        assert found["runs"].outcome == "passed"
        assert "stands still" in found["runs"].evidence
        assert [found[name].outcome for name in ("heartbeat", "clock", "network")] == ["not_checked"] * 3
