"""Migration rehearsals on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field

from novacron.model.rehearsal import RehearsalState
from novacron.wire.rest.common import Labels, Ref, Strict, VmProblem, example
from novacron.wire.rest.migrations import VerdictOut

Span = Annotated[float, Field(ge=0, le=86400)]


class RehearsalCreate(Strict):
    """A running VM whose copy is to be booted elsewhere. target_node: else where it would be moved to.

    keep_for_s: so long the copy runs on once the verdict is there, to be looked at (its console; it is on no network
    with others); boot_within_s: so long its guest may take to show signs of life; watch_for_s: so long it must live.
    bandwidth_bytes_per_s: at most so fast its disks are copied; 0: as the link.
    """

    vm: Ref
    target_node: Ref | None = None
    keep_for_s: Span = 0.0
    boot_within_s: Annotated[float, Field(ge=1, le=3600)] = 120.0
    watch_for_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    bandwidth_bytes_per_s: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    labels: Labels = {}

    model_config = Strict.model_config | example({"vm": "web-1", "target_node": "node-2", "keep_for_s": 600})


class RehearsalFiguresOut(Strict):
    """What was measured; null: not (yet). boot_ms: from the order to begin until its hypervisor said that it ran."""

    copied_bytes: int | None = None
    copy_ms: float | None = None
    boot_ms: float | None = None


class Rehearsal(Strict):
    """copy_id, copy_name: of the VM that is booted, as long as there is one; network_id: of the network made for its
    cards. verdict: checks planned, copied, runs, heartbeat, clock, console; one that failed is why `state` ends failed.
    """

    id: str
    vm_id: str
    vm_name: str
    state: RehearsalState
    source_node: str
    source_node_id: str
    target_node: str
    target_node_id: str
    copy_id: str
    copy_name: str
    network_id: str | None
    keep_for_s: float
    boot_within_s: float
    watch_for_s: float
    bandwidth_bytes_per_s: int
    may_cancel: bool
    labels: dict[str, str]
    explanation: list[str]
    figures: RehearsalFiguresOut
    verdict: VerdictOut | None
    problem: VmProblem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    booted_at: datetime.datetime | None
    kept_until: datetime.datetime | None
    finished_at: datetime.datetime | None
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000061",
            "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
            "vm_name": "web-1",
            "state": "passed",
            "source_node": "node-1",
            "source_node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "target_node": "node-2",
            "target_node_id": "0190b36e-7c1a-7000-8000-000000000007",
            "copy_id": "0190b36e-7c1a-7000-8000-000000000062",
            "copy_name": "rehearsal-web-1-000000000061",
            "network_id": "0190b36e-7c1a-7000-8000-000000000063",
            "keep_for_s": 0.0,
            "boot_within_s": 120.0,
            "watch_for_s": 10.0,
            "bandwidth_bytes_per_s": 0,
            "may_cancel": False,
            "labels": {},
            "explanation": ["target node-2: asked for"],
            "figures": {"copied_bytes": 1073741824, "copy_ms": 9120.4, "boot_ms": 412.9},
            "verdict": {
                "at": "2026-01-02T03:10:24Z",
                "outcome": "passed",
                "checks": [
                    {"name": "heartbeat", "outcome": "passed", "evidence": "the guest agent answered after 3 ms"}
                ],
                "clock_off_ms": 12.0,
                "clock_off_after_ms": None,
            },
            "problem": None,
            "created_at": "2026-01-02T03:10:00Z",
            "updated_at": "2026-01-02T03:10:26Z",
            "booted_at": "2026-01-02T03:10:10Z",
            "kept_until": None,
            "finished_at": "2026-01-02T03:10:26Z",
            "revision": 83,
        }
    )
