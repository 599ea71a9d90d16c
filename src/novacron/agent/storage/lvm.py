"""A storage pool in an LVM thin pool: volumes are thin logical volumes, raw; what is cloned shares blocks.

volume-<id>              one disk
snap-<id>-<snapshot id>  a snapshot of it: a thin volume of its own
image-<sha256>           an image file's content
making-<name>            what is being made; renamed when it is whole
old-volume-<id>          a volume while a snapshot takes its place; named back if that is cut off
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

from novacron.agent.drivers.base import DiskFile, FileAt
from novacron.agent.storage import locks
from novacron.agent.storage.base import Extent, Space
from novacron.agent.storage.lvm_tool import Lv, LvmTool
from novacron.agent.storage.names import check_digest, check_snapshot, check_volume, is_digest
from novacron.agent.storage.outlet import new_file
from novacron.agent.storage.qemu_img import Opened, QemuImg
from novacron.agent.storage.shelf import format_of
from novacron.agent.storage.tool import Tools, at
from novacron.errors import DriverError, NotFound, Reason
from novacron.model.machine import Disk


class LvmThinPool:
    """devices: where the volume group's devices are. One node's alone: nodes do not share a thin pool."""

    def __init__(self, volume_group: str, thin_pool: str, tools: Tools, devices: Path = Path("/dev")) -> None:
        self._lvm = LvmTool(volume_group, thin_pool, Tools())  # root's work
        self._tools = tools
        self._img = QemuImg(tools)
        self._devices = devices / volume_group
        self._turn = asyncio.Lock()

    async def space(self) -> Space:
        pool = await self._lvm.thin_pool()
        return Space(pool.size_bytes - pool.used_bytes, pool.size_bytes)

    # -- volumes ---------------------------------------------------------------------------------------------

    async def ensure_volume(self, disk: Disk, *, uid: int | None, gid: int | None, in_use: bool = False) -> DiskFile:
        name = _volume(disk.volume_id)
        async with self._turn:
            if name not in await self._mended(disk.volume_id):
                if in_use:
                    raise NotFound(
                        f"volume {disk.volume_id} is missing from the thin pool",
                        [
                            Reason(
                                "volume.missing", "its machine has run before", remedy="start it on the node it ran on"
                            )
                        ],
                    )
                await self._make(disk)
        await self._lvm.activate(name)
        async with self._device(name) as descriptor:
            if uid is not None or gid is not None:
                os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)
        source = FileAt(self._devices / name)
        return DiskFile(volume_id=disk.volume_id, source=source, format="raw", qos=disk.qos, boot_order=disk.boot_order)

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        """:raise StateConflict: a machine uses the source, and no snapshot of it is named."""
        name, source = _volume(disk.volume_id), _volume(source_volume_id)
        async with self._turn:
            if name in await self._mended(disk.volume_id):
                return
            found = await self._need(source_volume_id)
            if source_snapshot_id:
                source = await self._need_snapshot(source_volume_id, source_snapshot_id)
            else:
                _check_idle(found, source_volume_id)
            await self._share(name, source, disk.size_bytes)

    async def grow_volume(self, disk: Disk) -> None:
        async with self._turn:
            found = await self._need(disk.volume_id)
            if found.size_bytes < disk.size_bytes:
                _check_idle(found, disk.volume_id)
                await self._lvm.extend(found.lv_name, disk.size_bytes)

    async def remove_volume(self, volume_id: str) -> None:
        """:raise StateConflict: a machine uses it."""
        name = _volume(volume_id)
        async with self._turn:
            there = await self._mended(volume_id)
            if name in there:
                _check_idle(there[name], volume_id)
            for one in there:
                if one in (f"making-{name}", name) or one.startswith(f"snap-{volume_id}-"):
                    await self._lvm.remove(one)

    async def extent(self, volume_id: str) -> Extent:
        found = await self._need(volume_id)
        return Extent(found.size_bytes, found.used_bytes)

    # -- snapshots -------------------------------------------------------------------------------------------

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        name = _snapshot(volume_id, snapshot_id)
        async with self._turn:
            await self._need(volume_id)
            if name not in await self._lvm.volumes():
                await self._lvm.share(name, _volume(volume_id))

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """:raise StateConflict: a machine uses it. Cut off half-way, the volume is as it was."""
        name = _volume(volume_id)
        async with self._turn:
            found = await self._need(volume_id)
            snapshot = await self._need_snapshot(volume_id, snapshot_id)
            _check_idle(found, volume_id)
            await self._drop_if_there(f"making-{name}")
            await self._lvm.share(f"making-{name}", snapshot)
            await self._lvm.rename(name, f"old-{name}")
            await self._lvm.rename(f"making-{name}", name)
            await self._lvm.remove(f"old-{name}")

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        name = _snapshot(volume_id, snapshot_id)
        async with self._turn:
            await self._need(volume_id)
            await self._drop_if_there(name)

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        found = await self._need(volume_id)
        name = found.lv_name
        if snapshot_id:
            name = await self._need_snapshot(volume_id, snapshot_id)
        else:
            _check_idle(found, volume_id)
        async with self._opened(name) as opened:
            with new_file(to, opened.uid) as descriptor:
                await self._img.export(opened, descriptor)

    # -- images ----------------------------------------------------------------------------------------------

    async def images(self) -> tuple[str, ...]:
        names = (name.removeprefix("image-") for name in await self._lvm.volumes() if name.startswith("image-"))
        return tuple(sorted(name for name in names if is_digest(name)))

    async def keep_image(self, digest: str, file: Path) -> None:
        """Its content is copied in as a guest would see it."""
        name = f"image-{check_digest(digest)}"
        async with self._turn:
            if name in await self._lvm.volumes():
                return
            form, size = await asyncio.to_thread(format_of, file)
            await self._drop_if_there(f"making-{name}")
            await self._lvm.create(f"making-{name}", size)
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                async with self._opened(f"making-{name}") as target:
                    node: dict[str, object] = {
                        "driver": form.value,
                        "file": {"driver": "file", "filename": at(descriptor)},
                    }
                    node |= {"backing": None} if form.value == "qcow2" else {}
                    await self._img.convert(Opened(node=node, descriptors=(descriptor,), uid=target.uid), target, "raw")
            finally:
                os.close(descriptor)
            await self._lvm.rename(f"making-{name}", name)

    async def drop_image(self, digest: str) -> bool:
        """Always gone: what was made from it keeps the blocks they share."""
        async with self._turn:
            await self._drop_if_there(f"image-{check_digest(digest)}")
        return True

    # -- parts -----------------------------------------------------------------------------------------------

    async def _make(self, disk: Disk) -> None:
        name = _volume(disk.volume_id)
        if disk.backing_digest:
            image = f"image-{check_digest(disk.backing_digest)}"
            if image not in await self._lvm.volumes():
                raise NotFound(f"the thin pool holds no image {disk.backing_digest}")
            await self._share(name, image, disk.size_bytes)
        else:
            await self._lvm.create(name, disk.size_bytes)

    async def _share(self, name: str, origin: str, size_bytes: int) -> None:
        made = f"making-{name}"
        await self._drop_if_there(made)
        await self._lvm.share(made, origin)
        if (await self._lvm.volumes())[made].size_bytes < size_bytes:
            await self._lvm.extend(made, size_bytes)
        await self._lvm.rename(made, name)

    async def _mended(self, volume_id: str) -> dict[str, Lv]:
        """What there is, after a revert that was cut off has been taken back or finished."""
        there, name = await self._lvm.volumes(), _volume(volume_id)
        if f"old-{name}" not in there:
            return there
        if name in there:
            await self._lvm.remove(f"old-{name}")
        else:
            await self._lvm.rename(f"old-{name}", name)
        return await self._lvm.volumes()

    async def _need(self, volume_id: str) -> Lv:
        found = (await self._mended(volume_id)).get(_volume(volume_id))
        if found is None:
            raise NotFound(f"the thin pool holds no volume {volume_id}")
        return found

    async def _need_snapshot(self, volume_id: str, snapshot_id: str) -> str:
        name = _snapshot(volume_id, snapshot_id)
        if name not in await self._lvm.volumes():
            raise NotFound(f"volume {volume_id} has no snapshot {snapshot_id}")
        return name

    async def _drop_if_there(self, name: str) -> None:
        if name in await self._lvm.volumes():
            await self._lvm.remove(name)

    @contextlib.asynccontextmanager
    async def _device(self, name: str) -> AsyncIterator[int]:
        descriptor = await asyncio.to_thread(os.open, self._devices / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
                raise DriverError(f"{self._devices / name} is no block device")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.asynccontextmanager
    async def _opened(self, name: str) -> AsyncIterator[Opened]:
        await self._lvm.activate(name)
        async with self._device(name) as descriptor:
            if self._tools.uid is not None and os.fstat(descriptor).st_uid == 0:
                os.fchown(descriptor, self._tools.uid, self._tools.uid)
            node: dict[str, object] = {"driver": "raw", "file": {"driver": "host_device", "filename": at(descriptor)}}
            yield Opened(node=node, descriptors=(descriptor,), uid=os.fstat(descriptor).st_uid)


def _check_idle(found: Lv, volume_id: str) -> None:
    if found.is_open:
        raise locks.in_use(volume_id)


def _volume(volume_id: str) -> str:
    return f"volume-{check_volume(volume_id)}"


def _snapshot(volume_id: str, snapshot_id: str) -> str:
    return f"snap-{check_volume(volume_id)}-{check_snapshot(snapshot_id)}"
