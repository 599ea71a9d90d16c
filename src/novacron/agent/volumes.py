"""The verbs about pools and volumes at rest: each finds the pool its spec describes and asks it."""

from __future__ import annotations

from novacron.agent.storage.base import Pool
from novacron.agent.storage.depot import Depot
from novacron.errors import NovaCronError
from novacron.model.machine import Disk
from novacron.wire import storage as wire


class Volumes:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(self, depot: Depot) -> None:
        self._depot = depot

    async def probe(self, args: wire.PoolProbe) -> wire.PoolFound:
        """Whether this node reaches the pool. A pool that is out of reach is an answer, no error."""
        try:
            space = await self._depot.pool(args.pool).space()
        except NovaCronError as why:
            return wire.PoolFound(available=False, reason=why.message)
        return wire.PoolFound(available=True, free_bytes=space.free_bytes, size_bytes=space.size_bytes)

    async def create(self, args: wire.VolumeCreate) -> wire.VolumeReport:
        """:raise NotFound: the image file it is to be a child of is not in the pool."""
        pool = self._depot.pool(args.pool)
        await pool.ensure_volume(args.disk, uid=None, gid=None)
        return await _report(pool, args.disk)

    async def clone(self, args: wire.VolumeClone) -> wire.VolumeReport:
        """:raise NotFound: no such source. :raise StateConflict: a running machine uses it."""
        pool = self._depot.pool(args.pool)
        await pool.clone_volume(args.disk, args.source_volume_id, args.source_snapshot_id)
        return await _report(pool, args.disk)

    async def grow(self, args: wire.VolumeGrow) -> wire.VolumeReport:
        """:raise NotFound :raise StateConflict: a running machine uses it."""
        pool = self._depot.pool(args.pool)
        await pool.grow_volume(args.disk)
        return await _report(pool, args.disk)

    async def delete(self, args: wire.VolumeDelete) -> None:
        """:raise StateConflict: a running machine uses it."""
        await self._depot.pool(args.pool).remove_volume(args.volume_id)

    async def inspect(self, args: wire.VolumeInspect) -> wire.VolumeReport:
        """:raise NotFound"""
        return await _report(self._depot.pool(args.pool), Disk(volume_id=args.volume_id, size_bytes=0))


async def _report(pool: Pool, disk: Disk) -> wire.VolumeReport:
    extent = await pool.extent(disk.volume_id)
    return wire.VolumeReport(volume_id=disk.volume_id, size_bytes=extent.size_bytes, used_bytes=extent.used_bytes)
