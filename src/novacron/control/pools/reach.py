"""What disks ask of nodes: the pools they lie in, as nodes are told of them and as the scheduler asks for them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from novacron.control.scheduler.snapshot import DiskNeed, PoolNeed
from novacron.control.store.kinds import MIGRATIONS, POOLS, VOLUMES
from novacron.control.store.records import Records
from novacron.model.kept_copies import kept_units
from novacron.model.machine import Disk
from novacron.model.pool import UNIT_DRIVERS, Pool, PoolSpec, spec_of
from novacron.model.unit import PREFIX, give
from novacron.model.volume import Volume, places


def specs_of(records: Records, disks: Iterable[Disk]) -> tuple[PoolSpec, ...]:
    """Every pool but the default one that the disks lie in, as a node must be told of it."""
    ids = sorted({disk.pool_id for disk in disks if disk.pool_id})
    found = (records.get(POOLS, pool_id) for pool_id in ids)
    return tuple(spec_for(records, stored.record) for stored in found if stored is not None)


def spec_for(records: Records, pool: Pool) -> PoolSpec:
    """What a node is told of a pool; of one made of units also which volume has which."""
    told = spec_of(pool)
    units = {f"{PREFIX}{volume_id}": unit for volume_id, unit in (_kept(records, pool) | _taken(records, pool)).items()}
    return msgspec.structs.replace(told, options=told.options | units) if units else told


def free_unit(records: Records, pool: Pool, volume_id: str, given: Collection[str] = ()) -> str:
    """The unit a new volume gets, in the turn that records it; empty: the pool is not made of units.

    given: units this turn has given away already.

    :raise NoRoom: every unit has a volume.
    """
    if pool.driver not in UNIT_DRIVERS:
        return ""
    taken = {*_taken(records, pool).values(), *_kept(records, pool).values(), *given}
    units = {f"{PREFIX}{unit}": unit for unit in taken}
    return give(pool.options | units, volume_id)[f"{PREFIX}{volume_id}"]


def _taken(records: Records, pool: Pool) -> dict[str, str]:
    if pool.driver not in UNIT_DRIVERS:
        return {}
    volumes = (stored.record for stored in records.all(VOLUMES))
    return {
        volume.id: place.unit
        for volume in volumes
        for place in places(volume)
        if place.pool_id == pool.id and place.unit
    }


def _kept(records: Records, pool: Pool) -> dict[str, str]:
    if pool.driver not in UNIT_DRIVERS:
        return {}
    return kept_units((stored.record for stored in records.all(MIGRATIONS)), pool.id)


def needs_of(records: Records, disks: Iterable[Disk]) -> tuple[PoolNeed, ...]:
    """The same pools as the scheduler asks for them, with the node that a disk lies on when nodes do not share it."""
    needs = {}
    for disk in disks:
        pool, volume = records.get(POOLS, disk.pool_id), records.get(VOLUMES, disk.volume_id)
        if pool is None:
            continue
        node_id = volume.record.node_id if volume else ""
        needs[pool.record.id, node_id] = PoolNeed(id=pool.record.id, name=pool.record.name, node_id=node_id)
    return tuple(needs[key] for key in sorted(needs))


def disk_needs(records: Records, volumes: Iterable[Volume]) -> tuple[DiskNeed, ...]:
    """What new volumes may come to in each pool."""
    asked: dict[str, int] = {}
    for volume in volumes:
        asked[volume.pool_id] = asked.get(volume.pool_id, 0) + volume.size_bytes
    return tuple(
        DiskNeed(pool_id=pool_id, pool_name=records.name(POOLS, pool_id), size_bytes=size_bytes)
        for pool_id, size_bytes in sorted(asked.items())
    )
