"""The migration machine, alone and pure: the steps of each kind as data, and what comes next.

    pending → preparing → transferring → switching → verifying → completed
       │          │             │            │             │
       └──────────┴─────────────┴→ cancelling → cancelled  └→ failed
                                └────────────┴→ rolling_back → rolled_back

`rolled_back` and `cancelled`: the source runs as before. `failed`: a person must look; `problem` says what to type.
The conductor asks `next_action`, writes `began`, does it, writes `did` (or `went_wrong`), and asks again. A record is
enough to continue from: whoever reads it next, after any crash, asks the same question.
"""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.errors import StateConflict
from novacron.model.migration import (
    UNDOING,
    Migration,
    MigrationKind,
    MigrationState,
    Strategy,
    is_final,
    is_here,
    waits,
)
from novacron.model.vm import Problem


class Side(StrEnum):
    """Who does a step: an agent, or the control plane itself (one store transaction)."""

    SOURCE = "source"
    TARGET = "target"
    CONTROL = "control"


class Step(msgspec.Struct, frozen=True):
    """One step: its verb, who does it, the state shown meanwhile, and the verb that undoes it on the same side."""

    name: str
    side: Side
    state: MigrationState
    undo: str = ""


COPY_KEPT_S = 24 * 3600.0
"""So long is what has come of disks kept on a target whose migration failed."""
AT_ONCE_S = 1.0
"""A migration that begins within this time has not waited in line."""

COMMIT = "commit"
"""The hand-over: the VM's owner and the migration's record change in one store transaction.

After it only forward, with one way back: a target that provably never continued (its `discard` succeeded) gives the
ownership back by the same kind of transaction (`retake`), and the source, still whole, continues.
"""

_ACCEPT = Step("accept", Side.TARGET, MigrationState.PREPARING, undo="discard")
_COPY_DISKS = Step("copy_disks", Side.SOURCE, MigrationState.TRANSFERRING, undo="reclaim")
_COPY_BELONGINGS = Step("copy_belongings", Side.SOURCE, MigrationState.SWITCHING)
_SEND = Step("send", Side.SOURCE, MigrationState.TRANSFERRING, undo="reclaim")
_HALT = Step("halt", Side.SOURCE, MigrationState.SWITCHING, undo="reclaim")
_COPY_HERE = Step("copy_here", Side.SOURCE, MigrationState.TRANSFERRING, undo="reclaim")
_PIVOT = Step("pivot", Side.SOURCE, MigrationState.SWITCHING)
_TIDY = Step("tidy", Side.SOURCE, MigrationState.VERIFYING)
_COMMIT = Step(COMMIT, Side.CONTROL, MigrationState.SWITCHING, undo="retake")
_OPEN_POSTCOPY = Step("open_postcopy", Side.SOURCE, MigrationState.SWITCHING)
_TAKE_OVER = Step("take_over", Side.TARGET, MigrationState.SWITCHING, undo="discard")
_FETCH_REST = Step("fetch_rest", Side.SOURCE, MigrationState.SWITCHING)
_VERIFY = Step("verify", Side.TARGET, MigrationState.VERIFYING)
_SETTLE = Step("settle", Side.TARGET, MigrationState.SWITCHING)
_RELEASE = Step("release", Side.SOURCE, MigrationState.VERIFYING)

STREAMED = (_ACCEPT, _SEND, _COMMIT, _TAKE_OVER, _VERIFY, _RELEASE)
"""The whole memory arrives before the hand-over: live pre-copy, and warm, whose guest stands still meanwhile."""

POSTCOPIED = (_ACCEPT, _SEND, _COMMIT, _OPEN_POSTCOPY, _TAKE_OVER, _FETCH_REST, _VERIFY, _RELEASE)
"""`send` ends with the source standing still, whole or not; what is not there yet follows after the hand-over. Where
nothing is left to follow, `open_postcopy` and `fetch_rest` find their work done.
"""

REBOOTED = (_ACCEPT, _HALT, _COMMIT, _TAKE_OVER, _VERIFY, _RELEASE)
"""Cold: the guest is shut down here and boots there; `accept` starts nothing but has everything ready."""

REASSIGNED = (_COMMIT, _RELEASE)
"""Cold, of a VM at rest: its next start is on the target."""

CARRIED = (_ACCEPT, _COPY_DISKS, _HALT, _COMMIT, _SETTLE, _RELEASE)
"""Cold, of a VM at rest whose disks move too: both sides have them open, and no guest begins on either."""

MOVED_HERE = (_COPY_HERE, _PIVOT, _COMMIT, _TIDY)
"""Its disks into other pools, on the node it runs on and as it runs: `pivot` has it work with the new ones alone."""

CARRIED_HERE = (_COPY_HERE, _HALT, _COMMIT, _TIDY)
"""The same of a VM at rest, whose disks are open only while they are copied."""


class Do(msgspec.Struct, frozen=True):
    """Perform this step (again, if it had begun: every verb is idempotent under migration id and step)."""

    step: Step


class Undo(msgspec.Struct, frozen=True):
    """Take this begun step back."""

    step: Step


class Finish(msgspec.Struct, frozen=True):
    """Nothing is left to do: write this final state and let the VM go."""

    state: MigrationState


Action = Do | Undo | Finish

STREAMING = frozenset(step.name for step in (_COPY_DISKS, _SEND, _COPY_HERE, _FETCH_REST))
"""The steps in which something flows."""


def may_stream(migration: Migration) -> bool:
    """Whether something of it flows, or is still to."""
    if is_final(migration) or migration.state in UNDOING:
        return False
    return any(step.name in STREAMING and step.name not in migration.did for step in steps_of(migration))


def steps_of(migration: Migration) -> tuple[Step, ...]:
    """The steps of this migration, in order."""
    if is_here(migration):
        return CARRIED_HERE if migration.at_rest else MOVED_HERE
    if migration.kind is MigrationKind.COLD and migration.at_rest:
        if migration.disks:
            return _with_belongings(migration, CARRIED)
        return (_ACCEPT, _COPY_BELONGINGS, _COMMIT, _SETTLE, _RELEASE) if migration.belongings else REASSIGNED
    steps = _steps_with_memory(migration) if migration.kind is not MigrationKind.COLD else REBOOTED
    steps = _with_belongings(migration, steps)
    return (steps[0], _COPY_DISKS, *steps[1:]) if migration.disks else steps


def _with_belongings(migration: Migration, steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Their files are copied just before the hand-over, unless they come with memory: a hypervisor writes those of a
    guest that runs on as it goes on, and of one that stays paused it writes none.
    """
    if not migration.belongings or (migration.kind is not MigrationKind.COLD and not migration.paused):
        return steps
    at = steps.index(_COMMIT)
    return (*steps[:at], _COPY_BELONGINGS, *steps[at:])


def _steps_with_memory(migration: Migration) -> tuple[Step, ...]:
    warm = migration.kind is MigrationKind.WARM
    return STREAMED if warm or migration.strategy is Strategy.PRECOPY else POSTCOPIED


def is_committed(migration: Migration) -> bool:
    """Whether the ownership has moved."""
    return COMMIT in migration.did and COMMIT not in migration.undone


def is_past_return(migration: Migration) -> bool:
    """Whether it goes only forward: the ownership has moved, or its machine may work with its new disks already. Then
    nothing is taken back but what its agent says has not happened.
    """
    return is_committed(migration) or (_PIVOT.name in migration.began and migration.state not in UNDOING)


def may_cancel(migration: Migration) -> bool:
    """Whether a cancel request can still be honoured."""
    return not is_final(migration) and not is_past_return(migration)


def next_action(migration: Migration) -> Action | None:
    """What is to be done now, from the record alone. None when it is final."""
    if is_final(migration):
        return None
    steps = steps_of(migration)
    if migration.state in UNDOING:
        for step in reversed(steps):
            if step.name in migration.began and step.undo and step.name not in migration.undone:
                return Undo(step)
        return Finish(UNDOING[migration.state])
    for step in steps:
        if step.name not in migration.did:
            return Do(step)
    return Finish(MigrationState.COMPLETED)


def began(migration: Migration, step: Step, now: datetime.datetime) -> Migration:
    """The record that says the step is about to be done. Beginning again changes nothing but the time."""
    names = migration.began if step.name in migration.began else (*migration.began, step.name)
    let_in = migration.began_at or now
    return msgspec.structs.replace(migration, began=names, state=step.state, updated_at=now, began_at=let_in)


def did(migration: Migration, step: Step, now: datetime.datetime) -> Migration:
    """The record that says the step is done."""
    names = migration.did if step.name in migration.did else (*migration.did, step.name)
    return msgspec.structs.replace(migration, did=names, updated_at=now)


def undid(migration: Migration, step: Step, now: datetime.datetime) -> Migration:
    """The record that says the step has been taken back."""
    return msgspec.structs.replace(migration, undone=(*migration.undone, step.name), updated_at=now)


def copy_kept_s(migration: Migration) -> float:
    """How long what has come of its disks may stay on its target; 0: not at all.

    Only where it failed, and its source's QEMU has run all the while: no other knows what the target lacks.
    """
    failed = migration.state in (MigrationState.ROLLING_BACK, MigrationState.ROLLED_BACK)
    ran_on = not migration.at_rest and _HALT.name not in migration.began
    return COPY_KEPT_S if failed and ran_on and _COPY_DISKS.name in migration.began else 0.0


def cancelled(migration: Migration, now: datetime.datetime) -> Migration:
    """Start taking everything back because somebody asked to; one that still waits for its time ends at once.

    :raise StateConflict: it is final or the ownership has moved.
    """
    if not may_cancel(migration):
        seen = migration.state.value if is_final(migration) else f"{migration.state.value}, past its commit"
        raise StateConflict.of(f"migration {migration.id}", seen, ("before its commit",), "cancel")
    if waits(migration):
        return msgspec.structs.replace(
            migration, state=MigrationState.CANCELLED, cancel_requested=True, updated_at=now, finished_at=now
        )
    return msgspec.structs.replace(migration, state=MigrationState.CANCELLING, cancel_requested=True, updated_at=now)


def went_wrong(migration: Migration, problem: Problem, now: datetime.datetime) -> Migration:
    """A step failed for good. Until the target has taken over: roll back. After that, or in undoing: a person looks."""
    lost = migration.state in UNDOING or "take_over" in migration.did
    if lost:
        return msgspec.structs.replace(
            migration, state=MigrationState.FAILED, problem=problem, updated_at=now, finished_at=now
        )
    return msgspec.structs.replace(migration, state=MigrationState.ROLLING_BACK, problem=problem, updated_at=now)


def _asked_at(migration: Migration) -> datetime.datetime:
    """From when its time counts: the request, unless it then waited in line."""
    began_at = migration.began_at or migration.created_at
    return began_at if (began_at - migration.created_at).total_seconds() > AT_ONCE_S else migration.created_at


def finished(migration: Migration, state: MigrationState, now: datetime.datetime) -> Migration:
    """The record in its final state, with the total time."""
    total_ms = (now - _asked_at(migration)).total_seconds() * 1e3
    figures = msgspec.structs.replace(migration.figures, total_ms=total_ms)
    return msgspec.structs.replace(migration, state=state, figures=figures, updated_at=now, finished_at=now)
