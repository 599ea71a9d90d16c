"""Bulk migrations: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.migrations import Goals, Reason

COLLECTION = "bulk-migrations"
FINAL = frozenset({"cancelled", "completed", "completed_with_failures"})


class BulkMigrationCreate(Goals, frozen=True, kw_only=True, omit_defaults=True):
    """VMs to be moved within limits: these, those with all labels of `selector`, all of the node `drain` (which takes
    no new ones from then on), or what drains took away from the node `bring_back`. Give one of the four.

    targets, priorities: of single VMs, by name or id. Goals and policy are each move's.
    """

    vms: list[str] = []
    selector: Mapping[str, str] = {}
    drain: str | None = None
    bring_back: str | None = None
    target_node: str | None = None
    policy: str | None = None
    max_concurrent: int = 5
    max_per_node: int = 2
    max_per_link: int = 2
    bandwidth_budget_bytes_per_s: int = 0
    max_attempts: int = 3
    priorities: Mapping[str, int] = {}
    now: bool = False
    targets: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One VM. wave: with which others it begins, from 1; 0: it has no place. reasons: why it failed, stays or waits."""

    vm: str
    vm_id: str
    state: str
    priority: int
    source_node: str
    target_node: str | None
    target_node_id: str | None
    wave: int
    starts_at_s: float
    takes_s: float
    migration_ids: list[str]
    reasons: list[Reason]
    finished_at: datetime.datetime | None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A node, or the link between two: how many moves touch it, and for how long."""

    nodes: list[str]
    moves: int
    busy_s: float


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What the plan expects. busiest: the longest busy first; held_back_s: by what kept VMs waiting."""

    total_s: float
    waves: int
    share_bytes_per_s: int
    busiest: list[Load]
    held_back_s: dict[str, float]


class BulkMigrationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk migration would do. start: what `create` takes to do just that."""

    purpose: str
    node: str | None
    forecast: Forecast
    stays: int
    entries: list[Entry]
    start: BulkMigrationCreate


class BulkMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk migration; `state` is plain text, so that an old client can read a newer server.

    entries: None in lists and events.
    """

    id: str
    state: str
    purpose: str
    node: str | None
    target_node: str | None
    policy: str | None
    goals: Goals
    max_concurrent: int
    max_per_node: int
    max_per_link: int
    bandwidth_budget_bytes_per_s: int
    max_attempts: int
    forecast: Forecast
    counts: dict[str, int]
    entries: list[Entry] | None
    replans: int
    explanation: list[str]
    labels: dict[str, str]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    revision: int

    @property
    def is_final(self) -> bool:
        """Whether it will change no more."""
        return self.state in FINAL


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """A VM of a lost node. target_node: where it could be started again; None: nowhere, and `reasons` says why."""

    vm: str
    vm_id: str
    priority: int
    memory_mib: int
    target_node: str | None
    target_node_id: str | None
    reasons: list[Reason]


class NodeLossPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the loss of a node would mean. at_rest: VMs it owns that are not to run."""

    node: str
    node_id: str
    restarts: list[Restart]
    no_room: int
    at_rest: int


def plan(bulk: BulkMigrationCreate) -> Call[BulkMigrationPlan]:
    """What `create` would do with it; nothing changes."""
    return Call(method="POST", path=path_of("bulk-migration-plans"), answer=BulkMigrationPlan, body=bulk)


def node_loss(node: str) -> Call[NodeLossPlan]:
    """Where the VMs of a node could be started again if it were gone; nothing changes."""
    return Call(method="GET", path=path_of("nodes", ref_of("node", node), "loss-plan"), answer=NodeLossPlan)


def create(bulk: BulkMigrationCreate) -> Call[BulkMigration]:
    """Begin; the answer is the record to watch."""
    return Call(method="POST", path=path_of(COLLECTION), answer=BulkMigration, body=bulk)


def get(bulk_id: str) -> Call[BulkMigration]:
    return Call(method="GET", path=path_of(COLLECTION, ref_of("bulk-migration", bulk_id)), answer=BulkMigration)


def search(
    *, labels: Sequence[str] = (), state: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[BulkMigration]]:
    """One page of the bulk migrations that meet all `labels` and that `state`; empty: any."""
    query: Query = {"label": labels, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of(COLLECTION), answer=Page[BulkMigration], query=query)


def pause(bulk_id: str) -> Call[BulkMigration]:
    """Begin no more moves; those under way go on."""
    return _verb(bulk_id, "pause")


def resume(bulk_id: str) -> Call[BulkMigration]:
    """Go on after a pause."""
    return _verb(bulk_id, "resume")


def cancel(bulk_id: str) -> Call[BulkMigration]:
    """Begin nothing more, take back what can be; what has been moved stays where it is."""
    return _verb(bulk_id, "cancel")


def _verb(bulk_id: str, verb: str) -> Call[BulkMigration]:
    path = path_of(COLLECTION, ref_of("bulk-migration", bulk_id), verb)
    return Call(method="POST", path=path, answer=BulkMigration)
