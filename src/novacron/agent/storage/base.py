"""The contract of a storage pool as a node sees it (suite: tests/contract/test_pool.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from novacron.agent.drivers.base import DiskFile
from novacron.model.machine import Disk


class Space(msgspec.Struct, frozen=True):
    """Bytes free to volumes, and in all. 0: the pool cannot say."""

    free_bytes: int
    size_bytes: int


class Extent(msgspec.Struct, frozen=True):
    """A volume's size as its guest sees it, and what it takes in the pool."""

    size_bytes: int
    used_bytes: int


class Pool(Protocol):
    """What every pool can do. Every verb is idempotent: asked again, it finds its work done.

    A verb about a volume is for one that no running machine has open, but `ensure_volume` of one that is there.
    Each raises Unavailable (the pool cannot be reached), NoRoom (it is full), NotFound, DriverError (a tool failed),
    Unsupported (this kind of pool cannot; its reason says what can). After a failure there is no volume, or a whole
    one: never half of one under its name.
    """

    async def space(self) -> Space:
        """:raise Unavailable: it cannot be reached; in words a person can act on."""
        ...

    async def ensure_volume(self, disk: Disk, *, uid: int | None, gid: int | None, in_use: bool = False) -> DiskFile:
        """The volume as a machine run by `uid` opens it; made when missing, unless it is `in_use` (then NotFound).

        :raise NotFound: the image file it is a child of is not in the pool: `keep_image` first.
        """
        ...

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        """Make `disk` with the source's content (as of its snapshot). Its time does not grow with size where the pool
        can share blocks.
        """
        ...

    async def grow_volume(self, disk: Disk) -> None:
        """To at least `disk.size_bytes`; never smaller."""
        ...

    async def remove_volume(self, volume_id: str) -> None:
        """For good, with its snapshots. Absent: fine."""
        ...

    async def extent(self, volume_id: str) -> Extent:
        """:raise NotFound"""
        ...

    # -- snapshots of volumes at rest

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None: ...

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """The volume's content is the snapshot's; the other snapshots stay."""
        ...

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Absent: fine."""
        ...

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        """Write the volume as of the snapshot (empty id: as it is) to a new, self-contained, compressed qcow2 file."""
        ...

    # -- image files, by sha256 digest

    async def images(self) -> tuple[str, ...]:
        """Digests of those the pool holds."""
        ...

    async def keep_image(self, digest: str, file: Path) -> None:
        """Have the inspected local `file` (which has that digest) in the pool. It may be moved or linked there."""
        ...

    async def drop_image(self, digest: str) -> bool:
        """Take it away if no volume of the pool needs it; whether it is gone."""
        ...
