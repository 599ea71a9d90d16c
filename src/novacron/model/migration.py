"""What a migration is: its states, what is asked of it and measured of it, and its record. Pure.

What comes next, and what follows from it, is in model.migration_steps.
"""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.model.prediction import Measurement, Prediction, PredictionError, error_percent
from novacron.model.verdict import Verdict, failures
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

COPY_LOST = "disk.copy_lost"
"""Why a source does not go on with what its target holds: it is copied anew."""


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


class Wishes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Goals of a migration, as far as somebody has said any. None: not said. The words are those of Goals."""

    max_downtime_ms: int | None = None
    finish_within_s: float | None = None
    max_slowdown_percent: int | None = None
    bandwidth_bytes_per_s: int | None = None
    may_pause: bool | None = None
    never_postcopy: bool | None = None
    transport: Transport | None = None
    verify_disks: VerifyDisks | None = None


class Request(Wishes, frozen=True, kw_only=True, omit_defaults=True):
    """What a move was asked for with, kept so that it can be decided anew when its time has come.

    None and empty: not said. target_node, policy, pool, disk_pools (by volume) are ids: new names change nothing.
    """

    target_node: str = ""
    kind: MigrationKind | None = None
    strategy: Strategy | None = None
    policy: str = ""
    pool: str = ""
    disk_pools: dict[str, str] = {}
    measure: bool | None = None
    starts_at: datetime.datetime | None = None
    now: bool | None = None


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
    spec does (empty: the default pool). from_unit, to_unit: in pools made of units, the one it has and the one kept for
    it. used_bytes: what there was to copy when it was planned, as far as that was known.
    """

    volume_id: str
    size_bytes: int
    from_pool_id: str
    to_pool_id: str
    from_disk_pool_id: str = ""
    to_disk_pool_id: str = ""
    from_unit: str = ""
    to_unit: str = ""
    used_bytes: int = 0


class Migration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one migration. `began` and `did` hold step names in order, `undone` the steps taken back.

    not_before: it begins no earlier; priority: those with more are let in first; began_at: when it was let in.
    holds: it has taken hold of its VM, its volumes' other places and units; until then it is a wish that waits for its
    time, `request` says of what, and the rest is only what was decided when it was asked for. held_up: why it still
    waits although its time has come, and since when.
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
    holds: bool = True
    request: Request | None = None
    held_up: Problem | None = None
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


def paced(migration: Migration, bytes_per_s: int, by: str, now: datetime.datetime) -> Migration:
    """No faster than that from now on; 0: as the link. by: whose wish that is."""
    rate = f"at most {bytes_per_s / 2**20:.1f} MiB/s" if bytes_per_s else "as fast as the link"
    request = migration.request
    return msgspec.structs.replace(
        migration,
        goals=msgspec.structs.replace(migration.goals, bandwidth_bytes_per_s=bytes_per_s),
        request=msgspec.structs.replace(request, bandwidth_bytes_per_s=bytes_per_s) if request else None,
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


def is_here(migration: Migration) -> bool:
    """Whether only its disks move, on its node."""
    return migration.source_node == migration.target_node


def is_final(migration: Migration) -> bool:
    return migration.state in FINAL


def waits(migration: Migration) -> bool:
    """Whether it waits for its time, and its VM is free meanwhile."""
    return not migration.holds and not is_final(migration)


def judged(migration: Migration, verdict: Verdict) -> Migration:
    """The record with what was found once the machine ran on its target; what failed is said in a sentence too."""
    wrong = tuple(f"check {check.name} failed: {check.evidence}" for check in failures(verdict.checks))
    return msgspec.structs.replace(migration, verdict=verdict, explanation=(*migration.explanation, *wrong))
