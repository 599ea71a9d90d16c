"""A bulk migration: many VMs to be moved within limits, and how far that is. Its changes are pure functions.

    planned → running ⇄ paused → completed | completed_with_failures
        └────────┴─────────┴→ cancelling → cancelled

Each VM has an entry: waiting → moving → done, or back to waiting after a move that failed; failed, stays, skipped and
cancelled are ends too. Whoever reads the record next knows from it alone what has been done and what is left.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from novacron.errors import Reason, StateConflict
from novacron.model.migration import Wishes

PRIORITY_LABEL = "novacron.io/migration-priority"
"""A VM's own priority, a whole number from 0 to 100; those with more of it go first."""
USUAL_PRIORITY = 50
MAX_PRIORITY = 100
MAX_VMS = 1000
MAX_NOTES = 50
FIRST_RETRY_S = 5.0
PATIENCE_S = 600.0
"""For how long a VM that cannot begin is waited for before it is given up."""


class BulkState(StrEnum):
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"


BULK_FINAL = frozenset({BulkState.CANCELLED, BulkState.COMPLETED, BulkState.COMPLETED_WITH_FAILURES})


class Purpose(StrEnum):
    """Why: somebody asked for a move, a node is emptied, or what emptying it took away comes back."""

    MOVE = "move"
    DRAIN = "drain"
    BRING_BACK = "bring_back"


class EntryState(StrEnum):
    """stays: it cannot be moved, or was blocked for too long; skipped: nothing was left to do (gone, or elsewhere)."""

    WAITING = "waiting"
    MOVING = "moving"
    DONE = "done"
    FAILED = "failed"
    STAYS = "stays"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


ENDED = frozenset(EntryState) - {EntryState.WAITING, EntryState.MOVING}


class BulkLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How much at once. per_node: moves a node takes part in, as source or target; per_link: between two nodes, either
    way; both count moves that others began. bandwidth_bytes_per_s: of all together, shared evenly; 0: no budget.
    max_attempts: how often one VM's move is tried.

    Usual: as many as KubeVirt (five in all, two a node): two keep a link busy while one of them hands over.
    """

    max_concurrent: int = 5
    per_node: int = 2
    per_link: int = 2
    bandwidth_bytes_per_s: int = 0
    max_attempts: int = 3


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which VMs: these, those with all of these labels (an empty value: any value), or all on a node. One of them."""

    vm_ids: tuple[str, ...] = ()
    selector: dict[str, str] = {}
    node_id: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One VM. target_node: where the plan has it go, empty: nowhere yet; wave: with which others it begins, from 1.

    starts_at_s, takes_s: by the plan, from its beginning. migration_ids: one for each attempt; avoid: targets that
    failed it. reasons: why it failed, stays or waits. blocked_since: when it was first found that it cannot begin now.
    """

    vm_id: str
    vm_name: str
    source_node: str
    state: EntryState = EntryState.WAITING
    priority: int = USUAL_PRIORITY
    target_node: str = ""
    wave: int = 0
    starts_at_s: float = 0.0
    takes_s: float = 0.0
    migration_ids: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    reasons: tuple[Reason, ...] = ()
    blocked_since: datetime.datetime | None = None
    retry_at: datetime.datetime | None = None
    finished_at: datetime.datetime | None = None


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a node, or the link between two, has to do. nodes: one or two ids; busy_s: while anything moves there."""

    nodes: tuple[str, ...]
    moves: int
    busy_s: float


class Forecast(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the plan expects. share_bytes_per_s: of the budget, for each move; 0: no budget. busiest: the busiest first.

    held_back_s: by what kept VMs waiting, for how many seconds, of all of them together.
    """

    total_s: float = 0.0
    waves: int = 0
    share_bytes_per_s: int = 0
    busiest: tuple[Load, ...] = ()
    held_back_s: dict[str, float] = {}


class BulkMigration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one bulk migration. target_node: where all of them go; empty: the scheduler chooses for each.

    now: windows of policies do not count.

    replans: how often targets were chosen anew; explanation: what a person should know of how it went, newest last.
    """

    id: str
    state: BulkState
    purpose: Purpose
    selection: Selection
    created_at: datetime.datetime
    updated_at: datetime.datetime
    entries: tuple[Entry, ...] = ()
    target_node: str = ""
    policy_id: str = ""
    now: bool = False
    goals: Wishes = Wishes()
    limits: BulkLimits = BulkLimits()
    forecast: Forecast = Forecast()
    labels: dict[str, str] = {}
    requested_by: str = ""
    replans: int = 0
    explanation: tuple[str, ...] = ()
    finished_at: datetime.datetime | None = None


def is_bulk_final(bulk: BulkMigration) -> bool:
    return bulk.state in BULK_FINAL


def may_begin(bulk: BulkMigration) -> bool:
    """Whether moves may begin: it is neither paused nor ending."""
    return bulk.state in (BulkState.PLANNED, BulkState.RUNNING)


def priority_of(labels: Mapping[str, str]) -> int:
    """What the VM's label says; the usual one where it says nothing, or no number from 0 to 100."""
    text = labels.get(PRIORITY_LABEL, "")
    said = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PRIORITY)) else USUAL_PRIORITY
    return said if said <= MAX_PRIORITY else USUAL_PRIORITY


def entry_of(bulk: BulkMigration, vm_id: str) -> Entry | None:
    return next((entry for entry in bulk.entries if entry.vm_id == vm_id), None)


def with_entries(bulk: BulkMigration, changed: Mapping[str, Entry], now: datetime.datetime) -> BulkMigration:
    """The record with these entries, by VM id, in place of its own."""
    entries = tuple(changed.get(entry.vm_id, entry) for entry in bulk.entries)
    return bulk if entries == bulk.entries else msgspec.structs.replace(bulk, entries=entries, updated_at=now)


def noted(bulk: BulkMigration, sentence: str) -> BulkMigration:
    """The record with a sentence more; the oldest go when there are many. Said twice in a row it stands once."""
    if bulk.explanation[-1:] == (sentence,):
        return bulk
    return msgspec.structs.replace(bulk, explanation=(*bulk.explanation, sentence)[-MAX_NOTES:])


# -- what people ask -----------------------------------------------------------------------------------------


def paused(bulk: BulkMigration, now: datetime.datetime) -> BulkMigration:
    """No more moves begin; those under way go on. :raise StateConflict: it is ending or has ended."""
    if bulk.state is BulkState.PAUSED:
        return bulk
    if not may_begin(bulk):
        raise _conflict(bulk, ("planned", "running"), "pause")
    return msgspec.structs.replace(bulk, state=BulkState.PAUSED, updated_at=now)


def resumed(bulk: BulkMigration, now: datetime.datetime) -> BulkMigration:
    """Moves begin again; what was waited for meanwhile is waited for anew. :raise StateConflict: it is not paused."""
    if bulk.state is not BulkState.PAUSED:
        raise _conflict(bulk, ("paused",), "resume")
    entries = tuple(msgspec.structs.replace(entry, blocked_since=None) for entry in bulk.entries)
    return msgspec.structs.replace(bulk, state=BulkState.RUNNING, entries=entries, updated_at=now)


def cancelled(bulk: BulkMigration, now: datetime.datetime) -> BulkMigration:
    """Nothing more begins, and what can be is taken back; what has been moved stays. :raise StateConflict: it ended."""
    if bulk.state is BulkState.CANCELLING:
        return bulk
    if is_bulk_final(bulk):
        raise _conflict(bulk, ("under way",), "cancel")
    ended = {
        entry.vm_id: settled(entry, EntryState.CANCELLED, now) for entry in bulk.entries if _waits(entry)
    }  # fmt: skip
    return msgspec.structs.replace(with_entries(bulk, ended, now), state=BulkState.CANCELLING, updated_at=now)


def _waits(entry: Entry) -> bool:
    return entry.state is EntryState.WAITING


def _conflict(bulk: BulkMigration, required: tuple[str, ...], verb: str) -> StateConflict:
    return StateConflict.of(f"bulk migration {bulk.id}", bulk.state.value, required, verb)


# -- what the worker writes -----------------------------------------------------------------------------------


def began(
    bulk: BulkMigration, vm_id: str, migration_id: str, target_node: str, now: datetime.datetime
) -> BulkMigration:
    """A VM's move is under way.

    :raise StateConflict: it was paused or cancelled, or the VM waits no more: nothing may begin.
    """
    entry = entry_of(bulk, vm_id)
    if not may_begin(bulk) or entry is None or not _waits(entry):
        raise _conflict(bulk, ("planned", "running"), "begin a move of")
    moving = msgspec.structs.replace(
        entry,
        state=EntryState.MOVING,
        target_node=target_node,
        migration_ids=(*entry.migration_ids, migration_id),
        reasons=(),
        blocked_since=None,
        retry_at=None,
    )
    return msgspec.structs.replace(with_entries(bulk, {vm_id: moving}, now), state=BulkState.RUNNING)


def settled(entry: Entry, state: EntryState, now: datetime.datetime, *reasons: Reason) -> Entry:
    """The entry at its end."""
    return msgspec.structs.replace(
        entry, state=state, reasons=reasons, blocked_since=None, retry_at=None, finished_at=now
    )


def failed_once(bulk: BulkMigration, entry: Entry, reason: Reason, now: datetime.datetime) -> Entry:
    """The entry after a move that failed: it waits for another try, elsewhere if that is possible, or has failed."""
    attempts = len(entry.migration_ids)
    if attempts >= bulk.limits.max_attempts:
        return settled(entry, EntryState.FAILED, now, reason)
    return msgspec.structs.replace(
        entry,
        state=EntryState.WAITING,
        target_node="",
        avoid=tuple(dict.fromkeys((*entry.avoid, entry.target_node))),
        reasons=(reason,),
        retry_at=now + datetime.timedelta(seconds=FIRST_RETRY_S * 2 ** (attempts - 1)),
    )


def blocked(entry: Entry, reasons: tuple[Reason, ...], now: datetime.datetime) -> Entry:
    """The entry while it cannot begin; after `PATIENCE_S` of that it stays where it is."""
    since = entry.blocked_since or now
    if (now - since).total_seconds() >= PATIENCE_S:
        return settled(entry, EntryState.STAYS, now, *reasons)
    return msgspec.structs.replace(entry, reasons=reasons, blocked_since=since)


def finished(bulk: BulkMigration, now: datetime.datetime) -> BulkMigration:
    """The record at its end, once every entry is; else as it is."""
    if is_bulk_final(bulk) or any(entry.state not in ENDED for entry in bulk.entries):
        return bulk
    well = all(entry.state in (EntryState.DONE, EntryState.SKIPPED) for entry in bulk.entries)
    state = BulkState.COMPLETED if well else BulkState.COMPLETED_WITH_FAILURES
    if bulk.state is BulkState.CANCELLING:
        state = BulkState.CANCELLED
    return msgspec.structs.replace(bulk, state=state, updated_at=now, finished_at=now)
