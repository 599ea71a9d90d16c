"""A migration rehearsal: a copy of a VM, booted on another node on a network of its own, looked at and deleted. Pure.

    copying → booting → examining → (keeping) → cleaning → passed, failed or cancelled

Whatever goes wrong, and whoever calls it off, leads to cleaning; what it ends as is known before and said after.
"""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.errors import NovaCronError, Reason, StateConflict
from novacron.model.verdict import Check, Verdict, failures
from novacron.model.vm import Problem

LABEL = "novacron.io/rehearsal"
"""On all that a rehearsal makes: its id."""


class RehearsalState(StrEnum):
    """What is being done, or how it ended."""

    COPYING = "copying"
    BOOTING = "booting"
    EXAMINING = "examining"
    KEEPING = "keeping"
    CLEANING = "cleaning"
    PASSED = "passed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({RehearsalState.PASSED, RehearsalState.FAILED, RehearsalState.CANCELLED})


class RehearsalFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured; None: not (yet). boot_ms: from the order to begin until its hypervisor said that it ran."""

    copied_bytes: int | None = None
    copy_ms: float | None = None
    boot_ms: float | None = None


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one rehearsal.

    generation: of the original's ownership when it began; task_id: of the original's task while its disks are copied.
    copy_id, network_id: the copy's VM, and the network made for its cards (empty: it has none). copies: by volume of
    the original, the copy's. let_go: nothing of the copying is left at the original's node.
    keep_for_s: so long the copy runs on once the verdict is there; boot_within_s: so long it may take to show signs of
    life; watch_for_s: so long it must live. cancelled: it was called off.
    """

    id: str
    vm_id: str
    vm_name: str
    state: RehearsalState
    source_node: str
    target_node: str
    generation: int
    task_id: str
    copy_id: str
    copy_name: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    network_id: str = ""
    copies: dict[str, str] = {}
    keep_for_s: float = 0.0
    boot_within_s: float = 120.0
    watch_for_s: float = 10.0
    bandwidth_bytes_per_s: int = 0
    labels: dict[str, str] = {}
    requested_by: str = ""
    explanation: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    figures: RehearsalFigures = RehearsalFigures()
    let_go: bool = False
    cancelled: bool = False
    problem: Problem | None = None
    verdict: Verdict | None = None
    booted_at: datetime.datetime | None = None
    kept_until: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None


def is_final(rehearsal: Rehearsal) -> bool:
    """Whether it has ended, and nothing of it but the record is left."""
    return rehearsal.state in FINAL


def may_cancel(rehearsal: Rehearsal) -> bool:
    """Whether there is anything to call off."""
    return not is_final(rehearsal) and rehearsal.state is not RehearsalState.CLEANING


def check_final(rehearsal: Rehearsal) -> None:
    """:raise StateConflict: it has not ended: its record is the way to all that it has made."""
    if not is_final(rehearsal):
        remedy = f"novacron migration rehearsal cancel {rehearsal.id}, and wait until it has ended"
        reason = Reason("state.conflict", f"it is {rehearsal.state.value}", rehearsal.id, remedy)
        raise StateConflict(f"cannot delete rehearsal {rehearsal.id}: it is {rehearsal.state.value}", [reason])


def cancelled(rehearsal: Rehearsal, now: datetime.datetime) -> Rehearsal | None:
    """Called off: the copy goes at once. One whose verdict is there keeps it. None: it is being cleaned up already.

    :raise StateConflict: it has ended.
    """
    if is_final(rehearsal):
        states = ("copying", "booting", "examining", "keeping")
        raise StateConflict.of(f"rehearsal {rehearsal.id}", rehearsal.state.value, states, "cancel")
    if rehearsal.state is RehearsalState.CLEANING:
        return None
    off = rehearsal.verdict is None
    return msgspec.structs.replace(rehearsal, state=RehearsalState.CLEANING, cancelled=off, updated_at=now)


def copied(rehearsal: Rehearsal, copied_bytes: int, took_ms: float, now: datetime.datetime) -> Rehearsal:
    """Its disks have been copied; it is to boot."""
    figures = msgspec.structs.replace(rehearsal.figures, copied_bytes=copied_bytes, copy_ms=took_ms)
    return msgspec.structs.replace(rehearsal, state=RehearsalState.BOOTING, figures=figures, updated_at=now)


def booted(rehearsal: Rehearsal, took_ms: float, now: datetime.datetime) -> Rehearsal:
    """Its hypervisor said that the copy runs, and the original was let go."""
    figures = msgspec.structs.replace(rehearsal.figures, boot_ms=took_ms)
    return msgspec.structs.replace(
        rehearsal, state=RehearsalState.EXAMINING, figures=figures, let_go=True, booted_at=now, updated_at=now
    )


def judged(rehearsal: Rehearsal, verdict: Verdict, now: datetime.datetime) -> Rehearsal:
    """The verdict is there; the copy runs on for as long as was asked for."""
    kept = rehearsal.keep_for_s > 0
    until = now + datetime.timedelta(seconds=rehearsal.keep_for_s) if kept else None
    state = RehearsalState.KEEPING if kept else RehearsalState.CLEANING
    return msgspec.structs.replace(rehearsal, state=state, verdict=verdict, kept_until=until, updated_at=now)


def kept(rehearsal: Rehearsal, now: datetime.datetime) -> Rehearsal:
    """The copy has been kept for as long as was asked for."""
    return msgspec.structs.replace(rehearsal, state=RehearsalState.CLEANING, updated_at=now)


def failed(rehearsal: Rehearsal, check: Check, error: NovaCronError, now: datetime.datetime) -> Rehearsal:
    """It came to no boot: the check that failed is the verdict's last."""
    remedy = next((reason.remedy for reason in error.reasons if reason.remedy), "rehearse it again")
    problem = Problem(code=error.code, message=error.message, remedy=remedy, at=now)
    verdict = Verdict(at=now, checks=(*rehearsal.checks, check))
    return msgspec.structs.replace(
        rehearsal, state=RehearsalState.CLEANING, problem=problem, verdict=verdict, updated_at=now
    )


def cleaned(rehearsal: Rehearsal, now: datetime.datetime) -> Rehearsal:
    """Nothing of it is left."""
    return msgspec.structs.replace(rehearsal, state=_end(rehearsal), updated_at=now, finished_at=now)


def _end(rehearsal: Rehearsal) -> RehearsalState:
    if rehearsal.verdict is None:
        return RehearsalState.CANCELLED
    return RehearsalState.FAILED if failures(rehearsal.verdict.checks) else RehearsalState.PASSED
