"""Keeps image files that no volume needs within a pool's limit: the ones unused for longest go first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from novacron.clock import Clock
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.store.kinds import IMAGES, NODES, POOLS, VMS, VOLUMES
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.node import Node
from novacron.model.pool import Pool, PoolDriver, spec_of
from novacron.model.volume import lies_in
from novacron.wire.storage import ImageDrop, ImagesFound, ImagesHeld

EVERY_S = 60.0
VERB_WITHIN_S = 30.0


def to_drop(
    held: Iterable[str], sizes: Mapping[str, int], needed: Iterable[str], used_at: Mapping[str, int], limit_bytes: int
) -> list[str]:
    """Which files go, in order: those without an image first, then the ones unused for longest, until the rest fits.

    sizes: of files some image has. needed: files volumes stand on; they never go and do not count. used_at: larger is
    later; never seen used counts as longest ago.
    """
    kept_back = set(needed)
    idle = [digest for digest in held if digest not in kept_back]
    orphans = [digest for digest in idle if digest not in sizes]
    cached = sorted((digest for digest in idle if digest in sizes), key=lambda one: (used_at.get(one, -1), one))
    over = sum(sizes[digest] for digest in cached) - limit_bytes
    gone = list(orphans)
    for digest in cached:
        if over <= 0:
            break
        gone.append(digest)
        over -= sizes[digest]
    return gone


class Cache:
    """`run` until cancelled. Pools without a limit are left alone."""

    def __init__(self, records: Records, agents: Agents, clock: Clock, distribution: Distribution) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._distribution = distribution
        self._log = structlog.get_logger("cache")

    async def run(self) -> None:
        while True:
            await self.trim()
            await self._clock.sleep(EVERY_S)

    async def trim(self) -> None:
        """Once through all pools and the nodes that reach them."""
        for stored in self._records.all(POOLS):
            pool = stored.record
            if not pool.image_cache_bytes or (pool.driver is PoolDriver.DIRECTORY and not pool.options):
                continue
            reaching = [node for node in self._nodes() if pool.reach.get(node.id) and pool.reach[node.id].available]
            for node in reaching[:1] if pool.shared else reaching:
                try:
                    await self._trim(pool, node)
                except NovaCronError as wrong:
                    self._log.info("image files were not looked at", node=node.name, pool=pool.name, why=wrong.message)

    async def _trim(self, pool: Pool, node: Node) -> None:
        spec = spec_of(pool)
        found = await self._agents.call(node.id, ImagesHeld(pool=spec), ImagesFound, deadline_s=VERB_WITHIN_S)
        sizes = {file.digest: file.size_bytes for one in self._records.all(IMAGES) for file in one.record.files}
        used_at = self._distribution.last_needed(pool.id)
        for digest in to_drop(found.digests, sizes, self._needed(pool.id), used_at, pool.image_cache_bytes):
            await self._agents.call(node.id, ImageDrop(pool=spec, digest=digest), type(None), deadline_s=VERB_WITHIN_S)
            self._distribution.gone(node.id, pool.id, digest)
            self._log.info("an image file was dropped", node=node.name, pool=pool.name, digest=digest)

    def _nodes(self) -> list[Node]:
        nodes = (stored.record for stored in self._records.all(NODES))
        return [node for node in nodes if self._agents.is_connected(node.id)]

    def _needed(self, pool_id: str) -> set[str]:
        """Files that volumes of the pool stand on, whatever node they lie on."""
        volumes = (stored.record for stored in self._records.all(VOLUMES))
        found = {volume.backing_digest for volume in volumes if lies_in(volume, pool_id)}
        disks = (disk for stored in self._records.all(VMS) for disk in stored.record.spec.disks)
        return found | {disk.backing_digest for disk in disks if disk.pool_id == pool_id}
