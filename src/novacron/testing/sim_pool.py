"""A storage pool for simulations: in a directory that all nodes share, volumes whose content is told, not kept."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, FileAt
from novacron.agent.storage.base import Extent, Space
from novacron.errors import NotFound
from novacron.model.machine import Disk
from novacron.model.pool import PoolSpec

POOL_ID = "sim-pool"


class SimVolume(msgspec.Struct, frozen=True):
    """What a volume's file says. content: `blank`, an image's digest, or the id of what it was cloned from."""

    size_bytes: int = 0
    content: str = "blank"
    snapshots: dict[str, str] = {}  # id -> content then
    memory: dict[str, str] = {}  # id -> what the machine remembered then, where it was taken with memory


class SimPool:
    """Implements agent.storage.depot.OwnPool. Images are taken to be there."""

    def __init__(self, root: Path, pool_id: str = POOL_ID) -> None:
        self._root = root
        self._pool_id = pool_id

    def sibling(self, spec: PoolSpec) -> SimPool:
        """The pool a spec describes: beside this one, shared as well."""
        return SimPool(self._root.parent / f"pool-{spec.id}")

    async def pool_id(self) -> str:
        return self._pool_id

    def usage(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    async def space(self) -> Space:
        return Space(*self.usage())

    def machines_dir(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root / "machines"

    def image_path(self, digest: str) -> Path:
        return self._root / "images" / digest

    async def ensure_volume(
        self,
        disk: Disk,
        *,
        uid: int | None,  # noqa: ARG002
        gid: int | None,  # noqa: ARG002
        in_use: bool = False,
    ) -> DiskFile:
        path = self._path(disk.volume_id)
        if not path.exists():
            if in_use:
                raise NotFound(f"volume {disk.volume_id} is missing from the pool")
            self._write(disk.volume_id, SimVolume(disk.size_bytes, disk.backing_digest or "blank"))
        return DiskFile(volume_id=disk.volume_id, source=FileAt(path), format="qcow2")

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        source = self._read(source_volume_id)
        content = self._snapshot(source, source_snapshot_id) if source_snapshot_id else source.content
        if not self._path(disk.volume_id).exists():
            self._write(disk.volume_id, SimVolume(max(disk.size_bytes, source.size_bytes), content))

    async def grow_volume(self, disk: Disk) -> None:
        volume = self._read(disk.volume_id)
        size = max(disk.size_bytes, volume.size_bytes)
        self._write(disk.volume_id, msgspec.structs.replace(volume, size_bytes=size))

    async def remove_volume(self, volume_id: str) -> None:
        self._path(volume_id).unlink(missing_ok=True)

    async def extent(self, volume_id: str) -> Extent:
        return Extent(self._read(volume_id).size_bytes, 0)

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        volume = self._read(volume_id)
        taken = {snapshot_id: volume.content} | volume.snapshots
        self._write(volume_id, msgspec.structs.replace(volume, snapshots=taken))

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        volume = self._read(volume_id)
        self._write(volume_id, msgspec.structs.replace(volume, content=self._snapshot(volume, snapshot_id)))

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        volume = self._read(volume_id)
        left = {key: content for key, content in volume.snapshots.items() if key != snapshot_id}
        self._write(volume_id, msgspec.structs.replace(volume, snapshots=left))

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        volume = self._read(volume_id)
        to.write_text(self._snapshot(volume, snapshot_id) if snapshot_id else volume.content)  # noqa: ASYNC240

    async def images(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in (self._root / "images").glob("*")))

    async def keep_image(self, digest: str, file: Path) -> None:
        target = self.image_path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())  # noqa: ASYNC240

    async def drop_image(self, digest: str) -> bool:
        if any(self._read(volume_id).content == digest for volume_id in self.volumes()):
            return False
        self.image_path(digest).unlink(missing_ok=True)
        return True

    # -- for tests ---------------------------------------------------------------------------------------------

    def volumes(self) -> list[str]:
        """Ids of the volumes there are."""
        return sorted(path.stem for path in (self._root / "volumes").glob("*.qcow2"))

    def make(self, volume_id: str) -> None:
        """As a verb about volumes would."""
        self._write(volume_id, SimVolume())

    def _path(self, volume_id: str) -> Path:
        return self._root / "volumes" / f"{volume_id}.qcow2"

    def _read(self, volume_id: str) -> SimVolume:
        try:
            return msgspec.json.decode(self._path(volume_id).read_bytes(), type=SimVolume)
        except FileNotFoundError as missing:
            raise NotFound(f"the pool holds no volume {volume_id}") from missing

    def _write(self, volume_id: str, volume: SimVolume) -> None:
        path = self._path(volume_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(volume))

    def _snapshot(self, volume: SimVolume, snapshot_id: str) -> str:
        try:
            return volume.snapshots[snapshot_id]
        except KeyError as missing:
            raise NotFound(f"the volume has no snapshot {snapshot_id}") from missing
