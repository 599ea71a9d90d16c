"""The verdict on a move: what is asked of whom once it runs there, and what is made of silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from novacron.agent.drivers.base import FileAt
from novacron.control.migrations import examination
from novacron.control.migrations.reachable import Finding
from novacron.errors import DeadlineExceeded, Unsupported
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Migration, MigrationKind, MigrationState, VerifyDisks
from novacron.model.verdict import CHECKS, Outcome, outcome_of
from novacron.testing import fake_snapshots
from novacron.testing.fake_world import FakeMachine
from novacron.testing.hand_clock import HandClock
from tests.sim.house import WAYS, House, house

pytestmark = pytest.mark.anyio
S, P, F, N = MachineStatus, Outcome.PASSED, Outcome.FAILED, Outcome.NOT_CHECKED


def outcomes(migration: Migration) -> dict[str, Outcome]:
    assert migration.verdict is not None
    return {check.name: check.outcome for check in migration.verdict.checks}


def evidence(migration: Migration, name: str) -> str:
    assert migration.verdict is not None
    return next(check.evidence for check in migration.verdict.checks if check.name == name)


async def moved(h: House, vm_id: str, way: str = "live") -> Migration:
    migration_id = await h.migrate(vm_id, "b", way)
    assert await h.ended(migration_id) is MigrationState.COMPLETED
    return h.migration(migration_id)


@pytest.mark.parametrize("way", WAYS)
async def test_every_move_of_a_running_vm_is_judged(tmp_path: Path, way: str) -> None:
    async with house(tmp_path, nodes="abc") as h:
        h.cluster.world.converges = False
        done = await moved(h, await h.running_vm("a"), way)
        assert tuple(outcomes(done)) == CHECKS
        assert outcomes(done) == {
            **dict.fromkeys(("runs", "only_there", "heartbeat", "clock"), P), "network": N, "disks": N
        }  # fmt: skip
        assert "on 1 other nodes nothing of it runs" in evidence(done, "only_there")
        assert "none were copied" in evidence(done, "disks")


async def test_a_clock_that_was_off_is_on_the_record(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: vm_id in h.cluster["b"].host.machines, "the target waits")
        h.cluster["b"].host.machines[vm_id].clock_off_ms = -4000.0
        await h.ended(migration_id)
        verdict = h.migration(migration_id).verdict
        assert verdict is not None
        assert (verdict.clock_off_ms, verdict.clock_off_after_ms) == (-4000.0, 0.0)


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), Unsupported("this agent has no verb")])
async def test_nobody_who_is_silent_fails_a_check_or_stops_a_move(tmp_path: Path, error: DeadlineExceeded) -> None:
    async with house(tmp_path, nodes="abc") as h:
        vm_id = await h.running_vm("a")
        h.cluster["b"].lose("migration.examine", error=error)
        h.cluster["a"].lose("migration.whereabouts", error=error)
        done = await moved(h, vm_id)
        found = outcomes(done)
        assert (found["heartbeat"], found["clock"], found["only_there"]) == (N, N, N)
        assert error.message in evidence(done, "heartbeat")
        assert error.message in evidence(done, "only_there")
        assert await h.check_peace(vm_id) == "b"


async def test_a_check_that_fails_is_told_and_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path, nodes="abc") as h:
        vm_id = await h.running_vm("a")
        rogue = MachineReport(vm_id=vm_id, generation=2, status=S.RUNNING, since=h.clock.wall())
        monkeypatch.setattr(h.cluster["c"].machines, "report_or_absent", lambda *_: rogue)
        done = await moved(h, vm_id)
        assert outcomes(done)["only_there"] is F
        assert "check only_there failed: on c it is running" in done.explanation
        assert await h.check_peace(vm_id) == "b"


# -- decided -----------------------------------------------------------------------------------------------


def said(status: MachineStatus) -> MachineReport:
    return MachineReport(vm_id="v", generation=1, status=status, since=HandClock().wall())


@pytest.mark.parametrize(
    ("answers", "outcome", "words"),
    [
        ({"a": S.HANDED_OFF, "c": S.ABSENT}, P, "handed off"),
        ({"a": S.STOPPED, "c": S.UNKNOWN}, P, "1 nodes could not be asked"),
        ({"a": S.ABSENT, "c": "no answer"}, P, "on a it is gone"),
        ({"a": S.RUNNING}, F, "on a it is running"),
        ({"a": S.PAUSED}, F, "on a it is paused"),
        ({"a": S.HANDED_OFF, "c": S.RUNNING}, F, "on c it is running"),
        ({"a": "no answer", "c": S.RUNNING}, F, "on c"),
        ({"a": S.UNKNOWN, "c": S.ABSENT}, N, "what is on a is not known"),
        ({"a": "no answer", "c": S.ABSENT}, N, "no answer"),
        ({"c": S.ABSENT}, N, "no node any more"),
    ],
)
def test_it_is_only_there_when_its_source_says_so_and_nobody_has_it(
    answers: dict[str, MachineStatus | str], outcome: Outcome, words: str
) -> None:
    reports = {name: said(one) if isinstance(one, MachineStatus) else one for name, one in answers.items()}
    check = examination.only_there(reports, "a", 0)
    assert check.outcome is outcome
    assert words in check.evidence


@pytest.mark.parametrize(
    ("finding", "kind", "outcome"),
    [
        (Finding(gap_ms=42.0, checked_by="c"), MigrationKind.LIVE, P),
        (Finding(checked_by="c", note="did not answer"), MigrationKind.LIVE, F),
        (Finding(checked_by="c", note="did not answer"), MigrationKind.COLD, N),  # it may still boot
        (Finding(note="could not be checked"), MigrationKind.LIVE, N),
        (Finding(), MigrationKind.LIVE, N),
    ],
)
def test_a_network_nobody_heard_of_is_not_checked(finding: Finding, kind: MigrationKind, outcome: Outcome) -> None:
    assert examination.network(finding, "node-3", kind).outcome is outcome


def test_one_failure_fails_all_and_silence_alone_passes_nothing() -> None:
    checks = {one: examination.Check(name="x", outcome=one, evidence="") for one in Outcome}
    assert outcome_of(checks.values()) is F
    assert outcome_of([checks[P], checks[N]]) is P
    assert outcome_of([checks[N]]) is N
    assert outcome_of([]) is N


# -- disks that were copied ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", VerifyDisks)
@pytest.mark.parametrize("way", WAYS)
async def test_copied_disks_are_compared_before_the_sources_are_deleted(
    tmp_path: Path, way: str, verify: VerifyDisks
) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        migration_id = await h.migrate(vm_id, "b", way, verify_disks=verify)
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        done = h.migration(migration_id)
        assert outcomes(done)["disks"] in ((N,) if way == "cold" or verify is VerifyDisks.NONE else (P, N))
        told = evidence(done, "disks")
        assert ("has ended" in told) if way == "cold" else ("is none" in told or verify.value in told)
        assert await h.check_peace(vm_id) == "b"
        assert not h.cluster["b"].host.machines[vm_id].watched


async def test_a_copy_that_differs_is_told_and_the_sources_is_kept(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a", local=True)
        a, b = h.cluster["a"], h.cluster["b"]
        b.lose("migration.verify", error=DeadlineExceeded("late"))  # so that it comes after what follows
        migration_id = await h.migrate(vm_id, "b")
        await h.until(lambda: "take_over" in h.migration(migration_id).did, "it runs there")
        h.guest_rests(vm_id)
        here, there = (one.host.machines[vm_id] for one in (a, b))
        source, target = (_file(one) for one in (here, there))
        fake_snapshots.write(source, "what did not come")
        there.watched = dict.fromkeys(there.watched, fake_snapshots.read(target).content)
        assert await h.ended(migration_id) is MigrationState.COMPLETED
        done = h.migration(migration_id)
        assert outcomes(done)["disks"] is F
        assert f"({source}); once they are of no use: novacron migration discard-copies {done.id}" in evidence(
            done, "disks"
        )
        assert any("check disks failed" in line for line in done.explanation)
        await h.until(lambda: vm_id not in a.host.machines, "the source lets go")
        assert source.exists()
        assert h.cluster.world.running(vm_id) == ["b"]


def _file(machine: FakeMachine) -> Path:
    (disk,) = machine.launch.disks
    assert isinstance(disk.source, FileAt)
    return disk.source.path
