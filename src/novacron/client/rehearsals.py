"""Migration rehearsals: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.migrations import Verdict
from novacron.client.vms import Problem

COLLECTION = "migration-rehearsals"
FINAL = frozenset({"passed", "failed", "cancelled"})


class RehearsalCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A running VM whose copy is to be booted on another node. keep_for_s: so long the copy runs on afterwards.

    boot_within_s: so long its guest may take to show signs of life; watch_for_s: so long it must live.
    """

    vm: str
    target_node: str | None = None
    keep_for_s: float = 0.0
    boot_within_s: float = 120.0
    watch_for_s: float = 10.0
    bandwidth_bytes_per_s: int = 0
    labels: Mapping[str, str] = {}


class RehearsalFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; None: not (yet)."""

    copied_bytes: int | None = None
    copy_ms: float | None = None
    boot_ms: float | None = None


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):
    """A rehearsal; `state` is plain text, so that an old client can read a newer server."""

    id: str
    vm_id: str
    vm_name: str
    state: str
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
    figures: RehearsalFigures
    verdict: Verdict | None
    problem: Problem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    booted_at: datetime.datetime | None
    kept_until: datetime.datetime | None
    finished_at: datetime.datetime | None
    revision: int

    @property
    def is_final(self) -> bool:
        """Whether it has ended, and nothing of it but the record is left."""
        return self.state in FINAL


def create(rehearsal: RehearsalCreate) -> Call[Rehearsal]:
    """Begin; the answer is the record to watch."""
    return Call(method="POST", path=path_of(COLLECTION), answer=Rehearsal, body=rehearsal)


def get(rehearsal_id: str) -> Call[Rehearsal]:
    return Call(method="GET", path=_path(rehearsal_id), answer=Rehearsal)


def search(
    *, labels: Sequence[str] = (), vm: str = "", state: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Rehearsal]]:
    """One page of the rehearsals that meet all `labels`, of that VM and in that state; empty: any."""
    query: Query = {"label": labels, "vm": vm, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of(COLLECTION), answer=Page[Rehearsal], query=query)


def cancel(rehearsal_id: str) -> Call[Rehearsal]:
    """Have the copy deleted at once; a verdict that is there already stays."""
    return Call(method="POST", path=f"{_path(rehearsal_id)}/cancel", answer=Rehearsal)


def delete(rehearsal_id: str) -> Call[None]:
    """Forget one that has ended."""
    return Call(method="DELETE", path=_path(rehearsal_id), answer=type(None))


def _path(rehearsal_id: str) -> str:
    return path_of(COLLECTION, ref_of("rehearsal", rehearsal_id))
