"""Every way to move a machine, and the faults at each of its steps: post-copy, warm, cold, and a VM at rest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from novacron.agent.ledger import Role
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.errors import DeadlineExceeded, MachineDied, MigrationFailed, MonitorFailed, NodeUnreachable
from novacron.model import migration_steps as machine
from novacron.model.machine import MachineStatus
from novacron.model.migration import MigrationState, is_final
from novacron.model.migration_steps import steps_of
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmState, status_of
from tests.sim.house import WAYS, House, house
from tests.sim.test_migration_story import killed_after_write

pytestmark = pytest.mark.anyio

SIDES = {
    "accept": "b",
    "send": "a",
    "halt": "a",
    "open_postcopy": "a",
    "take_over": "b",
    "fetch_rest": "a",
    "verify": "b",
    "release": "a",
}
POSTCOPY = ("accept", "send", "open_postcopy", "take_over", "fetch_rest", "verify", "release")
COLD = ("accept", "halt", "take_over", "verify", "release")
STEPS = [("hybrid", verb) for verb in POSTCOPY] + [("cold", verb) for verb in COLD] + [("warm", "send")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("converges", [True, False])
@pytest.mark.parametrize("local", [False, True], ids=["shared", "local"])
async def test_there_and_back(tmp_path: Path, way: str, converges: bool, local: bool) -> None:
    async with house(tmp_path) as h:
        h.cluster.world.converges = converges
        vm_id = await h.running_vm("a", local=local)
        for target in "ba":
            migration_id = await h.migrate(vm_id, target, way)
            assert await h.ended(migration_id) is MigrationState.COMPLETED
            assert await h.check_peace(vm_id) == target
            done = h.migration(migration_id)
            assert done.did == tuple(step.name for step in steps_of(done))
            assert done.figures.downtime_stopped_ms is not None


@pytest.mark.parametrize("error", [NodeUnreachable("cut"), DeadlineExceeded("late")], ids=["cut", "late"])
@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize(("way", "verb"), STEPS)
async def test_a_lost_word_is_only_a_delay(
    tmp_path: Path, way: str, verb: str, after: bool, error: NodeUnreachable
) -> None:
    async with house(tmp_path) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        h.cluster[SIDES[verb]].lose(f"migration.{verb}", after=after, error=error)
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("number", range(1, 13))
@pytest.mark.parametrize("way", ["hybrid", "warm", "cold"])
async def test_a_conductor_killed_after_any_write_is_continued_by_the_next(
    tmp_path: Path, way: str, number: int
) -> None:
    async with house(tmp_path) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        strike = await killed_after_write(h, number)
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        strike.cancel()
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize(("way", "step"), STEPS)
async def test_an_agent_killed_during_any_step(tmp_path: Path, way: str, step: str, node: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill(node)
        await h.cluster.boot(node)
        state = await h.ended(migration_id)
        where = await h.check_peace(vm_id)
        assert (state, where) in {(MigrationState.COMPLETED, "b"), (MigrationState.ROLLED_BACK, "a")}


@pytest.mark.parametrize(
    ("way", "node", "verb", "error"),
    [
        ("warm", "a", "send", MigrationFailed("the stream broke")),
        ("hybrid", "a", "send", MigrationFailed("the stream broke")),
        ("hybrid", "a", "open_postcopy", MigrationFailed("the stream broke")),
        ("hybrid", "b", "take_over", MonitorFailed("cannot load the device state")),
        ("cold", "b", "start", MachineDied("no room for it")),
    ],
)
async def test_a_refusal_before_the_target_runs_leaves_the_source_running(
    tmp_path: Path, way: str, node: str, verb: str, error: MigrationFailed
) -> None:
    async with house(tmp_path) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        h.cluster[node].host.fail(verb, error)
        migration_id = await h.migrate(vm_id, "b", way)
        assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
        assert await h.check_peace(vm_id) == "a"
        problem = h.migration(migration_id).problem
        assert problem is not None
        assert error.message in problem.message
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


async def test_a_link_cut_in_post_copy_is_made_anew(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b", "hybrid")
        await h.until(lambda: "fetch_rest" in h.migration(migration_id).began, "the rest is on its way")
        h.cluster.world.cut("a", "b")
        await h.clock.advance(30.0)
        await asyncio.sleep(0.05)
        assert h.migration(migration_id).state is MigrationState.SWITCHING
        h.cluster.world.heal("a", "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"
        told = [line for line in h.migration(migration_id).explanation if "the link broke" in line]
        assert len(told) == 1


async def test_a_link_that_breaks_once_all_has_come_is_no_loss(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b", "hybrid")
        await h.until(lambda: "fetch_rest" in h.migration(migration_id).began, "the rest is on its way")
        h.cluster.world.cut("a", "b")
        h.cluster["b"].host.machines[vm_id].missing_from = ""
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        h.cluster.world.heal("a", "b")
        assert await h.check_peace(vm_id) == "b"


async def test_a_target_lost_in_post_copy_is_a_failure_that_says_what_to_type(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        h.cluster.world.converges = False
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b", "hybrid")
        await h.until(lambda: "fetch_rest" in h.migration(migration_id).began, "the rest is on its way")
        h.cluster["b"].host.crash(vm_id)
        assert await h.ended(migration_id) is MigrationState.FAILED
        assert h.cluster.world.running(vm_id) == []
        problem = h.vm(vm_id).problem
        assert problem is not None
        assert "vm start" in problem.remedy
        assert h.vm(vm_id).node_id == h.cluster["b"].node_id


@pytest.mark.parametrize(("way", "at"), [("warm", "send"), ("hybrid", "send"), ("cold", "accept"), ("cold", "halt")])
async def test_cancel_before_the_commit_leaves_it_running_where_it_was(tmp_path: Path, way: str, at: str) -> None:
    async with house(tmp_path, transfer_s=5.0) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].ignores_shutdown = True
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: at in h.migration(migration_id).began, at)
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"


@pytest.mark.parametrize("way", ["live", "hybrid", "warm", "cold"])
async def test_a_source_that_was_silent_at_the_end_is_tidied_when_it_returns(tmp_path: Path, way: str) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].lose("migration.release", times=10_000, error=NodeUnreachable("gone"))
        assert await h.ended(await h.migrate(vm_id, "b", way)) is MigrationState.COMPLETED
        assert vm_id in h.cluster["a"].host.machines
        h.cluster["a"]._lost.clear()
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("way", ["live", "hybrid", "warm", "cold"])
async def test_a_target_that_was_silent_when_it_was_called_off_is_tidied_when_it_returns(
    tmp_path: Path, way: str
) -> None:
    async with house(tmp_path, transfer_s=5.0) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].ignores_shutdown = True
        h.cluster["b"].lose("migration.discard", times=10_000, error=NodeUnreachable("gone"))
        migration_id = await h.migrate(vm_id, "b", way)
        await h.until(lambda: {"send", "halt"} & set(h.migration(migration_id).began), "under way")
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert h.cluster["b"].ledger.get(vm_id).role is Role.INCOMING
        h.cluster["b"]._lost.clear()
        await h.until(lambda: h.cluster["b"].ledger.get(vm_id).role is Role.GONE, "the target forgets it")
        assert await h.check_peace(vm_id) == "a"


async def stopped_vm(h: House) -> str:
    vm_id = await h.running_vm("a")
    task = Task(id=h.records.new_id(), kind=TaskKind.STOP, requested_at=h.clock.wall())
    await h.records.change(VMS, vm_id, lambda vm: _replaced(vm, desired=Desired.STOPPED, task=task))
    await h.until(lambda: h.state(vm_id) is VmState.STOPPED and h.vm(vm_id).task is None, "stopped")
    return vm_id


def _replaced(vm: Vm, **changes: object) -> Vm:
    return msgspec.structs.replace(vm, **changes)


async def test_what_a_silent_node_kept_of_a_vm_at_rest_is_tidied_when_it_returns(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await stopped_vm(h)
        h.cluster["a"].lose("migration.release", times=10_000, error=NodeUnreachable("gone"))
        assert await h.ended(await h.migrate(vm_id, "b", "cold")) is MigrationState.COMPLETED
        h.cluster["a"]._lost.clear()
        await h.until(lambda: h.cluster["a"].ledger.get(vm_id).role is Role.GONE, "the source forgets it")
        assert vm_id not in h.cluster["a"].host.machines


async def test_a_vm_at_rest_is_the_targets_and_starts_there(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await stopped_vm(h)
        migration_id = await h.migrate(vm_id, "b", "cold")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert h.vm(vm_id).node_id == h.cluster["b"].node_id
        assert status_of(h.vm(vm_id)) in (MachineStatus.STOPPED, MachineStatus.ABSENT)
        assert h.cluster.world.running(vm_id) == []
        task = Task(id=h.records.new_id(), kind=TaskKind.START, requested_at=h.clock.wall())
        await h.records.change(VMS, vm_id, lambda vm: _replaced(vm, desired=Desired.RUNNING, task=task))
        assert await h.check_peace(vm_id) == "b"
