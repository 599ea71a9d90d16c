"""A storage pool of ready-made block units (LUNs, exports): each holds at most one volume, as qcow2 inside it.

Which unit a volume has is said by the pool's options (`unit.<volume id>`): it is decided in one place, where it is
recorded, and never here, where two nodes could decide at once. A unit without a volume begins with zeros; a unit that
begins with anything else than a volume was not given to us, and is left alone. A volume being made is one whose header
names a file below called `making`; its last step takes that name away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

from novacron.agent.drivers.base import DiskFile, FileAt, Source
from novacron.agent.storage import keys, qcow2
from novacron.agent.storage.base import Extent, Pool, Space
from novacron.agent.storage.names import check_snapshot, check_volume
from novacron.agent.storage.outlet import new_file
from novacron.agent.storage.qemu_img import Opened, QemuImg
from novacron.agent.storage.shelf import format_of
from novacron.agent.storage.tool import Tools, at
from novacron.errors import Conflict, InvalidInput, NoRoom, NotFound, Reason
from novacron.model.image import DiskFormat
from novacron.model.machine import Disk

HEAD_BYTES = 1 << 20  # what must be zero in a unit that is free, and is wiped from one that is given back
MAX_COUNTED = 16
MAKING = "making"


class UnitPool:
    """images: the node's own pool, which keeps the image files. at_unit: where a unit's bytes are."""

    def __init__(
        self,
        units: tuple[str, ...],
        given: Mapping[str, str],
        at_unit: Callable[[str], Source],
        images: Pool,
        image_path: Callable[[str], Path],
        tools: Tools,
    ) -> None:
        self._units = units
        self._given = given
        self._at_unit = at_unit
        self._images = images
        self._image_path = image_path
        self._tools = tools
        self._img = QemuImg(tools)
        self._turn = asyncio.Lock()

    async def space(self) -> Space:
        """Of all units, when they are few; the first tells whether they can be reached at all."""
        sizes = [await self._size(unit) for unit in self._units[:MAX_COUNTED]]
        if len(self._units) > MAX_COUNTED:
            return Space(0, 0)
        taken = set(self._given.values())
        free = sum(size for unit, size in zip(self._units, sizes, strict=True) if unit not in taken)
        return Space(free, sum(sizes))

    # -- volumes ---------------------------------------------------------------------------------------------

    async def ensure_volume(
        self,
        disk: Disk,
        *,
        uid: int | None,  # noqa: ARG002  (who may reach a unit is said by its key)
        gid: int | None,  # noqa: ARG002
        in_use: bool = False,
    ) -> DiskFile:
        """As the contract says; a child of an image begins as a copy of it.

        :raise Conflict: the unit holds something that is no volume.
        """
        source = self._source(disk.volume_id)
        async with self._turn:
            if await self._header(source) is None:
                if in_use:
                    raise self._missing(disk.volume_id)
                await self._make(disk, source)
        form = DiskFormat.QCOW2.value
        return DiskFile(volume_id=disk.volume_id, source=source, format=form, qos=disk.qos, boot_order=disk.boot_order)

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        """As the contract says, by copying: units share no blocks."""
        target = self._source(disk.volume_id)
        async with self._turn, self._volume(source_volume_id) as volume:
            if await self._header(target) is not None:
                return
            if source_snapshot_id:
                await self._need(volume, source_volume_id, source_snapshot_id)
            size = max(disk.size_bytes, (await self._extent(source_volume_id)).size_bytes)
            await self._format(target, size, MAKING)
            with self._open(target) as made:
                await self._img.convert(volume, made, "qcow2", snapshot_id=source_snapshot_id)
                await self._img.forget_below(made)

    async def grow_volume(self, disk: Disk) -> None:
        """:raise NoRoom: its unit is too small."""
        async with self._turn, self._volume(disk.volume_id) as volume:
            if (await self._extent(disk.volume_id)).size_bytes < disk.size_bytes:
                await self._check_fits(self._source(disk.volume_id), disk.size_bytes)
                await self._img.resize(volume, disk.size_bytes)

    async def remove_volume(self, volume_id: str) -> None:
        """Wipe the beginning of its unit, so that nothing finds what is left. Absent: fine."""
        if check_volume(volume_id) not in self._given:
            return
        source = self._source(volume_id)
        async with self._turn:
            head = await self._head(source)
            if qcow2.parse(head) is not None:
                await self._write_head(source, bytes(HEAD_BYTES))

    async def extent(self, volume_id: str) -> Extent:
        """What it takes is its whole unit."""
        return await self._extent(volume_id)

    # -- snapshots, inside the volume ------------------------------------------------------------------------

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._turn, self._volume(volume_id) as volume:
            if check_snapshot(snapshot_id) not in await self._img.snapshots(volume):
                await self._img.snapshot(volume, "c", snapshot_id)

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._turn, self._volume(volume_id) as volume:
            await self._need(volume, volume_id, snapshot_id)
            await self._img.snapshot(volume, "a", snapshot_id)

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        async with self._turn, self._volume(volume_id) as volume:
            if check_snapshot(snapshot_id) in await self._img.snapshots(volume):
                await self._img.snapshot(volume, "d", snapshot_id)

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        async with self._turn, self._volume(volume_id) as volume:
            if snapshot_id:
                await self._need(volume, volume_id, snapshot_id)
            with new_file(to, self._tools.uid) as descriptor:
                await self._img.export(volume, descriptor, snapshot_id=snapshot_id)

    # -- images: the node's own pool keeps them; a volume needs its image no more once it is made --------------

    async def images(self) -> tuple[str, ...]:
        return await self._images.images()

    async def keep_image(self, digest: str, file: Path) -> None:
        await self._images.keep_image(digest, file)

    async def drop_image(self, digest: str) -> bool:
        return await self._images.drop_image(digest)

    # -- parts -----------------------------------------------------------------------------------------------

    def _source(self, volume_id: str) -> Source:
        unit = self._given.get(check_volume(volume_id))
        if unit is None:
            remedy = f"set the pool's option unit.{volume_id} to a free unit"
            raise NotFound(
                f"volume {volume_id} has been given no unit", [Reason("unit.missing", "no unit", "", remedy)]
            )
        if unit not in self._units:
            raise InvalidInput.field(f"options.unit.{volume_id}", f"{unit!r} is not among the pool's units")
        return self._at_unit(unit)

    @contextlib.contextmanager
    def _open(self, source: Source, form: str = "qcow2") -> Iterator[Opened]:
        with keys.opened(source, self._tools.uid, form) as unit:
            yield unit

    @contextlib.asynccontextmanager
    async def _volume(self, volume_id: str) -> AsyncIterator[Opened]:
        source = self._source(volume_id)
        if await self._header(source) is None:
            raise self._missing(volume_id)
        with self._open(source) as volume:
            yield volume

    async def _need(self, volume: Opened, volume_id: str, snapshot_id: str) -> None:
        if check_snapshot(snapshot_id) not in await self._img.snapshots(volume):
            raise NotFound(f"volume {volume_id} has no snapshot {snapshot_id}")

    async def _size(self, unit: str) -> int:
        with self._open(self._at_unit(unit), "raw") as opened:
            return await self._img.size(opened)

    async def _extent(self, volume_id: str) -> Extent:
        source = self._source(volume_id)
        header = await self._header(source)
        if header is None:
            raise self._missing(volume_id)
        return Extent(header.size_bytes, await self._size(self._given[volume_id]))

    async def _head(self, source: Source) -> bytes:
        with self._memory() as descriptor:
            with self._open(source, "raw") as unit:
                await self._img.head(unit, descriptor, HEAD_BYTES)
            return os.pread(descriptor, HEAD_BYTES, 0)

    async def _header(self, source: Source) -> qcow2.Header | None:
        """Of the volume there; None: there is none, or half of one. :raise Conflict: there is something else."""
        head = await self._head(source)
        header = qcow2.parse(head)
        if header is None and any(head):
            remedy = "give the pool units that begin with 1 MiB of zeros"
            raise Conflict(
                "the unit holds something that is no volume", [Reason("unit.taken", "", str(source), remedy)]
            )
        if header is not None and (header.data_file or header.backing not in ("", MAKING)):
            raise Conflict("the unit holds a volume that is not ours", [Reason("unit.taken", "", str(source))])
        return None if header is None or header.backing == MAKING else header

    async def _make(self, disk: Disk, source: Source) -> None:
        if not disk.backing_digest:
            await self._format(source, disk.size_bytes)
            return
        image = self._image_path(disk.backing_digest)
        form, least = await asyncio.to_thread(format_of, image)
        await self._format(source, max(disk.size_bytes, least), MAKING)
        descriptor = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with self._open(source) as made, keys.opened(FileAt(Path(at(descriptor))), None, form.value) as below:
                copied = Opened(node=below.node, descriptors=(descriptor,), uid=self._tools.uid)
                await self._img.convert(copied, made, "qcow2")
                await self._img.forget_below(made)
        finally:
            os.close(descriptor)

    async def _format(self, source: Source, size_bytes: int, below: str = "") -> None:
        """Put an empty volume into the unit: what makes it one, its header, comes last."""
        await self._check_fits(source, size_bytes)
        with self._memory() as descriptor:
            await self._img.create(descriptor, size_bytes, (below, "raw") if below else None)
            header = os.pread(descriptor, qcow2.CLUSTER_BYTES, 0)
            os.pwrite(descriptor, bytes(len(header)), 0)
            await self._write(source, descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, header, 0)
            await self._write(source, descriptor)

    async def _check_fits(self, source: Source, size_bytes: int) -> None:
        with self._open(source, "raw") as unit:
            has, needs = await self._img.size(unit), await self._img.measure(size_bytes)
        if needs > has:
            raise NoRoom(f"the unit has {has} bytes; a volume of {size_bytes} needs {needs}")

    async def _write_head(self, source: Source, head: bytes) -> None:
        with self._memory() as descriptor:
            os.pwrite(descriptor, head, 0)
            await self._write(source, descriptor)

    async def _write(self, source: Source, descriptor: int) -> None:
        file: dict[str, object] = {"driver": "raw", "file": {"driver": "file", "filename": at(descriptor)}}
        with self._open(source, "raw") as unit:
            await self._img.convert(Opened(node=file, descriptors=(descriptor,), uid=self._tools.uid), unit, "raw")

    @contextlib.contextmanager
    def _memory(self) -> Iterator[int]:
        """A file on no disk that the tools may read and write."""
        descriptor = os.memfd_create("unit", os.MFD_CLOEXEC)
        try:
            if self._tools.uid is not None:
                os.fchown(descriptor, self._tools.uid, self._tools.uid)
            yield descriptor
        finally:
            os.close(descriptor)

    def _missing(self, volume_id: str) -> NotFound:
        return NotFound(
            f"volume {volume_id} is not in its unit {self._given.get(volume_id)}",
            [Reason("volume.missing", "its machine has run before", remedy="give it the unit that holds it")],
        )
