"""Rehearsals under faults at every step: the original is what it was, and all that was made for the copy is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from novacron.control.once import Once
from novacron.control.store.kinds import NETWORKS, REHEARSALS, VMS, VOLUMES
from novacron.errors import DeadlineExceeded, MachineDied, MigrationFailed, NodeUnreachable, Unsupported
from novacron.model.machine import NetworkKind, Nic
from novacron.model.rehearsal import Rehearsal, RehearsalState, is_final
from novacron.model.verdict import Outcome
from novacron.model.vm import Desired, Task, TaskKind, Vm
from novacron.testing.fake_driver import FakeDriver
from novacron.wire.rest.rehearsals import RehearsalCreate
from tests.sim.house import House, _with, house

pytestmark = pytest.mark.anyio

CARD = Nic(id="01890000-0000-7000-8000-0000000000c1", mac="52:4e:43:00:00:01", network=NetworkKind.USER, slot=1)
SIDES = {
    "migration.accept": "b",
    "rehearsal.copy_out": "a",
    "migration.take_over": "b",
    "rehearsal.drop_copy": "a",
    "migration.examine": "b",
    "migration.discard": "b",
    "machine.stop": "b",
    "machine.remove": "b",
}
STATES = ("copying", "booting", "examining", "keeping", "cleaning")


@pytest.fixture(autouse=True)
def _qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")


async def original(h: House) -> Vm:
    """A VM with a card and a disk that only its node sees; its guest writes."""
    vm_id = await h.running_vm("a", CARD, local=True)
    await h.until(lambda: h.written(vm_id) > 2, "its guest has written")
    return h.vm(vm_id)


async def rehearsed(h: House, vm: Vm, **wish: float) -> str:
    once = Once(h.records.store, "", "", h.clock.wall())
    made = await h.rehearsals.create(RehearsalCreate(vm=vm.id, target_node="b", watch_for_s=2.0, **wish), "ada", once)
    return str(made.stored.record.id)


def story(h: House, rehearsal_id: str) -> Rehearsal:
    return h.records.find(REHEARSALS, rehearsal_id).record


async def ended(h: House, rehearsal_id: str) -> Rehearsal:
    await h.until(lambda: is_final(story(h, rehearsal_id)), f"it ends: {story(h, rehearsal_id)}")
    return story(h, rehearsal_id)


def is_as_before(h: House, vm: Vm) -> bool:
    now = h.vm(vm.id)
    return _with(now, updated_at=vm.updated_at) == vm


async def check_nothing_left(h: House, vm: Vm) -> None:
    """The original runs on as it was, and of the copy nothing is left anywhere."""
    written = h.written(vm.id)
    await h.until(lambda: h.written(vm.id) > written and is_as_before(h, vm), "its guest writes on")
    await h.until(lambda: not h.cluster["b"].networks.known, "the network is gone")
    a, b = h.cluster["a"], h.cluster["b"]
    assert [one.record.id for one in h.records.all(VMS)] == [vm.id]
    assert [one.record.id for one in h.records.all(VOLUMES)] == [vm.spec.disks[0].volume_id]
    assert h.records.all(NETWORKS) == []
    assert h.cluster.world.running(vm.id) == ["a"]
    assert a.host.machines[vm.id].copying_out == ""
    assert list(b.host.machines) == []
    assert list(b.local_pool(vm.spec.disks[0].pool_id).volumes()) == []
    assert h.cluster.world.violations == []


async def struck_after(h: House, number: int, strike: Callable[[], object]) -> asyncio.Task[None]:
    """Strike right after the `number`-th write to any rehearsal."""
    struck = asyncio.Event()
    seen = 0

    def count(changes: object) -> None:
        nonlocal seen
        seen += sum(1 for change in changes if change.kind is REHEARSALS)  # type: ignore[attr-defined]
        if seen >= number:
            struck.set()

    stop = h.records.subscribe(count)

    async def wait() -> None:
        await struck.wait()
        stop()
        await strike()  # type: ignore[misc]

    return asyncio.create_task(wait())


async def test_a_copy_boots_elsewhere_and_is_gone_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        rehearsal_id = await rehearsed(h, vm, keep_for_s=5.0)
        assert h.vm(vm.id).task is not None  # nothing else may meet the copying
        await h.until(lambda: story(h, rehearsal_id).state is RehearsalState.KEEPING, "the verdict is there")
        copy = h.vm(story(h, rehearsal_id).copy_id)
        assert h.vm(vm.id).task is None
        assert h.cluster.world.running(copy.id) == ["b"]
        assert [nic.mac for nic in copy.spec.nics] == [CARD.mac]
        (network,) = [one.record for one in h.records.all(NETWORKS)]
        assert (copy.spec.nics[0].network_id, network.spec.mode, network.spec.ipv4) == (network.id, "isolated", "")
        done = await ended(h, rehearsal_id)
        assert done.state is RehearsalState.PASSED
        assert done.verdict is not None
        found = {check.name: check.outcome for check in done.verdict.checks}
        assert found == {
            "planned": Outcome.PASSED,
            "copied": Outcome.PASSED,
            "runs": Outcome.PASSED,
            "heartbeat": Outcome.PASSED,
            "clock": Outcome.PASSED,
            "console": Outcome.NOT_CHECKED,
        }
        assert (done.finished_at or done.created_at) - done.created_at >= (done.kept_until or done.created_at) - (
            done.booted_at or done.created_at
        )
        await check_nothing_left(h, vm)


@pytest.mark.parametrize("number", range(1, 8))
async def test_a_server_killed_after_any_write_is_followed_by_another(tmp_path: Path, number: int) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        strike = await struck_after(h, number, lambda: h.replace_worker("rehearsals"))
        done = await ended(h, await rehearsed(h, vm, keep_for_s=1.0))
        assert done.state is RehearsalState.PASSED
        strike.cancel()
        await check_nothing_left(h, vm)


@pytest.mark.parametrize("after", [False, True], ids=["call", "reply"])
@pytest.mark.parametrize("verb", SIDES)
async def test_a_lost_word_is_only_a_delay(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        h.cluster[SIDES[verb]].lose(verb, after=after, error=DeadlineExceeded("late"))
        done = await ended(h, await rehearsed(h, vm))
        assert done.state is RehearsalState.PASSED, done
        await check_nothing_left(h, vm)


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("number", range(1, 6))
async def test_an_agent_killed_at_any_step(tmp_path: Path, number: int, node: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm = await original(h)

        async def again() -> None:
            await h.cluster.kill(node)
            await h.cluster.boot(node)

        strike = await struck_after(h, number, again)
        await ended(h, await rehearsed(h, vm, keep_for_s=1.0))
        strike.cancel()
        await check_nothing_left(h, vm)


@pytest.mark.parametrize(("node", "verb", "check"), [("a", "copy_out", "copied"), ("b", "start", "runs")])
async def test_a_refusal_is_the_verdict(tmp_path: Path, node: str, verb: str, check: str) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        h.cluster[node].host.fail(verb, MachineDied("it broke") if verb == "start" else MigrationFailed("it broke"))
        done = await ended(h, await rehearsed(h, vm))
        assert done.state is RehearsalState.FAILED
        assert done.problem is not None
        assert done.verdict is not None
        assert (done.verdict.checks[-1].name, done.verdict.checks[-1].outcome) == (check, Outcome.FAILED)
        assert "it broke" in done.verdict.checks[-1].evidence
        await check_nothing_left(h, vm)


async def test_an_older_agent_at_the_source_copies_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        for verb in ("rehearsal.copy_out", "rehearsal.drop_copy"):
            h.cluster["a"].lose(verb, error=Unsupported(f"this agent has no verb {verb!r}"), times=1000)
        done = await ended(h, await rehearsed(h, vm))
        assert done.state is RehearsalState.FAILED
        await check_nothing_left(h, vm)


async def test_a_copy_that_dies_fails(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        rehearsal_id = await rehearsed(h, vm)
        await h.until(lambda: story(h, rehearsal_id).state is RehearsalState.EXAMINING, "it runs there")
        h.cluster["b"].host.crash(story(h, rehearsal_id).copy_id)
        done = await ended(h, rehearsal_id)
        assert done.state is RehearsalState.FAILED
        await check_nothing_left(h, vm)


async def test_an_agent_that_stays_silent_fails_the_copy(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        spec = _with(vm.spec, guest_agent=True)
        await h.records.change(VMS, vm.id, lambda now: _with(now, spec=spec, booted=spec))
        vm = h.vm(vm.id)
        rehearsal_id = await rehearsed(h, vm, boot_within_s=20.0)
        await h.until(lambda: bool(h.cluster.world.running(story(h, rehearsal_id).copy_id)), "it runs there")
        h.cluster["b"].host.machines[story(h, rehearsal_id).copy_id].is_dumb = True
        done = await ended(h, rehearsal_id)
        assert done.state is RehearsalState.FAILED
        assert done.verdict is not None
        (failed,) = [check for check in done.verdict.checks if check.outcome is Outcome.FAILED]
        assert "guest agent did not answer within 2" in failed.evidence  # 20 s, as far as the clock is read often
        await check_nothing_left(h, vm)


@pytest.mark.parametrize("state", STATES)
async def test_called_off_nothing_is_left(tmp_path: Path, state: str) -> None:
    async with house(tmp_path, transfer_s=1.0) as h:
        vm = await original(h)
        rehearsal_id = await rehearsed(h, vm, keep_for_s=3600.0 if state == "keeping" else 1.0)
        await h.until(lambda: story(h, rehearsal_id).state == state, state)
        await h.rehearsals.cancel(rehearsal_id, None, Once(h.records.store, "", "", h.clock.wall()))
        done = await ended(h, rehearsal_id)
        judged = state in ("keeping", "cleaning")
        assert done.state is (RehearsalState.PASSED if judged else RehearsalState.CANCELLED)
        await check_nothing_left(h, vm)


async def test_a_copy_that_is_migrated_meanwhile_is_deleted_where_it_arrives(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=2.0, nodes="abc") as h:
        vm = await original(h)
        rehearsal_id = await rehearsed(h, vm, keep_for_s=3600.0)
        await h.until(lambda: story(h, rehearsal_id).state is RehearsalState.KEEPING, "the verdict is there")
        migration_id = await h.migrate(story(h, rehearsal_id).copy_id, "c")
        await h.until(lambda: "send" in h.migration(migration_id).began, "it moves")
        await h.rehearsals.cancel(rehearsal_id, None, Once(h.records.store, "", "", h.clock.wall()))
        assert (await ended(h, rehearsal_id)).state is RehearsalState.PASSED
        assert h.migration(migration_id).state == "completed"
        await check_nothing_left(h, vm)


async def test_a_forced_stop_pushes_it_aside(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=3.0) as h:
        vm = await original(h)
        rehearsal_id = await rehearsed(h, vm)
        await h.until(lambda: bool(h.cluster["a"].host.machines[vm.id].copying_out), "it copies")
        now = h.clock.wall()
        task = Task(id=h.records.new_id(), kind=TaskKind.STOP, requested_at=now, force=True)
        await h.records.change(VMS, vm.id, lambda seen: _with(seen, desired=Desired.STOPPED, task=task))
        done = await ended(h, rehearsal_id)
        assert done.state is RehearsalState.FAILED
        assert done.problem is not None
        assert "gave way" in done.problem.message
        await h.until(lambda: h.vm(vm.id).task is None, "it is stopped")
        assert [one.record.id for one in h.records.all(VMS)] == [vm.id]
        assert h.vm(vm.id).desired is Desired.STOPPED


async def test_a_copy_that_was_never_told_to_begin_is_gone_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        h.cluster["b"].lose("migration.take_over", error=NodeUnreachable("cut"), times=1000)
        done = await ended(h, await rehearsed(h, vm))
        assert done.state is RehearsalState.FAILED
        await check_nothing_left(h, vm)


async def test_a_target_that_is_away_for_good_does_not_hold_the_original(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm = await original(h)
        h.cluster["b"].lose("migration.accept", error=NodeUnreachable("cut"), times=1000)
        rehearsal_id = await rehearsed(h, vm)
        await h.until(lambda: h.vm(vm.id).task is None, "the original is let go")
        assert story(h, rehearsal_id).problem is not None
        assert (await ended(h, rehearsal_id)).state is RehearsalState.FAILED
        assert msgspec.structs.asdict(h.vm(vm.id))["migration_id"] == ""
