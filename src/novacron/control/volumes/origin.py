"""What a new volume is made from, and where it can lie: looked up and checked in the turn that records it."""

from __future__ import annotations

import msgspec

from novacron.control.named import named
from novacron.control.store.kinds import IMAGES, NODES, POOLS, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import Records
from novacron.control.vms.disks import is_at_rest
from novacron.control.volumes.decide import reaches
from novacron.errors import InvalidInput, NoRoom, NotFound, Reason, StateConflict
from novacron.model.image import FileRole, ImageState, file_of
from novacron.model.node import Node, NodeState
from novacron.model.pool import Pool
from novacron.model.vm import state_of
from novacron.model.volume import Volume
from novacron.model.volume import state_of as volume_state_of
from novacron.wire.rest.volumes import VolumeCreate


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What it begins as. volume_id, snapshot_id: cloned from; node_id: where that lies, when nodes do not share it."""

    pool: Pool
    size_bytes: int
    backing_digest: str = ""
    volume_id: str = ""
    snapshot_id: str = ""
    node_id: str = ""


class Origins:
    """Looks origins up. default_pool_id: of the pool that is meant when none is named."""

    def __init__(self, records: Records, default_pool_id: str) -> None:
        self._records = records
        self._default_id = default_pool_id

    def of(self, asked: VolumeCreate) -> Origin:
        """:raise InvalidInput, StateConflict: see VolumeService.create."""
        if asked.volume is not None:
            return self._clone(asked)
        pool = named(self._records, POOLS, asked.pool, "pool").record if asked.pool else self._default()
        if asked.image is not None:
            return self._child(asked, pool)
        return Origin(pool=pool, size_bytes=asked.size_bytes or 0)

    def node_for(self, origin: Origin, named: Node | None = None) -> str:
        """Where it will lie: empty when nodes share the pool; else the named node, or the one with most room.

        :raise InvalidInput: the named node does not reach the pool, or what is cloned lies on another.
        :raise NoRoom: no node reaches it, with a reason for each.
        """
        pool = origin.pool
        nodes = [stored.record for stored in self._records.all(NODES)]
        able = [node for node in nodes if node.state is NodeState.UP and reaches(node, pool)]
        if origin.node_id:
            able = [node for node in able if node.id == origin.node_id]
        if named is not None:
            if named not in able:
                why = "is where the volume cannot lie: it does not reach the pool, or not what is cloned"
                raise InvalidInput.field("node", why, f"novacron pool show {pool.name} shows which nodes reach it")
            able = [named]
        if pool.shared:
            return ""
        if not able:
            reasons = [self._why_not(node, pool) for node in nodes]
            raise NoRoom(f"no node reaches storage pool {pool.name}", reasons)
        return max(able, key=lambda node: (self._free(node, pool), node.id)).id

    # -- parts ---------------------------------------------------------------------------------------------

    def _clone(self, asked: VolumeCreate) -> Origin:
        source: Volume = named(self._records, VOLUMES, asked.volume or "", "volume").record
        pool: Pool = (
            named(self._records, POOLS, source.pool_id, "volume").record
            if source.pool_id != self._default_id
            else self._default()
        )
        if asked.pool is not None and named(self._records, POOLS, asked.pool, "pool").record.id != pool.id:
            raise InvalidInput.field(
                "pool", f"is not that of the volume it is cloned from, {pool.name}", "leave it out: clones lie together"
            )
        self._check_readable(source)
        snapshot_id = ""
        if asked.snapshot is not None:
            snapshot = named(self._records, SNAPSHOTS, asked.snapshot, "snapshot").record
            if source.id not in snapshot.volumes:
                raise InvalidInput.field("snapshot", f"does not hold volume {source.name}", "name one that does")
            snapshot_id = snapshot.id
        return Origin(
            pool=pool,
            size_bytes=_at_least(source.size_bytes, asked.size_bytes, f"volume {source.name}"),
            backing_digest=source.backing_digest,
            volume_id=source.id,
            snapshot_id=snapshot_id,
            node_id=source.node_id,
        )

    def _child(self, asked: VolumeCreate, pool: Pool) -> Origin:
        image = named(self._records, IMAGES, asked.image or "", "image").record
        file = file_of(image, FileRole.DISK)
        if image.state is not ImageState.READY:
            raise StateConflict.of(f"image {image.name}", image.state.value, ("ready",), "make a volume from")
        if file is None:
            raise InvalidInput.field("image", f"{image.name} has no disk", "name one with a disk file")
        size = _at_least(file.virtual_size_bytes, asked.size_bytes, f"the disk of image {image.name}")
        return Origin(pool=pool, size_bytes=size, backing_digest=file.digest)

    def _check_readable(self, source: Volume) -> None:
        """:raise StateConflict: nothing can be read from it now."""
        if source.task is not None or source.problem is not None:
            raise StateConflict.of(f"volume {source.name}", volume_state_of(source).value, ("available",), "clone")
        vm = self._records.get(VMS, source.vm_id) if source.vm_id else None
        if vm is not None and not is_at_rest(vm.record):
            raise StateConflict.of(f"VM {vm.record.name}", state_of(vm.record).value, ("stopped",), "clone a disk of")
        if vm is not None and source.with_vm and vm.record.observed is None:
            reason = Reason("volume.not_made", "it is made when its VM first starts", source.name, "start the VM once")
            raise StateConflict(f"cannot clone volume {source.name}: it is not made yet", [reason])

    def _free(self, node: Node, pool: Pool) -> int:
        found = pool.reach.get(node.id)
        return found.free_bytes if found else 0

    def _why_not(self, node: Node, pool: Pool) -> Reason:
        found = pool.reach.get(node.id)
        why = f"it is {node.state.value}" if node.state is not NodeState.UP else "it was not asked yet"
        if found is not None and not found.available:
            why = found.reason or "it does not reach it"
        return Reason("pool.unreachable", f"{node.name}: {why}", node.name, f"novacron pool show {pool.name}")

    def _default(self) -> Pool:
        stored = self._records.get(POOLS, self._default_id)
        if stored is None:
            raise NotFound("the default pool is not recorded: restart the server")
        return stored.record


def _at_least(least: int, asked: int | None, of: str) -> int:
    if asked is not None and asked < least:
        raise InvalidInput.field(
            "size_bytes", f"is less than {of} has, {least} bytes", f"give at least {least}, or leave it out"
        )
    return least if asked is None else asked
