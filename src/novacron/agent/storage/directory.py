"""A storage pool in a directory: images by digest, volumes by id, made whole or not at all.

    pool.id                  a UUID, so that two nodes can see that they share the pool
    images/<sha256>          inspected by the control plane, read-only, never changed
    volumes/<id>.qcow2       one disk: empty, or a copy-on-write child of an image; its snapshots lie inside
    volumes/.making/         volumes that are being made; what a crash leaves here is no volume

A finished volume is linked to its name, which fails when the name is there: a volume is never overwritten. A volume
belongs to the user who runs its machine, and tools that open it run as that user, on descriptors, with every layer
told: what a hostile guest may have done to its file reaches nothing that its machine could not reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from novacron.agent.drivers.base import DiskFile, FileAt, Layer
from novacron.agent.storage import copying, locks, qcow2
from novacron.agent.storage.base import Extent, Space
from novacron.agent.storage.names import check_snapshot, check_volume
from novacron.agent.storage.outlet import new_file, sync_directory
from novacron.agent.storage.qemu_img import Opened, QemuImg
from novacron.agent.storage.shelf import ImageShelf, format_of, is_file
from novacron.agent.storage.tool import Tools, at
from novacron.errors import DriverError, NoRoom, NotFound, Reason, Unavailable
from novacron.model.identity import is_id
from novacron.model.image import DiskFormat
from novacron.model.machine import Disk

_BACKING = re.compile(r"\.\./images/([0-9a-f]{64})\Z")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class DirectoryPool:
    """The pool on this node. Its directory must exist: a pool that is not mounted is not made anew on the node's disk.

    qemu_img: name or path of the program that makes volumes; tools: as whom it runs.
    """

    def __init__(self, pool_dir: Path, qemu_img: str = "qemu-img", tools: Tools | None = None) -> None:
        self._dir = pool_dir.absolute()
        self._tools = tools or Tools()
        self._img = QemuImg(self._tools, qemu_img)
        self._shelf = ImageShelf(self._dir)

    async def pool_id(self) -> str:
        """The pool's own id, made by whoever asks first. :raise Unavailable: the directory is not there."""
        with self._troubles("the pool's id"):
            await self.check()
            return await asyncio.to_thread(self._pool_id)

    async def check(self) -> None:
        """:raise Unavailable: what is at the directory's place is not the pool."""

    def usage(self) -> tuple[int, int]:
        """Bytes free to this process and bytes in all. :raise Unavailable"""
        try:
            seen = os.statvfs(self._dir)
        except OSError as wrong:
            raise self._gone(wrong) from wrong
        return seen.f_bavail * seen.f_frsize, seen.f_blocks * seen.f_frsize

    async def space(self) -> Space:
        await self.check()
        return Space(*await asyncio.to_thread(self.usage))

    # -- volumes ---------------------------------------------------------------------------------------------

    async def ensure_volume(self, disk: Disk, *, uid: int | None, gid: int | None, in_use: bool = False) -> DiskFile:
        """The volume, made when missing; mode 0600 and owned by `uid` and `gid` when given. Idempotent.

        in_use: its machine has run before, so it holds data: one that is missing is not replaced by an empty one.

        :raise NotFound: the image it is a child of is not in the pool, or a volume in use is missing.
        :raise NoRoom: the pool is full. :raise Unavailable: it is not there. :raise DriverError: qemu-img failed.
        After a failure there is no volume, or a whole one.
        """
        path = self._path(disk.volume_id)
        with self._troubles(f"volume {disk.volume_id}"):
            await self.check()
            if not await asyncio.to_thread(is_file, path):
                if in_use:
                    raise NotFound(
                        f"volume {disk.volume_id} is missing from the storage pool {self._dir}",
                        [Reason("volume.missing", "its machine has run before", remedy="mount the pool that holds it")],
                    )
                await self._make(disk)
            async with self._file(disk.volume_id) as descriptor:
                if uid is not None or gid is not None:
                    os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)
                backing = await asyncio.to_thread(self._backing_of, descriptor, disk.volume_id)
        return DiskFile(
            volume_id=disk.volume_id,
            source=FileAt(path),
            format=DiskFormat.QCOW2.value,
            backing=tuple(Layer(FileAt(image), form.value) for image, form in backing),
            qos=disk.qos,
            boot_order=disk.boot_order,
        )

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        """As the contract says. The source cannot be opened for writing meanwhile.

        :raise StateConflict: a running machine uses the source.
        """
        source, target = self._path(source_volume_id), self._path(disk.volume_id)
        with self._troubles(f"volume {disk.volume_id}"):
            await self.check()
            if await asyncio.to_thread(is_file, target):
                return
            if not await asyncio.to_thread(is_file, source):
                raise self._no_volume(source_volume_id)
            async with self._making(disk.volume_id) as made:
                async with self._file(source_volume_id) as descriptor:
                    locks.hold_still(descriptor, source_volume_id)
                    await copying.copy(descriptor, made)
                async with self._opened(made, disk.volume_id) as volume:
                    await self._shed(volume, source_volume_id, source_snapshot_id)
                    if (found := qcow2.read(made)) and found.size_bytes < disk.size_bytes:
                        await self._img.resize(volume, disk.size_bytes)

    async def grow_volume(self, disk: Disk) -> None:
        async with self._volume(disk.volume_id) as volume:
            if (await self.extent(disk.volume_id)).size_bytes < disk.size_bytes:
                await self._img.resize(volume, disk.size_bytes)

    async def remove_volume(self, volume_id: str) -> None:
        """Delete a volume for good. Absent: fine. :raise StateConflict: a running machine uses it."""
        path = self._path(volume_id)
        with self._troubles(f"volume {volume_id}"):
            await self.check()
            with contextlib.suppress(NotFound):
                async with self._file(volume_id) as descriptor:
                    locks.hold_still(descriptor, volume_id)
                    await asyncio.to_thread(path.unlink, missing_ok=True)
            await asyncio.to_thread(self._clear, volume_id)

    async def extent(self, volume_id: str) -> Extent:
        with self._troubles(f"volume {volume_id}"):
            await self.check()
            async with self._file(volume_id) as descriptor:
                header = await asyncio.to_thread(qcow2.read, descriptor)
                if header is None:
                    raise self._damaged(volume_id, "it has no qcow2 header")
                return Extent(header.size_bytes, os.fstat(descriptor).st_blocks * 512)

    # -- snapshots, inside the volume ------------------------------------------------------------------------

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._volume(volume_id) as volume:
            if check_snapshot(snapshot_id) not in await self._img.snapshots(volume):
                await self._img.snapshot(volume, "c", snapshot_id)

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._volume(volume_id) as volume:
            if check_snapshot(snapshot_id) not in await self._img.snapshots(volume):
                raise NotFound(f"volume {volume_id} has no snapshot {snapshot_id}")
            await self._img.snapshot(volume, "a", snapshot_id)

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._volume(volume_id) as volume:
            if check_snapshot(snapshot_id) in await self._img.snapshots(volume):
                await self._img.snapshot(volume, "d", snapshot_id)

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        async with self._volume(volume_id) as volume:
            if snapshot_id and check_snapshot(snapshot_id) not in await self._img.snapshots(volume.only_read()):
                raise NotFound(f"volume {volume_id} has no snapshot {snapshot_id}")
            with new_file(to, volume.uid) as descriptor:
                seen = volume.only_read() if snapshot_id else volume  # what a snapshot holds does not change
                await self._img.export(seen, descriptor, snapshot_id=snapshot_id)

    # -- images ----------------------------------------------------------------------------------------------

    def machines_dir(self) -> Path:
        return self._dir / "machines"

    def image_path(self, digest: str) -> Path:
        """:raise NotFound: the pool does not hold it. :raise InvalidInput: not a sha256 digest."""
        return self._shelf.path(digest)

    async def images(self) -> tuple[str, ...]:
        with self._troubles("the images"):
            await self.check()
            return await asyncio.to_thread(self._shelf.held)

    async def keep_image(self, digest: str, file: Path) -> None:
        with self._troubles(f"image {digest}"):
            await self.check()
            await self._shelf.keep(digest, file)

    async def drop_image(self, digest: str) -> bool:
        with self._troubles(f"image {digest}"):
            await self.check()
            if digest in await asyncio.to_thread(self._needed):
                return False
            await asyncio.to_thread(self._shelf.drop, digest)
            return True

    # -- parts -----------------------------------------------------------------------------------------------

    def _path(self, volume_id: str) -> Path:
        return self._dir / "volumes" / f"{check_volume(volume_id)}.qcow2"

    async def _make(self, disk: Disk) -> None:
        size, below = disk.size_bytes, None
        if disk.backing_digest:  # relative, so that every node finds it wherever the pool is mounted
            form, least = await asyncio.to_thread(format_of, self.image_path(disk.backing_digest))
            size, below = max(size, least), (f"../images/{disk.backing_digest}", form.value)
        async with self._making(disk.volume_id) as descriptor:
            await self._img.create(descriptor, size, below)

    @contextlib.asynccontextmanager
    async def _making(self, volume_id: str) -> AsyncIterator[int]:
        """An open file without a name of its own; it becomes the volume when the block ends well."""
        making = await asyncio.to_thread(self._making_dir) / f"{volume_id}.{uuid.uuid4()}"
        try:
            descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._hand_to_tools(descriptor)
                yield descriptor
                await asyncio.to_thread(_finish, descriptor, making, self._path(volume_id))
            finally:
                os.close(descriptor)
        finally:
            making.unlink(missing_ok=True)

    def _making_dir(self) -> Path:
        volumes = self._dir / "volumes"
        if not volumes.exists():
            volumes.mkdir(exist_ok=True)
            volumes.chmod(0o711)  # whatever the umask: the machines' users pass through, and list nothing
        (volumes / ".making").mkdir(mode=0o700, exist_ok=True)
        return volumes / ".making"

    @contextlib.asynccontextmanager
    async def _volume(self, volume_id: str) -> AsyncIterator[Opened]:
        """The volume of that id as tools open it."""
        with self._troubles(f"volume {volume_id}"):
            await self.check()
            async with self._file(volume_id) as descriptor:
                self._hand_to_tools(descriptor)
                async with self._opened(descriptor, volume_id) as volume:
                    yield volume

    @contextlib.asynccontextmanager
    async def _opened(self, descriptor: int, volume_id: str) -> AsyncIterator[Opened]:
        node: dict[str, object] = {
            "driver": "qcow2",
            "file": {**_file_node(descriptor), "discard": "unmap"},
            "discard": "unmap",
        }
        uid = os.fstat(descriptor).st_uid if self._tools.uid is not None else None
        descriptors = [descriptor]
        with contextlib.ExitStack() as opened:
            below: dict[str, object] | None = None
            for image, form in await asyncio.to_thread(self._backing_of, descriptor, volume_id):
                descriptors.append(os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
                opened.callback(os.close, descriptors[-1])
                below = {"driver": form.value, "read-only": True, "file": _file_node(descriptors[-1])}
                below |= {"backing": None} if form is DiskFormat.QCOW2 else {}
            yield Opened(node=node | {"backing": below}, descriptors=tuple(descriptors), uid=uid)

    @contextlib.asynccontextmanager
    async def _file(self, volume_id: str) -> AsyncIterator[int]:
        """The open file, a regular one. In a thread: a file server may take its time."""
        try:
            descriptor = await asyncio.to_thread(_open_regular, self._path(volume_id))
        except FileNotFoundError as missing:
            raise self._no_volume(volume_id) from missing
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _hand_to_tools(self, descriptor: int) -> None:
        """What belongs to root belongs to no machine yet: no tool shall run as root for it."""
        if self._tools.uid is not None and os.fstat(descriptor).st_uid == 0:
            os.fchown(descriptor, self._tools.uid, self._tools.uid)

    def _backing_of(self, descriptor: int, volume_id: str) -> list[tuple[Path, DiskFormat]]:
        """The image file below, as the volume itself says. :raise DriverError: it says something else."""
        header = qcow2.read(descriptor)
        if header is None or header.data_file:
            raise self._damaged(volume_id, "it has no qcow2 header" if header is None else "it names a data file")
        if not header.backing:
            return []
        named = _BACKING.match(header.backing)
        if named is None:
            raise self._damaged(volume_id, "it names a file outside the pool's images")
        image = self.image_path(named[1])
        return [(image, format_of(image)[0])]

    async def _shed(self, volume: Opened, source_volume_id: str, keep_content_of: str) -> None:
        """Make a copied volume what the snapshot was, and drop the snapshots that came along."""
        held = await self._img.snapshots(volume)
        if keep_content_of:
            if keep_content_of not in held:
                raise NotFound(f"volume {source_volume_id} has no snapshot {keep_content_of}")
            await self._img.snapshot(volume, "a", keep_content_of)
        for name in held:
            await self._img.snapshot(volume, "d", name)

    def _clear(self, volume_id: str) -> None:
        for left in (self._dir / "volumes" / ".making").glob(f"{volume_id}.*"):
            left.unlink(missing_ok=True)

    def _needed(self) -> set[str]:
        """Digests of the images that volumes, whole or being made, are children of."""
        found = set()
        for path in (*(self._dir / "volumes").glob("*.qcow2"), *(self._dir / "volumes" / ".making").glob("*")):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                header = qcow2.read(file.fileno())
                if header and (named := _BACKING.match(header.backing)):
                    found.add(named[1])
        return found

    def _pool_id(self) -> str:
        file = self._dir / "pool.id"
        mine = self._dir / f".pool.id.{uuid.uuid4()}"
        if not file.exists():
            try:
                mine.write_text(f"{uuid.uuid4()}\n")
                with contextlib.suppress(FileExistsError):  # another was first: its id counts
                    os.link(mine, file)
            finally:
                mine.unlink(missing_ok=True)
        found = file.read_text().strip()
        if not is_id(found):
            raise Unavailable(f"{file} does not hold a pool's id: the pool is damaged, or this is no pool")
        return found

    @contextlib.contextmanager
    def _troubles(self, what: str) -> Iterator[None]:
        """The system's errors in our words."""
        try:
            yield
        except OSError as wrong:
            if wrong.errno in _FULL:
                raise NoRoom(f"the storage pool {self._dir} is full: make room or take another") from wrong
            if not self._dir.is_dir() or wrong.errno == errno.ESTALE:
                raise self._gone(wrong) from wrong
            raise DriverError(f"{what} in the storage pool {self._dir}: {wrong.strerror or wrong}") from wrong

    def _gone(self, wrong: OSError) -> Unavailable:
        return Unavailable(f"the storage pool {self._dir} cannot be used: {wrong.strerror}: is it mounted?")

    def _no_volume(self, volume_id: str) -> NotFound:
        return NotFound(f"the storage pool {self._dir} holds no volume {volume_id}")

    def _damaged(self, volume_id: str, why: str) -> DriverError:
        return DriverError(f"volume {volume_id} is damaged: {why}")


def _open_regular(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DriverError(f"{path} is no regular file")
    return descriptor


def _file_node(descriptor: int) -> dict[str, object]:
    return {"driver": "file", "filename": at(descriptor)}


def _finish(descriptor: int, making: Path, path: Path) -> None:
    """Give the whole volume its name, for good. One that is there already stays."""
    os.fsync(descriptor)
    with contextlib.suppress(FileExistsError):
        os.link(making, path)
    sync_directory(path.parent)
