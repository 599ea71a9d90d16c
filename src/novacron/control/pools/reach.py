"""What disks ask of nodes: the pools they lie in, as nodes are told of them and as the scheduler asks for them."""

from __future__ import annotations

from collections.abc import Iterable

from novacron.control.scheduler.snapshot import PoolNeed
from novacron.control.store.records import POOLS, VOLUMES, Records
from novacron.model.machine import Disk
from novacron.model.pool import PoolSpec, spec_of


def specs_of(records: Records, disks: Iterable[Disk]) -> tuple[PoolSpec, ...]:
    """Every pool but the default one that the disks lie in, as a node must be told of it."""
    ids = sorted({disk.pool_id for disk in disks if disk.pool_id})
    found = (records.get(POOLS, pool_id) for pool_id in ids)
    return tuple(spec_of(stored.record) for stored in found if stored is not None)


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
