"""Bulk migrations on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field

from novacron.model.bulk_migration import MAX_VMS, BulkState, EntryState, Purpose
from novacron.wire.rest.common import Labels, ReasonOut, Ref, Strict, example
from novacron.wire.rest.migrations import Goals, Priority

AtOnce = Annotated[int, Field(ge=1, le=256)]


def _bound_keys(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False


class BulkMigrationCreate(Goals):
    """VMs to be moved within limits. Give one of vms, selector (all VMs with all of these labels; an empty value: any
    value), drain (a node: nothing new is placed on it, and all its VMs go elsewhere) and bring_back (a node: new VMs
    may be placed on it again, and what drains took away comes back).

    target_node: where all of them go; else the scheduler chooses for each. targets: where single VMs go, as a plan has
    it; one that does not have it any more goes elsewhere. priorities: of single VMs, 0 to 100; else a VM's label
    `novacron.io/migration-priority`, else 50; those with more go first. Goals and policy are each move's; a VM whose
    windows are closed is waited for, unless `now`.

    max_concurrent: moves at once; max_per_node, max_per_link: on one node, and between two, others' moves counted;
    bandwidth_budget_bytes_per_s: for all together, shared evenly (0: no budget); max_attempts: for one VM.
    """

    vms: Annotated[list[Ref], Field(max_length=MAX_VMS)] = []
    selector: Labels = {}
    drain: Ref | None = None
    bring_back: Ref | None = None
    target_node: Ref | None = None
    policy: Ref | None = None
    max_concurrent: AtOnce = 5
    max_per_node: AtOnce = 2
    max_per_link: AtOnce = 2
    bandwidth_budget_bytes_per_s: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    priorities: Annotated[dict[Ref, Priority], Field(max_length=MAX_VMS, json_schema_extra=_bound_keys)] = {}
    now: bool = False
    targets: Annotated[dict[Ref, Ref], Field(max_length=MAX_VMS, json_schema_extra=_bound_keys)] = {}
    labels: Labels = {}

    model_config = Strict.model_config | example({"drain": "node-1", "bandwidth_budget_bytes_per_s": 200000000})


class EntryOut(Strict):
    """One VM. wave: with which others it begins, from 1; 0: it has no place. starts_at_s, takes_s: as planned.

    migration_ids: one for each attempt. reasons: why it failed, stays or waits.
    """

    vm: str
    vm_id: str
    state: EntryState
    priority: int
    source_node: str
    target_node: str | None
    target_node_id: str | None
    wave: int
    starts_at_s: float
    takes_s: float
    migration_ids: list[str]
    reasons: list[ReasonOut]
    finished_at: datetime.datetime | None


class LoadOut(Strict):
    """A node, or the link between two: how many moves touch it, and for how long."""

    nodes: list[str]
    moves: int
    busy_s: float


class ForecastOut(Strict):
    """What the plan expects. busiest: nodes and links, the longest busy first. held_back_s: by what kept VMs waiting,
    seconds of all of them together. share_bytes_per_s: each move's part of the budget; 0: no budget.
    """

    total_s: float
    waves: int
    share_bytes_per_s: int
    busiest: list[LoadOut]
    held_back_s: dict[str, float]


_ENTRY = {
    "vm": "web-1",
    "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
    "state": "waiting",
    "priority": 50,
    "source_node": "node-1",
    "target_node": "node-2",
    "target_node_id": "0190b36e-7c1a-7000-8000-000000000007",
    "wave": 1,
    "starts_at_s": 0.0,
    "takes_s": 3.4,
    "migration_ids": [],
    "reasons": [],
    "finished_at": None,
}
_FORECAST = {
    "total_s": 3.4,
    "waves": 1,
    "share_bytes_per_s": 100000000,
    "busiest": [{"nodes": ["node-1"], "moves": 1, "busy_s": 3.4}],
    "held_back_s": {},
}


class BulkMigrationPlan(Strict):
    """What a bulk migration would do. Nothing has changed. start: what to send to POST /bulk-migrations for just this.

    stays: how many VMs would stay where they are; their entries say why.
    """

    purpose: Purpose
    node: str | None
    forecast: ForecastOut
    stays: int
    entries: list[EntryOut]
    start: BulkMigrationCreate

    model_config = Strict.model_config | example(
        {
            "purpose": "drain",
            "node": "node-1",
            "forecast": _FORECAST,
            "stays": 0,
            "entries": [_ENTRY],
            "start": {"drain": "node-1", "targets": {"0190b36e-7c1a-7000-8000-000000000001": "node-2"}},
        }
    )


class BulkMigration(Strict):
    """counts: entries by state; entries: null in lists and events. replans: how often targets were chosen anew.

    goals, policy: of each move.
    """

    id: str
    state: BulkState
    purpose: Purpose
    node: str | None
    target_node: str | None
    policy: str | None
    goals: Goals
    max_concurrent: int
    max_per_node: int
    max_per_link: int
    bandwidth_budget_bytes_per_s: int
    max_attempts: int
    forecast: ForecastOut
    counts: dict[str, int]
    entries: list[EntryOut] | None
    replans: int
    explanation: list[str]
    labels: dict[str, str]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000051",
            "state": "running",
            "purpose": "drain",
            "node": "node-1",
            "target_node": None,
            "policy": None,
            "goals": {},
            "max_concurrent": 5,
            "max_per_node": 2,
            "max_per_link": 2,
            "bandwidth_budget_bytes_per_s": 200000000,
            "max_attempts": 3,
            "forecast": _FORECAST,
            "counts": {"waiting": 1},
            "entries": [_ENTRY],
            "replans": 0,
            "explanation": [],
            "labels": {},
            "created_at": "2026-01-02T03:10:00Z",
            "updated_at": "2026-01-02T03:10:00Z",
            "finished_at": None,
            "revision": 71,
        }
    )


class RestartOut(Strict):
    """A VM of the lost node. target_node: where it could be started again; null: nowhere, and `reasons` says why."""

    vm: str
    vm_id: str
    priority: int
    memory_mib: int
    target_node: str | None
    target_node_id: str | None
    reasons: list[ReasonOut]


class NodeLossPlan(Strict):
    """What the loss of a node would mean. restarts: its VMs that are to run, in the order they would be placed.

    at_rest: how many more it owns that are not to run; no_room: how many of `restarts` find no place.
    """

    node: str
    node_id: str
    restarts: list[RestartOut]
    no_room: int
    at_rest: int

    model_config = Strict.model_config | example(
        {
            "node": "node-2",
            "node_id": "0190b36e-7c1a-7000-8000-000000000007",
            "restarts": [
                {
                    "vm": "web-1",
                    "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
                    "priority": 50,
                    "memory_mib": 2048,
                    "target_node": "node-1",
                    "target_node_id": "0190b36e-7c1a-7000-8000-000000000002",
                    "reasons": [],
                }
            ],
            "no_room": 0,
            "at_rest": 2,
        }
    )
