"""Keeps the scheduler's fleet up with the records: what each VM, node, pool and volume means for placing VMs.

The first who asks has everything read once; from then on each change of a record changes the fleet, in the same step of
the event loop in which the cache moves to its revision. So the two never differ for anybody who asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from novacron.control.scheduler.fleet import Claim, Fleet, Lot, Occupant, PoolSeen
from novacron.control.scheduler.snapshot import Limits
from novacron.control.scheduler.tenants import held_of
from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS, VOLUMES, Kind
from novacron.control.store.records import Records, Seen
from novacron.model.machine import ENDED
from novacron.model.migration import Migration, is_final
from novacron.model.pool import UNIT_DRIVERS, Pool
from novacron.model.vm import Vm, is_wanted, running_spec, status_of
from novacron.model.volume import Volume, places


def holds_room(vm: Vm) -> bool:
    """Whether its memory is promised: it is wanted running or paused, or it still runs."""
    return is_wanted(vm) or status_of(vm) not in ENDED


def occupant_of(vm: Vm, migration: Migration | None) -> Occupant:
    """What it holds, where. A machine that is migrating holds room on both sides. migration: the one that holds it."""
    claims = [_own_claim(vm)] if vm.node_id else []
    if migration is not None and not is_final(migration):
        others = sorted({migration.source_node, migration.target_node} - {vm.node_id})
        runs = running_spec(vm)
        claims += [Claim(node_id=node_id, memory_mib=runs.memory_mib, vcpus=runs.vcpus) for node_id in others]
    return Occupant(claims=tuple(claims), labels=vm.labels, held=held_of(vm.placement.vm_rules))


def _own_claim(vm: Vm) -> Claim:
    """What it runs with, or what it will be started with: whichever is more."""
    if not holds_room(vm):
        return Claim(node_id=vm.node_id, owned=True)
    runs = running_spec(vm)
    memory_mib, vcpus = max(vm.spec.memory_mib, runs.memory_mib), max(vm.spec.vcpus, runs.vcpus)
    return Claim(node_id=vm.node_id, memory_mib=memory_mib, vcpus=vcpus, owned=True)


def pool_seen(pool: Pool) -> PoolSeen:
    """Who reaches it, and how large it is where that counts: a pool of units has room by the unit, not by the byte."""
    reached = {
        node_id: "" if reach.available else reach.reason or "no reason was given"
        for node_id, reach in pool.reach.items()
    }
    sized = pool.reach.items() if pool.driver not in UNIT_DRIVERS else ()
    sizes = {node_id: reach.size_bytes for node_id, reach in sized if reach.available and reach.size_bytes}
    return PoolSeen(shared=pool.shared, reached=reached, size_bytes=sizes)


def lots_of(volume: Volume) -> tuple[Lot, ...]:
    """Where it takes room, and how much it may come to there."""
    return tuple(
        Lot(pool_id=place.pool_id, node_id=place.node_id, size_bytes=volume.size_bytes) for place in places(volume)
    )


class Promises:
    """`fleet` is always as the records are."""

    def __init__(self, records: Records, limits: Limits) -> None:
        self._records = records
        self._fleet = Fleet(limits)
        self._is_kept_up = False

    def fleet(self) -> Fleet:
        """To be read; drafts are made of it."""
        if not self._is_kept_up:
            self._is_kept_up = True
            self._records.subscribe(self._take_in)
            kinds: tuple[Kind[Any], ...] = (NODES, POOLS, VOLUMES, VMS)
            for kind in kinds:
                for stored in self._records.all(kind):
                    self._put(kind, stored.record)
        return self._fleet

    def _take_in(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.now is not None:
                self._put(change.kind, change.now)
            elif change.before is not None:
                self._drop(change.kind, change.before)

    def _put(self, kind: Any, record: Any) -> None:
        if kind is VMS:
            self._put_vm(record)
        elif kind is MIGRATIONS:
            vm = self._records.get(VMS, record.vm_id)
            if vm is not None:
                self._put_vm(vm.record)
        elif kind is NODES:
            self._fleet.put_node(record)
        elif kind is POOLS:
            self._fleet.put_pool(record.id, pool_seen(record))
        elif kind is VOLUMES:
            self._fleet.put_volume(record.id, lots_of(record))

    def _put_vm(self, vm: Vm) -> None:
        migration = self._records.get(MIGRATIONS, vm.migration_id) if vm.migration_id else None
        self._fleet.put_vm(vm.id, occupant_of(vm, migration.record if migration else None))

    def _drop(self, kind: Any, record: Any) -> None:
        if kind is VMS:
            self._fleet.drop_vm(record.id)
        elif kind is NODES:
            self._fleet.drop_node(record.id)
        elif kind is POOLS:
            self._fleet.drop_pool(record.id)
        elif kind is VOLUMES:
            self._fleet.put_volume(record.id, ())
