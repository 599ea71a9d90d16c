"""Migrations: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.vms import Problem
from novacron.model.migration import FINAL


class MigrationCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A VM to be moved. Without a target the scheduler chooses one. What is left out is left to the server."""

    vm: str
    target_node: str | None = None
    kind: str | UnsetType = UNSET
    labels: Mapping[str, str] = {}
    max_downtime_ms: int | UnsetType = UNSET
    bandwidth_bytes_per_s: int | UnsetType = UNSET
    finish_within_s: float | UnsetType = UNSET


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the transfer is, as the source's hypervisor counts."""

    at: datetime.datetime
    total_bytes: int
    transferred_bytes: int
    remaining_bytes: int
    rate_bytes_per_s: float
    dirty_rate_bytes_per_s: float
    iteration: int
    predicted_end: datetime.datetime | None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; None: not measured."""

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


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration; `state` is plain text, so that an old client can read a newer server."""

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
    may_cancel: bool
    max_downtime_ms: int
    bandwidth_bytes_per_s: int
    finish_within_s: float
    labels: dict[str, str]
    explanation: list[str]
    steps_begun: list[str]
    steps_done: list[str]
    steps_undone: list[str]
    progress: Progress | None
    figures: Figures
    problem: Problem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    finished_at: datetime.datetime | None
    revision: int

    @property
    def is_final(self) -> bool:
        """Whether it will change no more."""
        return self.state in FINAL


def create(migration: MigrationCreate) -> Call[Migration]:
    """Move a VM; the answer is the record to watch."""
    return Call(method="POST", path=path_of("migrations"), answer=Migration, body=migration)


def get(migration_id: str) -> Call[Migration]:
    return Call(method="GET", path=path_of("migrations", ref_of("migration", migration_id)), answer=Migration)


def search(
    *, labels: Sequence[str] = (), state: str = "", vm: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Migration]]:
    """One page of the migrations that meet all `labels`, that `state`, of that `vm` (id or name); empty: any."""
    query: Query = {"label": labels, "state": state, "vm": vm, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("migrations"), answer=Page[Migration], query=query)


def cancel(migration_id: str) -> Call[Migration]:
    """Ask for everything to be taken back; the VM goes on running where it is."""
    path = path_of("migrations", ref_of("migration", migration_id), "cancel")
    return Call(method="POST", path=path, answer=Migration)
