"""Migrations on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import AwareDatetime, Field

from novacron.model.bulk_migration import MAX_PRIORITY
from novacron.model.migration import MigrationKind, MigrationState, Strategy, Transport, VerifyDisks
from novacron.model.verdict import Outcome
from novacron.wire.rest.common import Labels, Ref, Strict, VmProblem, example

DowntimeMs = Annotated[int, Field(ge=1, le=2_000_000)]
FinishWithinS = Annotated[float, Field(ge=1, le=7 * 86400)]
SlowdownPercent = Annotated[int, Field(ge=0, le=90)]
Bandwidth = Annotated[int, Field(ge=0, le=1 << 40, description="0: as fast as the link")]
Priority = Annotated[int, Field(ge=0, le=MAX_PRIORITY)]


class BandwidthChange(Strict):
    """Memory and disks alike keep to it from now on."""

    bandwidth_bytes_per_s: Bandwidth

    model_config = Strict.model_config | example({"bandwidth_bytes_per_s": 10485760})


class Goals(Strict):
    """What a move is to keep to; what is left out (or null) is taken from policies, else as is usual.

    max_downtime_ms (usual: 100): never more when somebody asked for it, else an aim; finish_within_s (3600): refused
    when it is expected to take longer, rolled back when it does; max_slowdown_percent (0): how much of its time the
    guest may be kept waiting; bandwidth_bytes_per_s (0: as the link); may_pause (false): the guest may stand still for
    what cannot be caught up with; never_postcopy (false): its memory is never on two nodes; transport (auto): through
    the stream proxies where the link is the bottleneck, or always (proxy), or never (direct); verify_disks (sampled):
    how disks that were copied are compared afterwards (none, sampled, full).
    """

    max_downtime_ms: DowntimeMs | None = None
    finish_within_s: FinishWithinS | None = None
    max_slowdown_percent: SlowdownPercent | None = None
    bandwidth_bytes_per_s: Bandwidth | None = None
    may_pause: bool | None = None
    never_postcopy: bool | None = None
    transport: Transport | None = None
    verify_disks: VerifyDisks | None = None


DiskPools = Annotated[dict[Ref, Ref], Field(max_length=64, description="Volume → pool")]


class MigrationCreate(Goals):
    """A VM to be moved. It waits for the windows of the policy that counts, and for a slot on both nodes, those with
    more priority first (0 to 100; null: the VM's label `novacron.io/migration-priority`, else 50). starts_at: not
    before then; now: whatever the windows. While it waits for its time the VM is free; what is decided now is decided
    anew then. Without a target the scheduler chooses one; without kind and strategy the
    engine does.

    pool: where all its disks are to be after the move; disk_pools: the same, by volume. Else a disk is copied only
    where nodes do not share its pool, into the same pool of the other node. With one of them and no target node only
    disks move, on the node the VM is on.
    policy: one whose goals count where this says none. measure: look at what it writes before deciding, which takes a
    second; null: where a downtime or an end was asked for.
    """

    vm: Ref
    target_node: Ref | None = None
    kind: MigrationKind | None = None
    strategy: Strategy | None = None
    policy: Ref | None = None
    pool: Ref | None = None
    disk_pools: DiskPools = {}
    measure: bool | None = None
    starts_at: AwareDatetime | None = None
    now: bool | None = None
    priority: Priority | None = None
    labels: Labels = {}

    model_config = Strict.model_config | example({"vm": "web-1", "target_node": "node-2", "max_downtime_ms": 50})


class RangeOut(Strict):
    """A figure with its error bar."""

    low: float
    expected: float
    high: float


class PredictionOut(Strict):
    """What it is expected to cost. ends: it is expected to come to an end; ends_surely: also at its worst."""

    total_ms: RangeOut
    downtime_ms: RangeOut
    bytes_transferred: RangeOut
    ends: bool = True
    ends_surely: bool = True
    residue_ms: float = 0.0
    disk_bytes: int = 0
    basis: list[str] = []


class PredictionErrorOut(Strict):
    """By how much of what was measured the prediction was off, in percent; above zero: it promised more."""

    total_percent: float | None = None
    downtime_percent: float | None = None
    bytes_percent: float | None = None


class MeasurementOut(Strict):
    """A running machine before its move. dirtied_bytes: written in interval_s, by sampling."""

    at: datetime.datetime
    interval_s: float
    dirtied_bytes: int
    memory_used_bytes: int
    memory_bytes: int


class DiskMoveOut(Strict):
    """A disk that is copied. Empty pools and nodes: they are gone by now. used_bytes: as last counted before."""

    volume_id: str
    size_bytes: int
    used_bytes: int
    from_pool: str
    from_pool_id: str
    to_pool: str
    to_pool_id: str


class ProgressOut(Strict):
    """Disks first, then memory."""

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


class FiguresOut(Strict):
    """What was measured; null: not measured.

    network_gap_ms: from the source's stop until the guest answered on its network again, as heard by the node
    network_checked_by; guests without a card on a network of ours, or that do not answer ARP, have none.
    bytes_transferred: over the wire. Through the stream proxies also stream_bytes: what the hypervisor sent into them;
    pages_held: not sent since the target held them; link_bytes_per_s: what the link carried when it was full.
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


class CheckOut(Strict):
    """One thing that was looked at once the VM ran on its target. evidence: what was seen, in words."""

    name: str
    outcome: Outcome
    evidence: str
    took_ms: float = 0.0


class VerdictOut(Strict):
    """What was looked at, and found: runs, only_there, heartbeat, clock, network, disks. outcome: failed when one of
    them did, passed when one did and none failed. A check that failed takes nothing back.

    clock_off_ms: how far the guest's clock was ahead of its node's, below zero behind; clock_off_after_ms: once it had
    been put right; null: not known, or not needed.
    """

    at: datetime.datetime
    outcome: Outcome
    checks: list[CheckOut]
    clock_off_ms: float | None = None
    clock_off_after_ms: float | None = None


class KeptCopiesOut(Strict):
    """Copies of its disks that were kept on the source, since the target's differ; `disks` says in which pools.
    discarded_at: when they were deleted; null: they are there.
    """

    node: str
    node_id: str
    volume_ids: list[str]
    discarded_at: datetime.datetime | None = None
    discarded_by: str | None = None


PREDICTED_EXAMPLE = {
    "total_ms": {"low": 1200.0, "expected": 2000.0, "high": 5200.0},
    "downtime_ms": {"low": 8.0, "expected": 33.0, "high": 120.0},
    "bytes_transferred": {"low": 201326592.0, "expected": 278000000.0, "high": 420000000.0},
    "basis": ["link: 112 MiB/s, as 7 earlier moves between the two nodes had it"],
}


class Migration(Strict):
    """not_before: it waits until then; began_at: when it was let in; null: it still waits. paused: it was, and stays
    so. belongings: its UEFI variables and its TPM's state go from one node's default pool to the other's.

    holds_vm: false: it waits for its time and its VM is free (or it has ended); target, kind and disks are those of the
    request then, and are decided anew when its time has come. held_up: why it still waits although that has come, and
    since when (`at`).
    """

    id: str
    vm_id: str
    vm_name: str
    kind: MigrationKind
    strategy: Strategy
    state: MigrationState
    source_node: str
    source_node_id: str
    target_node: str
    target_node_id: str
    at_rest: bool
    paused: bool = False
    disks: list[DiskMoveOut] = []
    belongings: bool = False
    priority: int
    not_before: datetime.datetime | None
    holds_vm: bool = True
    held_up: VmProblem | None = None
    began_at: datetime.datetime | None
    may_cancel: bool
    max_downtime_ms: int
    bandwidth_bytes_per_s: int
    finish_within_s: float
    max_slowdown_percent: int
    may_pause: bool
    never_postcopy: bool
    transport: Transport
    verify_disks: VerifyDisks = VerifyDisks.SAMPLED
    labels: dict[str, str]
    explanation: list[str]
    steps_begun: list[str]
    steps_done: list[str]
    steps_undone: list[str]
    progress: ProgressOut | None
    predicted: PredictionOut | None
    measured: MeasurementOut | None
    figures: FiguresOut
    verdict: VerdictOut | None = None
    kept_copies: KeptCopiesOut | None = None
    prediction_error: PredictionErrorOut | None
    problem: VmProblem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000006",
            "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
            "vm_name": "web-1",
            "kind": "live",
            "strategy": "precopy",
            "state": "completed",
            "source_node": "node-1",
            "source_node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "target_node": "node-2",
            "target_node_id": "0190b36e-7c1a-7000-8000-000000000007",
            "at_rest": False,
            "disks": [],
            "priority": 50,
            "not_before": None,
            "holds_vm": False,
            "began_at": "2026-01-02T03:10:00Z",
            "may_cancel": False,
            "max_downtime_ms": 100,
            "bandwidth_bytes_per_s": 0,
            "finish_within_s": 3600.0,
            "max_slowdown_percent": 0,
            "may_pause": False,
            "never_postcopy": False,
            "transport": "direct",
            "verify_disks": "sampled",
            "labels": {},
            "explanation": ["target node-2: chosen, it scored best of 2 other nodes"],
            "steps_begun": ["accept", "send", "commit", "take_over", "verify", "release"],
            "steps_done": ["accept", "send", "commit", "take_over", "verify", "release"],
            "steps_undone": [],
            "progress": None,
            "predicted": PREDICTED_EXAMPLE,
            "measured": None,
            "figures": {"total_ms": 1830.5, "downtime_qemu_ms": 41.0, "bytes_transferred": 281018368},
            "verdict": {
                "at": "2026-01-02T03:10:02Z",
                "outcome": "passed",
                "checks": [
                    {"name": "heartbeat", "outcome": "passed", "evidence": "the guest agent answered after 3 ms"}
                ],
                "clock_off_ms": -2411.0,
                "clock_off_after_ms": -1.5,
            },
            "prediction_error": {"total_percent": 9.3, "bytes_percent": -1.1},
            "problem": None,
            "created_at": "2026-01-02T03:10:00Z",
            "updated_at": "2026-01-02T03:10:02Z",
            "finished_at": "2026-01-02T03:10:02Z",
            "revision": 61,
        }
    )
