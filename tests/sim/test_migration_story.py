"""One migration at a time through the production parts: the good way, and every fault at every step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from novacron.control.migrations.performer import Performer
from novacron.control.store.kinds import MIGRATIONS
from novacron.errors import (
    DeadlineExceeded,
    MachineDied,
    MigrationFailed,
    MonitorFailed,
    NodeUnreachable,
    NovaCronError,
)
from novacron.model import migration_steps as machine
from novacron.model.migration import Migration, MigrationState, is_final
from novacron.model.vm import Problem
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio

VERBS = {"accept": "b", "send": "a", "take_over": "b", "verify": "b", "release": "a"}


async def test_there_and_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        there = await h.migrate(vm_id, "b")
        assert await h.ended(there) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"
        assert h.vm(vm_id).generation == 2
        back = await h.migrate(vm_id, "a")
        assert await h.ended(back) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "a"
        figures = h.migration(back).figures
        assert figures.bytes_transferred
        assert figures.downtime_stopped_ms is not None
        assert h.migration(back).progress is not None


@pytest.mark.parametrize("after", [False, True], ids=["lost-call", "lost-reply"])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_broken_line_is_only_a_delay(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster[VERBS[verb]].lose(f"migration.{verb}", after=after)
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("after", [False, True], ids=["unheard", "done-but-late"])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_late_answer_is_asked_for_again(tmp_path: Path, verb: str, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster[VERBS[verb]].lose(f"migration.{verb}", after=after, error=DeadlineExceeded("too late"))
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize(
    ("verb", "error", "after"),
    [
        ("accept", MachineDied("no such machine type"), False),
        ("accept", MachineDied("died after listening"), True),
        ("send", MigrationFailed("the stream broke"), False),
        ("take_over", MonitorFailed("cannot load the device state"), False),
    ],
)
async def test_a_refusal_before_the_target_runs_leaves_the_source_as_it_was(
    tmp_path: Path, verb: str, error: NovaCronError, after: bool
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster[VERBS[verb]].host.fail(verb, error, after=after)
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
        assert await h.check_peace(vm_id) == "a"
        problem = h.migration(migration_id).problem
        assert problem is not None
        assert error.message in problem.message
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED  # and the next try works
        assert await h.check_peace(vm_id) == "b"


async def test_a_target_that_ran_is_never_given_back(tmp_path: Path) -> None:
    """Its `take_over` fails once done: whether it runs is asked of it, and the source must not continue."""
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["b"].host.fail("take_over", MonitorFailed("answer lost in the monitor"), after=True)
        state = await h.ended(await h.migrate(vm_id, "b"))
        assert state in (MigrationState.FAILED, MigrationState.COMPLETED)
        assert h.cluster.world.running(vm_id) == ["b"]
        assert h.vm(vm_id).node_id == h.cluster["b"].node_id
        assert h.cluster.world.violations == []


@pytest.mark.parametrize("at", ["accept", "send"])
async def test_cancel(tmp_path: Path, at: str) -> None:
    async with house(tmp_path, transfer_s=5.0) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: at in h.migration(migration_id).began, at)
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"


async def test_a_step_that_fails_once_cancelled_is_no_failed_undo(tmp_path: Path) -> None:
    async with house(tmp_path, transfer_s=5.0) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "send" in h.migration(migration_id).began, "send")
        await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
        problem = Problem(code="migration_failed", message="the stream broke", at=h.clock.wall())
        await h.journal.went_wrong(migration_id, problem)
        assert await h.ended(migration_id) is MigrationState.CANCELLED
        assert await h.check_peace(vm_id) == "a"


async def test_a_migration_that_takes_too_long_is_taken_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster.world.transfer_s = 1e9
        migration_id = await h.migrate(vm_id, "b", finish_within_s=0.5)
        assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
        problem = h.migration(migration_id).problem
        assert problem is not None
        assert problem.code == "migration.too_long"
        assert await h.check_peace(vm_id) == "a"


async def killed_after_write(h: House, number: int) -> asyncio.Task[None]:
    """Replace the conductor right after its `number`-th write to any migration."""
    struck = asyncio.Event()
    seen = 0

    def count(changes: object) -> None:
        nonlocal seen
        seen += sum(1 for change in changes if change.kind is MIGRATIONS)  # type: ignore[attr-defined]
        if seen >= number:
            struck.set()

    stop = h.records.subscribe(count)

    async def strike() -> None:
        await struck.wait()
        stop()
        await h.replace_worker("conductor")

    return asyncio.create_task(strike())


@pytest.mark.parametrize("number", range(1, 10))
async def test_a_conductor_killed_after_any_write_is_continued_by_the_next(tmp_path: Path, number: int) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        strike = await killed_after_write(h, number)
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        strike.cancel()
        assert await h.check_peace(vm_id) == "b"


@pytest.mark.parametrize("node", ["a", "b"])
@pytest.mark.parametrize("step", ["accept", "send", "take_over", "verify", "release"])
async def test_an_agent_killed_during_any_step(tmp_path: Path, step: str, node: str) -> None:
    """Its machines run on; it comes back, adopts them, and the story ends well on one side or the other."""
    async with house(tmp_path, transfer_s=1.0) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: step in h.migration(migration_id).began or is_final(h.migration(migration_id)), step)
        await h.cluster.kill(node)
        await h.cluster.boot(node)
        state = await h.ended(migration_id)
        where = await h.check_peace(vm_id)
        assert (state, where) in {(MigrationState.COMPLETED, "b"), (MigrationState.ROLLED_BACK, "a")}


async def test_a_source_that_never_returns_does_not_hold_the_machine(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].lose("migration.release", times=10_000, error=NodeUnreachable("gone"))
        migration_id = await h.migrate(vm_id, "b")
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        assert any("when it returns" in line for line in h.migration(migration_id).explanation)
        assert h.cluster.world.running(vm_id) == ["b"]
        h.cluster["a"]._lost.clear()
        assert await h.check_peace(vm_id) == "b"  # and the stray half is swept away


async def test_a_fault_of_ours_delays_and_strands_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, failures = Performer._verify, iter([RuntimeError("a bug")])

    async def faulty(self: Performer, migration: Migration, step: machine.Step) -> None:
        for failure in failures:
            raise failure
        await verify(self, migration, step)

    monkeypatch.setattr(Performer, "_verify", faulty)
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert await h.check_peace(vm_id) == "b"
