"""Migrations: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.vms import Problem
from novacron.model.migration import FINAL


class Goals(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a move is to keep to; what is left out is taken from policies, else as is usual."""

    max_downtime_ms: int | None = None
    finish_within_s: float | None = None
    max_slowdown_percent: int | None = None
    bandwidth_bytes_per_s: int | None = None
    may_pause: bool | None = None
    never_postcopy: bool | None = None
    transport: str | None = None
    verify_disks: str | None = None


class MigrationCreate(Goals, frozen=True, kw_only=True, omit_defaults=True):
    """A VM to be moved. What is left out is chosen: the target by the scheduler, kind and strategy by the engine.

    pool: where all its disks are to be after the move; disk_pools: the same, by volume.
    measure: look at what it writes before deciding; None: where a downtime or an end was asked for. starts_at: not
    before then; now: whatever the windows of policies; priority: 0 to 100, in line.
    """

    vm: str
    target_node: str | None = None
    kind: str | None = None
    strategy: str | None = None
    policy: str | None = None
    pool: str | None = None
    disk_pools: Mapping[str, str] = {}
    measure: bool | None = None
    starts_at: datetime.datetime | None = None
    now: bool | None = None
    priority: int | None = None
    labels: Mapping[str, str] = {}


class Range(msgspec.Struct, frozen=True):
    """A figure with its error bar."""

    low: float
    expected: float
    high: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What it is expected to cost. ends: it is expected to come to an end; ends_surely: also at its worst."""

    total_ms: Range
    downtime_ms: Range
    bytes_transferred: Range
    ends: bool = True
    ends_surely: bool = True
    residue_ms: float = 0.0
    disk_bytes: int = 0
    basis: list[str] = []


class PredictionError(msgspec.Struct, frozen=True, kw_only=True):
    """By how much of what was measured the prediction was off, in percent; above zero: it promised more."""

    total_percent: float | None = None
    downtime_percent: float | None = None
    bytes_percent: float | None = None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A running machine before its move. dirtied_bytes: written in interval_s, by sampling."""

    at: datetime.datetime
    interval_s: float
    dirtied_bytes: int
    memory_used_bytes: int
    memory_bytes: int


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a VM cannot go somewhere, and what would help."""

    code: str
    message: str
    subject: str = ""
    remedy: str = ""


class GoalsInForce(msgspec.Struct, frozen=True, kw_only=True):
    """The goals as they come to."""

    max_downtime_ms: int
    finish_within_s: float
    max_slowdown_percent: int
    bandwidth_bytes_per_s: int
    may_pause: bool
    never_postcopy: bool
    transport: str = "auto"
    verify_disks: str = "sampled"


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a plan. can: it could go there and reach its goals; start: what `create` takes to do just that."""

    node: str
    node_id: str
    is_here: bool
    can: bool
    chosen: bool
    kind: str | None
    strategy: str | None
    disks: list[DiskMove] = []
    belongings: bool = False
    predicted: Prediction | None
    reasons: list[Reason]
    explanation: list[str]
    start: MigrationCreate | None


class MigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a migration would do and cost, node by node. target_node: where it would go; None: nowhere."""

    vm: str
    vm_id: str
    at_rest: bool
    source_node: str
    source_node_id: str
    target_node: str | None
    target_node_id: str | None
    not_before: datetime.datetime | None
    goals: GoalsInForce
    goals_said_by: dict[str, str]
    measured: Measurement | None
    note: str
    nodes: list[NodePlan]


class DiskMove(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that is copied. used_bytes: as last counted before."""

    volume_id: str
    size_bytes: int
    used_bytes: int
    from_pool: str
    from_pool_id: str
    to_pool: str
    to_pool_id: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the transfer is, as the source's hypervisor counts: first the disks that move too, then memory."""

    at: datetime.datetime
    disk_total_bytes: int = 0
    disk_copied_bytes: int = 0
    total_bytes: int
    transferred_bytes: int
    remaining_bytes: int
    rate_bytes_per_s: float
    dirty_rate_bytes_per_s: float
    iteration: int
    predicted_end: datetime.datetime | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; None: not measured. stream_bytes, pages_held, link_bytes_per_s: through the stream proxies."""

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


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at after a move. outcome: passed, failed or not_checked; evidence: what was seen."""

    name: str
    outcome: str
    evidence: str
    took_ms: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at once the VM ran on its target. clock_off_ms: how far the guest's clock was ahead (below zero:
    behind); clock_off_after_ms: once it had been put right.
    """

    at: datetime.datetime
    outcome: str
    checks: list[Check]
    clock_off_ms: float | None = None
    clock_off_after_ms: float | None = None


class KeptCopies(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of its disks that were kept on the source: the target's differ. discarded_at: when they were deleted;
    None: they are there.
    """

    node: str
    node_id: str
    volume_ids: list[str]
    discarded_at: datetime.datetime | None = None
    discarded_by: str | None = None


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration; `state` is plain text, so that an old client can read a newer server.

    holds_vm: False: it waits for its time and its VM is free, or it has ended. held_up: why it still waits although its
    time has come.
    """

    id: str
    vm_id: str
    vm_name: str
    kind: str
    strategy: str
    state: str
    source_node: str
    source_node_id: str
    target_node: str
    target_node_id: str
    at_rest: bool
    paused: bool = False
    disks: list[DiskMove] = []
    belongings: bool = False
    priority: int
    not_before: datetime.datetime | None
    began_at: datetime.datetime | None
    may_cancel: bool
    max_downtime_ms: int
    bandwidth_bytes_per_s: int
    finish_within_s: float
    max_slowdown_percent: int
    may_pause: bool
    never_postcopy: bool
    transport: str = "direct"
    verify_disks: str = "sampled"
    labels: dict[str, str]
    explanation: list[str]
    steps_begun: list[str]
    steps_done: list[str]
    steps_undone: list[str]
    progress: Progress | None
    predicted: Prediction | None
    figures: Figures
    prediction_error: PredictionError | None
    problem: Problem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    revision: int
    measured: Measurement | None = None
    verdict: Verdict | None = None
    kept_copies: KeptCopies | None = None
    holds_vm: bool = True
    held_up: Problem | None = None

    @property
    def waits_for_its_time(self) -> bool:
        """Whether it has yet to begin, and its VM is free until then."""
        return not self.holds_vm and not self.is_final

    @property
    def is_final(self) -> bool:
        """Whether it will change no more."""
        return self.state in FINAL


def create(migration: MigrationCreate) -> Call[Migration]:
    """Move a VM; the answer is the record to watch."""
    return Call(method="POST", path=path_of("migrations"), answer=Migration, body=migration)


def plan(migration: MigrationCreate) -> Call[MigrationPlan]:
    """What `create` would do with it, for every node; nothing changes. Measures, unless `measure` is False."""
    said = {
        field: value
        for field in migration.__struct_fields__
        if field not in ("vm", "labels", "disk_pools", "priority") and (value := getattr(migration, field)) is not None
    }
    plain = {field: str(value).lower() if isinstance(value, bool) else str(value) for field, value in said.items()}
    query: Query = plain | {"disk_pool": [f"{volume}={pool}" for volume, pool in migration.disk_pools.items()]}
    path = path_of("vms", ref_of("vm", migration.vm), "migration-plan")
    return Call(method="GET", path=path, answer=MigrationPlan, query=query)


def get(migration_id: str) -> Call[Migration]:
    return Call(method="GET", path=path_of("migrations", ref_of("migration", migration_id)), answer=Migration)


def search(
    *, labels: Sequence[str] = (), state: str = "", vm: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Migration]]:
    """One page of the migrations that meet all `labels`, that `state`, of that `vm` (id or name); empty: any."""
    query: Query = {"label": labels, "state": state, "vm": vm, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("migrations"), answer=Page[Migration], query=query)


class BandwidthChange(msgspec.Struct, frozen=True, kw_only=True):
    """0: as fast as the link."""

    bandwidth_bytes_per_s: int


def set_bandwidth(migration_id: str, bytes_per_s: int) -> Call[Migration]:
    """Have it go no faster from now on, also while it streams; 0: as the link."""
    path = path_of("migrations", ref_of("migration", migration_id), "set-bandwidth")
    return Call(method="POST", path=path, answer=Migration, body=BandwidthChange(bandwidth_bytes_per_s=bytes_per_s))


def cancel(migration_id: str) -> Call[Migration]:
    """Ask for everything to be taken back; the VM goes on running where it is."""
    path = path_of("migrations", ref_of("migration", migration_id), "cancel")
    return Call(method="POST", path=path, answer=Migration)


def discard_copies(migration_id: str) -> Call[Migration]:
    """Delete the copies of its disks that were kept at the source because the target's differ; for good."""
    path = path_of("migrations", ref_of("migration", migration_id), "discard-copies")
    return Call(method="POST", path=path, answer=Migration)
