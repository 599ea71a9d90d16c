"""What was looked at once a machine had moved, what was found, and by what: the verdict on a migration. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from enum import StrEnum

import msgspec

RUNS, ONLY_THERE, HEARTBEAT, CLOCK, NETWORK, DISKS = CHECKS = (
    "runs",
    "only_there",
    "heartbeat",
    "clock",
    "network",
    "disks",
)
"""The checks, in the order in which they are told."""


class Outcome(StrEnum):
    """not_checked: nobody could look, or what was seen says neither; never a guess."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not_checked"


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at. evidence: what was seen, in words."""

    name: str
    outcome: Outcome
    evidence: str
    took_ms: float = 0.0


class Signs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Signs of life of a guest. clock_off_ms: how far its clock was ahead of its node's (below zero: behind);
    clock_off_after_ms: likewise, once it had been put right; None: that was not needed, or did not come about.
    """

    checks: tuple[Check, ...]
    clock_off_ms: float | None = None
    clock_off_after_ms: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that was looked at. A check that failed takes nothing back: the machine runs there. Figures as in Signs."""

    at: datetime.datetime
    checks: tuple[Check, ...]
    clock_off_ms: float | None = None
    clock_off_after_ms: float | None = None


def failures(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Those that failed."""
    return tuple(check for check in checks if check.outcome is Outcome.FAILED)


def outcome_of(checks: Iterable[Check]) -> Outcome:
    """Of all together: failed when one did, passed when one did and none failed."""
    found = {check.outcome for check in checks}
    return next((one for one in (Outcome.FAILED, Outcome.PASSED) if one in found), Outcome.NOT_CHECKED)


def whole(found: Iterable[Check]) -> tuple[Check, ...]:
    """One check of each name, in order; what nobody looked at says so."""
    named = {check.name: check for check in found}
    missing = "nothing was found out about it"
    return tuple(named.get(name) or Check(name=name, outcome=Outcome.NOT_CHECKED, evidence=missing) for name in CHECKS)
