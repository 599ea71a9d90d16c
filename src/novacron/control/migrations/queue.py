"""Which of the migrations that have not begun may begin: by priority, then by age, as far as their nodes have a slot.

Pure. One that waits for a slot keeps its place: what is behind it takes no slot that it needs, so nobody starves.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import msgspec

from novacron.model.migration import Migration, MigrationState

_NONE: Mapping[str, datetime.datetime] = {}


class Slots(msgspec.Struct, frozen=True):
    """How many migrations at once: that a node takes part in, and in the whole cluster (0: as many as nodes have slots
    for).
    """

    per_node: int = 2
    in_all: int = 0


USUAL = Slots()


class Admission(msgspec.Struct, frozen=True):
    """ids: those whose turn it is now, in order. next_at: when the first that waits for a time may be; None: none does.

    One that holds its VM begins then; one that does not yet takes hold of it first (see control.migrations.holder).
    """

    ids: tuple[str, ...]
    next_at: datetime.datetime | None


def is_fresh(migration: Migration) -> bool:
    """Whether nothing of it has begun, so that it may wait."""
    return migration.state is MigrationState.PENDING and not migration.began


def admitted(
    unfinished: Iterable[Migration],
    driven: Collection[str],
    now: datetime.datetime,
    slots: Slots,
    aside: Mapping[str, datetime.datetime] = _NONE,
) -> Admission:
    """What may begin. unfinished: all that have not ended; driven: ids of those let in before; aside: by id, until when
    those are passed over that were let in and could not begin.

    A machine at rest is moved by one write and takes no slot. A slot of the cluster is kept for nobody that cannot use
    it yet: who waits for a node is the first to get the next one.
    """
    everyone = list(unfinished)
    begun = [one for one in everyone if not one.at_rest and (one.id in driven or not is_fresh(one))]
    taken = Counter(node for one in begun for node in (one.source_node, one.target_node))
    left = slots.in_all - len(begun) if slots.in_all else len(everyone)
    waiting = [one for one in everyone if is_fresh(one) and one.id not in driven]
    times = {one.id: max(filter(None, (one.not_before, aside.get(one.id))), default=now) for one in waiting}
    found = []
    for one in sorted(waiting, key=lambda one: (-one.priority, one.created_at, one.id)):
        if times[one.id] > now:
            continue
        if one.at_rest:
            found.append(one.id)
            continue
        if left > 0 and max(taken[one.source_node], taken[one.target_node]) < slots.per_node:
            found.append(one.id)
            left -= 1
        taken.update((one.source_node, one.target_node))
    return Admission(tuple(found), min((at for at in times.values() if at > now), default=None))
