"""Plans of migrations on the wire: what a move would do and cost, node by node."""

from __future__ import annotations

import datetime

from novacron.model.migration import MigrationKind, Strategy, Transport, VerifyDisks
from novacron.wire.rest.common import ReasonOut, Strict, example
from novacron.wire.rest.migrations import (
    PREDICTED_EXAMPLE,
    DiskMoveOut,
    MeasurementOut,
    MigrationCreate,
    PredictionOut,
)


class GoalsOut(Strict):
    """The goals as they come to."""

    max_downtime_ms: int
    finish_within_s: float
    max_slowdown_percent: int
    bandwidth_bytes_per_s: int
    may_pause: bool
    never_postcopy: bool
    transport: Transport
    verify_disks: VerifyDisks = VerifyDisks.SAMPLED


class NodePlan(Strict):
    """One node. is_here: the VM is there. can: it could go there, and reach its goals; else `reasons` says all that
    stands in the way. belongings: its UEFI variables and its TPM's state would be copied, too. start: what to send to
    POST /migrations to have exactly this; null when it cannot.
    """

    node: str
    node_id: str
    is_here: bool
    can: bool
    chosen: bool
    kind: MigrationKind | None
    strategy: Strategy | None
    disks: list[DiskMoveOut] = []
    belongings: bool = False
    predicted: PredictionOut | None
    reasons: list[ReasonOut]
    explanation: list[str]
    start: MigrationCreate | None


class MigrationPlan(Strict):
    """What a migration would do and cost, node by node. Nothing has changed.

    goals_said_by: by goal, who said it; goals nobody has said are as is usual. target_node: where it would go if it
    were begun now; null: nowhere. not_before: until when it would wait. note: why it was not measured.
    """

    vm: str
    vm_id: str
    at_rest: bool
    source_node: str
    source_node_id: str
    target_node: str | None
    target_node_id: str | None
    not_before: datetime.datetime | None
    goals: GoalsOut
    goals_said_by: dict[str, str]
    measured: MeasurementOut | None
    note: str
    nodes: list[NodePlan]

    model_config = Strict.model_config | example(
        {
            "vm": "web-1",
            "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
            "at_rest": False,
            "source_node": "node-1",
            "source_node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "target_node": "node-2",
            "target_node_id": "0190b36e-7c1a-7000-8000-000000000007",
            "not_before": None,
            "goals": {
                "max_downtime_ms": 50,
                "finish_within_s": 3600.0,
                "max_slowdown_percent": 0,
                "bandwidth_bytes_per_s": 0,
                "may_pause": False,
                "never_postcopy": False,
                "transport": "auto",
                "verify_disks": "sampled",
            },
            "goals_said_by": {"max_downtime_ms": "asked for"},
            "measured": None,
            "note": "it was not measured: nobody asked for that",
            "nodes": [
                {
                    "node": "node-2",
                    "node_id": "0190b36e-7c1a-7000-8000-000000000007",
                    "is_here": False,
                    "can": True,
                    "chosen": True,
                    "kind": "live",
                    "strategy": "precopy",
                    "predicted": PREDICTED_EXAMPLE,
                    "reasons": [],
                    "explanation": ["target node-2: chosen, it scored best of 1 other nodes"],
                    "start": {
                        "vm": "web-1",
                        "target_node": "node-2",
                        "kind": "live",
                        "strategy": "precopy",
                        "max_downtime_ms": 50,
                    },
                }
            ],
        }
    )
