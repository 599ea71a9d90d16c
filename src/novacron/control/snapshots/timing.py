"""When schedules take snapshots, and which of theirs go: pure.

Time is cut into slots of `every_s` from the moment a schedule was made. In each slot every VM it selects gets one
snapshot; what was missed in earlier slots is never made up for, so that a server that was down does not pile them up.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from novacron.model.snapshot import Schedule, Snapshot, SnapshotState
from novacron.model.vm import Desired, Vm


class Due(msgspec.Struct, frozen=True):
    """What a schedule wants now: ids of VMs to take a snapshot of, and of snapshots to delete."""

    take: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()


def slot(schedule: Schedule, now: datetime.datetime) -> datetime.datetime | None:
    """When the slot began that `now` lies in; None: the first has not begun."""
    every = datetime.timedelta(seconds=schedule.every_s)
    number = (now - schedule.created_at) // every
    return schedule.created_at + number * every if number > 0 else None


def next_at(schedule: Schedule) -> datetime.datetime | None:
    """When it is to take the next ones, as far as its record tells; None: it is paused."""
    if schedule.paused:
        return None
    began = slot(schedule, schedule.last_at) if schedule.last_at else None
    return (began or schedule.created_at) + datetime.timedelta(seconds=schedule.every_s)


def selects(schedule: Schedule, labels: Mapping[str, str]) -> bool:
    """Whether a VM with those labels is the schedule's."""
    return all(key in labels and value in ("", labels[key]) for key, value in schedule.selector.items())


def due(schedule: Schedule, vms: Iterable[Vm], snapshots: Sequence[Snapshot], now: datetime.datetime) -> Due:
    """What the schedule wants. `snapshots`: at least its own.

    Of each VM the newest `keep` that are ready stay; a failed one goes when a later slot has begun. A VM that the
    schedule no longer selects keeps what it has.
    """
    began = None if schedule.paused else slot(schedule, now)
    if began is None:
        return Due()
    mine: dict[str, list[Snapshot]] = {}
    for one in snapshots:
        if one.schedule_id == schedule.id:
            mine.setdefault(one.vm_id, []).append(one)
    chosen = [vm for vm in vms if selects(schedule, vm.labels) and vm.desired is not Desired.DELETED and vm.node_id]
    take = [vm.id for vm in chosen if not any(one.created_at >= began for one in mine.get(vm.id, ()))]
    old = [one.id for vm in chosen for one in _old(mine.get(vm.id, ()), schedule.keep, began)]
    return Due(tuple(take), tuple(old))


def _old(mine: Iterable[Snapshot], keep: int, began: datetime.datetime) -> list[Snapshot]:
    newest_first = sorted(mine, key=lambda one: one.created_at, reverse=True)
    ready = [one for one in newest_first if one.state is SnapshotState.READY]
    failed = [one for one in newest_first if one.state is SnapshotState.ERROR and one.created_at < began]
    return [*failed, *reversed(ready[keep:])]
