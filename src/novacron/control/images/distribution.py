"""Image files brought to where machines need them: what a node lacks is decided here, and asked of the node.

The pool that server and nodes share from the start holds every file already: for machines whose disks lie there nothing
is asked and nothing waited for. A node that does not share it fetches kernels, firmware and media too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from novacron.control.link import Agents
from novacron.control.store.kinds import IMAGES, NODES, POOLS
from novacron.control.store.records import Records
from novacron.errors import NotFound
from novacron.model.image import Image
from novacron.model.machine import Disk, MachineSpec
from novacron.model.node import Node, NodeState
from novacron.model.pool import PoolSpec, is_own
from novacron.wire.storage import ImageFetch, ImageSource

MAX_NODES = 3
FETCH_WITHIN_S = 3600.0
MAX_REMEMBERED = 10_000


class Need(msgspec.Struct, frozen=True):
    """An image file that must be in a pool before a machine can start there."""

    pool: PoolSpec
    digest: str


def files_of(spec: MachineSpec) -> tuple[str, ...]:
    """Digests of what a machine needs beside its disks, from the directory its agent was started with."""
    boot = (spec.boot.kernel, spec.boot.initrd, spec.boot.firmware)
    return tuple(dict.fromkeys(digest for digest in (*boot, *(one.digest for one in spec.media)) if digest))


def needs(disks: Iterable[Disk], pools: Iterable[PoolSpec]) -> tuple[Need, ...]:
    """Files that disks stand on in other pools than the one server and nodes share from the start."""
    others = {pool.id: pool for pool in pools if pool.id}
    found = {
        (disk.pool_id, disk.backing_digest): Need(others[disk.pool_id], disk.backing_digest)
        for disk in disks
        if disk.pool_id in others and disk.backing_digest
    }
    return tuple(found.values())


def sources(nodes: Iterable[Node], holders: Iterable[str], node_id: str) -> tuple[ImageSource, ...]:
    """Where the node is to fetch from, in order: up to MAX_NODES that have the file and a door, then the server."""
    held_by = set(holders)
    doors = [
        ImageSource(door=node.facts.image_door, fingerprint=node.facts.image_door_fingerprint)
        for node in nodes
        if node.id in held_by
        and node.id != node_id
        and node.state in (NodeState.UP, NodeState.CORDONED, NodeState.DRAINING)
        and node.facts is not None
        and node.facts.image_door
    ]
    return (*doors[:MAX_NODES], ImageSource())


def size_of(images: Iterable[Image], digest: str) -> int:
    """How large the file is. :raise NotFound: no image has it."""
    for image in images:
        for file in image.files:
            if file.digest == digest:
                return file.size_bytes
    raise NotFound(f"no image has the file {digest} any more")


class Distribution:
    """Has nodes fetch what they lack, and remembers who was seen to have what, and when it was last needed."""

    def __init__(self, records: Records, agents: Agents) -> None:
        self._records = records
        self._agents = agents
        self._held: OrderedDict[tuple[str, str, str], None] = OrderedDict()  # (pool, digest, node), latest last
        self._log = structlog.get_logger("distribution")

    async def bring(self, node_id: str, disks: Iterable[Disk], pools: Iterable[PoolSpec]) -> None:
        """Return when the node has every file these disks stand on, in the pools they lie in.

        :raise NotFound: nobody has one of them. :raise NovaCronError: as the agent's verb image.fetch.
        """
        for need in needs(disks, pools):
            await self.fetch(node_id, need.pool, need.digest)

    async def bring_all(self, node_id: str, spec: MachineSpec) -> None:
        """Return when the node has every file the machine needs. Errors as for `bring`."""
        await self.bring(node_id, spec.disks, spec.pools)
        for digest in () if self._shares(node_id) else files_of(spec):
            await self.fetch(node_id, PoolSpec(id=""), digest)

    def _shares(self, node_id: str) -> bool:
        """Whether the node sees the server's own pool."""
        node = self._records.get(NODES, node_id)
        if node is None or node.record.facts is None:
            return True
        own = {stored.record.id for stored in self._records.all(POOLS) if is_own(stored.record)}
        return bool(own.intersection(node.record.facts.pool_ids))

    async def fetch(self, node_id: str, pool: PoolSpec, digest: str) -> None:
        """Have one file in a pool as that node sees it. There already: fine."""
        images = (stored.record for stored in self._records.all(IMAGES))
        holders = [holder for held_pool, held, holder in self._held if (held_pool, held) == (pool.id, digest)]
        nodes = (stored.record for stored in self._records.all(NODES))
        verb = ImageFetch(
            pool=pool,
            digest=digest,
            size_bytes=size_of(images, digest),
            sources=sources(nodes, holders, node_id),
        )
        await self._agents.call(node_id, verb, type(None), deadline_s=FETCH_WITHIN_S)
        self.saw(node_id, pool.id, digest)

    def saw(self, node_id: str, pool_id: str, digest: str) -> None:
        """The node has the file, and needs it now."""
        key = (pool_id, digest, node_id)
        self._held[key] = None
        self._held.move_to_end(key)
        while len(self._held) > MAX_REMEMBERED:
            self._held.popitem(last=False)

    def gone(self, node_id: str, pool_id: str, digest: str) -> None:
        """The node has the file no longer."""
        self._held.pop((pool_id, digest, node_id), None)

    def last_needed(self, pool_id: str) -> Mapping[str, int]:
        """Digests in the order in which they were last needed in that pool: a larger number is later."""
        return {digest: at for at, (pool, digest, _) in enumerate(self._held) if pool == pool_id}
