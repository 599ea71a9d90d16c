"""Which of the migrations that have not begun may begin: by priority, then by age, as far as their nodes have a slot.

Pure. One that waits for a slot keeps its place: what is behind it takes no slot that it needs, so nobody starves.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from novacron.model.migration import Migration, MigrationState


class Admission(msgspec.Struct, frozen=True):
    """ids: those that may begin now, in order. next_at: when the first that waits for its time may; None: none does."""

    ids: tuple[str, ...]
    next_at: datetime.datetime | None


def is_fresh(migration: Migration) -> bool:
    """Whether nothing of it has begun, so that it may wait."""
    return migration.state is MigrationState.PENDING and not migration.began


def admitted(
    unfinished: Iterable[Migration], driven: Collection[str], now: datetime.datetime, per_node: int
) -> Admission:
    """What may begin. unfinished: all that have not ended; driven: ids of those let in before.

    A machine at rest is moved by one write and takes no slot.
    """
    everyone = list(unfinished)
    taken: Counter[str] = Counter()
    for one in everyone:
        if not one.at_rest and (one.id in driven or not is_fresh(one)):
            taken.update((one.source_node, one.target_node))
    waiting = [one for one in everyone if is_fresh(one) and one.id not in driven]
    early = [one.not_before for one in waiting if one.not_before is not None and one.not_before > now]
    found = []
    for one in sorted(waiting, key=lambda one: (-one.priority, one.created_at, one.id)):
        if one.not_before is not None and one.not_before > now:
            continue
        if one.at_rest or max(taken[one.source_node], taken[one.target_node]) < per_node:
            found.append(one.id)
        if not one.at_rest:
            taken.update((one.source_node, one.target_node))
    return Admission(tuple(found), min(early, default=None))
