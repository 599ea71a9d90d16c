"""Migrations on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field

from novacron.model.migration import MigrationKind, MigrationState, Strategy
from novacron.wire.rest.common import Labels, Ref, Strict, VmProblem, example


class MigrationCreate(Strict):
    """A VM to be moved. Without a target the scheduler chooses one.

    max_downtime_ms bounds the residue left for the stop; finish_within_s: given up and rolled back when longer.
    """

    vm: Ref
    target_node: Ref | None = None
    kind: MigrationKind = MigrationKind.LIVE
    labels: Labels = {}
    max_downtime_ms: Annotated[int, Field(ge=1, le=2_000_000)] = 100
    bandwidth_bytes_per_s: Annotated[int, Field(ge=0, le=1 << 40, description="0: as fast as the link")] = 0
    finish_within_s: Annotated[float, Field(ge=1, le=7 * 86400)] = 3600.0

    model_config = Strict.model_config | example({"vm": "web-1", "target_node": "node-2", "max_downtime_ms": 50})


class ProgressOut(Strict):
    at: datetime.datetime
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
    """

    total_ms: float | None = None
    setup_ms: float | None = None
    transfer_ms: float | None = None
    downtime_qemu_ms: float | None = None
    downtime_stopped_ms: float | None = None
    bytes_transferred: int | None = None
    memory_bytes: int | None = None
    iterations: int | None = None
    rate_bytes_per_s: float | None = None
    network_gap_ms: float | None = None
    network_checked_by: str | None = None


class Migration(Strict):
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
    may_cancel: bool
    max_downtime_ms: int
    bandwidth_bytes_per_s: int
    finish_within_s: float
    labels: dict[str, str]
    explanation: list[str]
    steps_begun: list[str]
    steps_done: list[str]
    steps_undone: list[str]
    progress: ProgressOut | None
    figures: FiguresOut
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
            "may_cancel": False,
            "max_downtime_ms": 100,
            "bandwidth_bytes_per_s": 0,
            "finish_within_s": 3600.0,
            "labels": {},
            "explanation": ["target node-2: chosen, it scored best of 2 other nodes"],
            "steps_begun": ["accept", "send", "commit", "take_over", "verify", "release"],
            "steps_done": ["accept", "send", "commit", "take_over", "verify", "release"],
            "steps_undone": [],
            "progress": None,
            "figures": {"total_ms": 1830.5, "downtime_qemu_ms": 41.0, "bytes_transferred": 281018368},
            "problem": None,
            "created_at": "2026-01-02T03:10:00Z",
            "updated_at": "2026-01-02T03:10:02Z",
            "finished_at": "2026-01-02T03:10:02Z",
            "revision": 61,
        }
    )
