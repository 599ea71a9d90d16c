"""The migration machine, alone and pure: its states, the steps of each kind as data, and what comes next.

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
from novacron.model.prediction import Measurement, Prediction, PredictionError, error_percent
from novacron.model.verdict import DISKS, Verdict, failures
from novacron.model.vm import Problem


class MigrationKind(StrEnum):
    COLD = "cold"
    WARM = "warm"
    LIVE = "live"


class Strategy(StrEnum):
    """Live only: how memory travels.

    precopy: all of it before the switch, which waits until little enough is left. postcopy: the switch comes after the
    first pass at the latest, and what is missing then is fetched as the guest asks for it. hybrid: pre-copy for as long
    as it gets anywhere, post-copy from there. After a switch to post-copy neither side alone has the whole machine.
    """

    PRECOPY = "precopy"
    POSTCOPY = "postcopy"
    HYBRID = "hybrid"


class Transport(StrEnum):
    """How a stream gets to the target: by QEMU's own connection, or by the agents' stream proxies, which make it small.

    auto: as the link asks for; a migration that has begun has one of the others.
    """

    AUTO = "auto"
    DIRECT = "direct"
    PROXY = "proxy"


class VerifyDisks(StrEnum):
    """How disks that were copied are compared afterwards: not, some blocks of each, or all."""

    NONE = "none"
    SAMPLED = "sampled"
    FULL = "full"


class MigrationState(StrEnum):
    PENDING = "pending"
    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    SWITCHING = "switching"
    VERIFYING = "verifying"
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


FINAL = frozenset(
    {
        MigrationState.COMPLETED,
        MigrationState.CANCELLED,
        MigrationState.ROLLED_BACK,
        MigrationState.FAILED,
    }
)
UNDOING = {
    MigrationState.CANCELLING: MigrationState.CANCELLED,
    MigrationState.ROLLING_BACK: MigrationState.ROLLED_BACK,
}


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


COPY_LOST = "disk.copy_lost"
"""Why a source does not go on with what its target holds: it is copied anew."""
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


class Goals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the operator asks for. max_downtime_ms bounds the residue QEMU may leave for the stop; 0 = no bound.

    bandwidth_bytes_per_s 0 = as fast as the link; finish_within_s: cancelled when it takes longer.
    max_slowdown_percent: how much of its time the guest may be kept waiting so that it comes to an end; may_pause: the
    guest may stand still for what pre-copy cannot catch up with; never_postcopy: never let it run on two nodes' memory;
    transport: how the stream gets there; verify_disks: how disks that were copied are compared afterwards.
    """

    max_downtime_ms: int = 100
    bandwidth_bytes_per_s: int = 0
    finish_within_s: float = 3600.0
    max_slowdown_percent: int = 0
    may_pause: bool = False
    never_postcopy: bool = False
    transport: Transport = Transport.AUTO
    verify_disks: VerifyDisks = VerifyDisks.SAMPLED


class Tactics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the stream is made: what a source is told beside the goals.

    stands_still: the guest is paused before its memory is sent (warm). may_pause: it may be, where pre-copy alone does
    not come to an end. max_throttle_percent: how much of its time its vCPUs may be kept waiting for the same reason; 0:
    they are not.
    """

    strategy: Strategy = Strategy.PRECOPY
    stands_still: bool = False
    may_pause: bool = False
    max_throttle_percent: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the transfer is, as the source's hypervisor counts: first the disks that move too, then memory."""

    at: datetime.datetime
    disk_total_bytes: int = 0
    disk_copied_bytes: int = 0
    total_bytes: int = 0
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    dirty_rate_bytes_per_s: float = 0.0
    iteration: int = 0
    predicted_end: datetime.datetime | None = None


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured; kept on the record for ever. None: not measured, never a guess.

    total_ms: request to completed, by the control plane, less what it waited in line.
    downtime_qemu_ms: the source QEMU's own count.
    downtime_stopped_ms: from the source's STOP to the target's RESUME; each side gives the age of its own
    event, so no clocks are compared. network_gap_ms: from the source's STOP until the node network_checked_by heard
    the guest answer on its network again (an estimate: see control.migrations.reachable). bytes_transferred: on the
    wire, as QEMU counts, or the stream proxy where there was one. stream_bytes: what QEMU gave the proxy; pages_held:
    not sent since the target held them; link_bytes_per_s: what the link carried when the proxy kept it full.
    disk_bytes: copied of disks.
    """

    total_ms: float | None = None
    setup_ms: float | None = None
    transfer_ms: float | None = None
    downtime_qemu_ms: float | None = None
    downtime_stopped_ms: float | None = None
    bytes_transferred: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    iterations: int | None = None
    rate_bytes_per_s: float | None = None
    network_gap_ms: float | None = None
    network_checked_by: str | None = None
    stream_bytes: int | None = None
    pages_held: int | None = None
    link_bytes_per_s: float | None = None


class DiskMove(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A disk that is copied, because its next node or pool is not where it lies: its two places.

    from_pool_id, to_pool_id: as the volume's record names them; from_disk_pool_id, to_disk_pool_id: as the machine's
    spec does (empty: the default pool). to_unit: in pools made of units, the one kept for it. used_bytes: what there
    was to copy when it was planned, as far as that was known.
    """

    volume_id: str
    size_bytes: int
    from_pool_id: str
    to_pool_id: str
    from_disk_pool_id: str = ""
    to_disk_pool_id: str = ""
    to_unit: str = ""
    used_bytes: int = 0


class Migration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one migration. `began` and `did` hold step names in order, `undone` the steps taken back.

    not_before: it begins no earlier; priority: those with more are let in first; began_at: when it was let in.
    at_rest: the VM did not run when it was asked for (cold only). paused: it was paused by request then, and is so on
    its target. channels: connections of the hypervisor's own that memory goes over at once. disks: those that are
    copied; the others are where they are on both nodes. belongings: what belongs to it and is no disk (UEFI variables,
    a TPM's state) goes too: its nodes' default pools are two. predicted: what it was expected to cost, to be held
    against the figures; measured: the machine as it was just before, if it was looked at. paced_by: who changed its
    bandwidth since it was asked for. verdict: what was looked at once it ran on its target. copies_discarded_at, _by:
    when, and at whose wish, copies that had been kept at its source were deleted (see kept_copies).
    """

    id: str
    vm_id: str
    vm_name: str
    kind: MigrationKind
    strategy: Strategy
    source_node: str
    target_node: str
    generation: int  # of the ownership it started under
    state: MigrationState
    created_at: datetime.datetime
    updated_at: datetime.datetime
    at_rest: bool = False
    channels: int = 1
    paused: bool = False
    disks: tuple[DiskMove, ...] = ()
    belongings: bool = False
    not_before: datetime.datetime | None = None
    priority: int = 50
    paced_by: str = ""
    began_at: datetime.datetime | None = None
    goals: Goals = Goals()
    requested_by: str = ""
    labels: dict[str, str] = {}
    explanation: tuple[str, ...] = ()
    began: tuple[str, ...] = ()
    did: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()
    cancel_requested: bool = False
    progress: Progress | None = None
    predicted: Prediction | None = None
    measured: Measurement | None = None
    figures: Figures = Figures()
    verdict: Verdict | None = None
    copies_discarded_at: datetime.datetime | None = None
    copies_discarded_by: str = ""
    problem: Problem | None = None
    finished_at: datetime.datetime | None = None


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


def paced(migration: Migration, bytes_per_s: int, by: str, now: datetime.datetime) -> Migration:
    """No faster than that from now on; 0: as the link. by: whose wish that is."""
    rate = f"at most {bytes_per_s / 2**20:.1f} MiB/s" if bytes_per_s else "as fast as the link"
    return msgspec.structs.replace(
        migration,
        goals=msgspec.structs.replace(migration.goals, bandwidth_bytes_per_s=bytes_per_s),
        paced_by=by,
        explanation=(*migration.explanation, f"bandwidth changed by {by}: {rate}"),
        updated_at=now,
    )


def tactics_of(migration: Migration) -> Tactics:
    """What the source of this migration is told."""
    goals = migration.goals
    return Tactics(
        strategy=migration.strategy,
        stands_still=migration.kind is MigrationKind.WARM,
        may_pause=goals.may_pause,
        max_throttle_percent=goals.max_slowdown_percent,
    )


def prediction_error(migration: Migration) -> PredictionError | None:
    """How wrong the prediction was; None when there was none, or before the migration has completed."""
    predicted, figures = migration.predicted, migration.figures
    if predicted is None or migration.state is not MigrationState.COMPLETED:
        return None
    return PredictionError(
        total_percent=error_percent(predicted.total_ms.expected, figures.total_ms),
        downtime_percent=error_percent(predicted.downtime_ms.expected, figures.downtime_stopped_ms),
        bytes_percent=error_percent(predicted.bytes_transferred.expected, figures.bytes_transferred),
    )


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


def is_here(migration: Migration) -> bool:
    """Whether only its disks move, on its node."""
    return migration.source_node == migration.target_node


def is_final(migration: Migration) -> bool:
    return migration.state in FINAL


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


def copy_kept_s(migration: Migration) -> float:
    """How long what has come of its disks may stay on its target; 0: not at all.

    Only where it failed, and its source's QEMU has run all the while: no other knows what the target lacks.
    """
    failed = migration.state in (MigrationState.ROLLING_BACK, MigrationState.ROLLED_BACK)
    ran_on = not migration.at_rest and _HALT.name not in migration.began
    return COPY_KEPT_S if failed and ran_on and _COPY_DISKS.name in migration.began else 0.0


def keeps_copies(migration: Migration) -> bool:
    """Whether the source's copies of its disks are not to be deleted: the target's differ from them."""
    checks = migration.verdict.checks if migration.verdict else ()
    return any(check.name == DISKS for check in failures(checks))


def judged(migration: Migration, verdict: Verdict) -> Migration:
    """The record with what was found once the machine ran on its target; what failed is said in a sentence too."""
    wrong = tuple(f"check {check.name} failed: {check.evidence}" for check in failures(verdict.checks))
    return msgspec.structs.replace(migration, verdict=verdict, explanation=(*migration.explanation, *wrong))


def undid(migration: Migration, step: Step, now: datetime.datetime) -> Migration:
    """The record that says the step has been taken back."""
    return msgspec.structs.replace(migration, undone=(*migration.undone, step.name), updated_at=now)


def cancelled(migration: Migration, now: datetime.datetime) -> Migration:
    """Start taking everything back because somebody asked to.

    :raise StateConflict: it is final or the ownership has moved.
    """
    if not may_cancel(migration):
        seen = migration.state.value if is_final(migration) else f"{migration.state.value}, past its commit"
        raise StateConflict.of(f"migration {migration.id}", seen, ("before its commit",), "cancel")
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
