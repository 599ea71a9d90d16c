"""Verbs about pools, volumes and image files.

A volume's verbs are for volumes no running machine uses; what a running machine's disks need is asked of the machine
(machine.adjust, snapshot.*).
"""

from __future__ import annotations

import msgspec

from novacron.model.machine import Disk
from novacron.model.pool import PoolSpec

IMAGES_PATH = "/agent/v1/images/"
"""Below it, on the server with the agents' secret, lie image files by digest; GET, with Range."""

DOOR_PATH = "/images/"
"""Below it they lie on a node's image door, for who shows a ticket (wire.ticket)."""


class PoolProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Can this node reach the pool? → PoolFound"""

    pool: PoolSpec


class PoolFound(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """reason: why it is not available. Sizes in bytes, 0: not known."""

    available: bool
    reason: str = ""
    free_bytes: int = 0
    size_bytes: int = 0


class VolumeCreate(msgspec.Struct, frozen=True, kw_only=True):
    """Make it, empty or a child of an image file (`disk.backing_digest`, fetched when missing). → VolumeReport"""

    pool: PoolSpec
    disk: Disk


class VolumeClone(msgspec.Struct, frozen=True, kw_only=True):
    """Make `disk` with the content of another volume of the same pool, or of a snapshot of it. → VolumeReport"""

    pool: PoolSpec
    disk: Disk
    source_volume_id: str
    source_snapshot_id: str = ""


class VolumeGrow(msgspec.Struct, frozen=True, kw_only=True):
    """Make it at least `disk.size_bytes` large. Never smaller. → VolumeReport"""

    pool: PoolSpec
    disk: Disk


class VolumeDelete(msgspec.Struct, frozen=True, kw_only=True):
    """For good. Absent: fine. → None"""

    pool: PoolSpec
    volume_id: str


class VolumeInspect(msgspec.Struct, frozen=True, kw_only=True):
    """→ VolumeReport :raise NotFound"""

    pool: PoolSpec
    volume_id: str


class VolumeReport(msgspec.Struct, frozen=True, kw_only=True):
    """used_bytes: what it takes in the pool, as far as the pool can say."""

    volume_id: str
    size_bytes: int
    used_bytes: int = 0


class ImageSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file may be fetched: `door` is host:port of another node or of the server, whose certificate has this
    sha256; empty door: the server, over the same address as the line.
    """

    door: str = ""
    fingerprint: str = ""


class ImageFetch(msgspec.Struct, frozen=True, kw_only=True):
    """Have the image file in the pool (or, for kernels and the like, on the node): fetched from the first source that
    gives it, compared with the digest, kept. There already: fine. → None

    :raise NotFound: no source has it. :raise NoRoom
    """

    pool: PoolSpec
    digest: str
    size_bytes: int
    sources: tuple[ImageSource, ...] = ()


class ImagesHeld(msgspec.Struct, frozen=True, kw_only=True):
    """Which image files a node has in a pool. → ImagesFound"""

    pool: PoolSpec


class ImagesFound(msgspec.Struct, frozen=True, kw_only=True):
    digests: tuple[str, ...]


class ImageDrop(msgspec.Struct, frozen=True, kw_only=True):
    """Delete the node's copy if no volume needs it. Absent: fine. → None"""

    pool: PoolSpec
    digest: str


VERBS: dict[str, type[msgspec.Struct]] = {
    "pool.probe": PoolProbe,
    "volume.create": VolumeCreate,
    "volume.clone": VolumeClone,
    "volume.grow": VolumeGrow,
    "volume.delete": VolumeDelete,
    "volume.inspect": VolumeInspect,
    "image.fetch": ImageFetch,
    "image.held": ImagesHeld,
    "image.drop": ImageDrop,
}
