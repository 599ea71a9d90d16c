"""A storage pool in a Ceph cluster: volumes are RBD images, children of an image file's snapshot share its blocks.

    volume-<id>             one disk, raw; its snapshots are RBD snapshots of the same ids
    image-<sha256>@base     an image file's content, read-only
    volume-<id>@clone-<id>  what another volume was cloned from
    making-<name>.<uuid>    what is being made; renamed when it is whole

Nothing that is asked to go is kept by its children: they are given blocks of their own first.

Ceph tells who has an image open by the client's watch on it, and counts a client that was killed for another while.
What must not meet a machine therefore waits for that while before it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, FileAt, RbdAt
from novacron.agent.storage import keys
from novacron.agent.storage.base import Extent, Space
from novacron.agent.storage.names import check_digest, check_snapshot, check_volume, is_digest
from novacron.agent.storage.outlet import new_file
from novacron.agent.storage.qemu_img import Opened, QemuImg
from novacron.agent.storage.rbd_tool import RbdTool
from novacron.agent.storage.shelf import format_of
from novacron.agent.storage.tool import Tools, at
from novacron.clock import Clock
from novacron.errors import NotFound, Reason, StateConflict
from novacron.model.machine import Disk

BASE = "base"
WATCH_S = 30.0  # for how long Ceph counts a client that it hears nothing of, unless it is told otherwise
PATIENCE_S = WATCH_S + 10.0
LOOK_INTERVAL_S = 1.0


class RbdPool:
    """at: the pool, and how to reach it; its image is not used."""

    def __init__(self, place: RbdAt, tools: Tools, clock: Clock) -> None:
        self._at = place
        self._tools = tools
        self._clock = clock
        self._rbd = RbdTool(place, tools)
        self._img = QemuImg(tools)

    async def space(self) -> Space:
        free, used = await self._rbd.space()
        return Space(free, free + used)

    # -- volumes ---------------------------------------------------------------------------------------------

    async def ensure_volume(
        self,
        disk: Disk,
        *,
        uid: int | None,  # noqa: ARG002  (who may reach an image is said by a key)
        gid: int | None,  # noqa: ARG002
        in_use: bool = False,
    ) -> DiskFile:
        name = _volume(disk.volume_id)
        if disk.backing_digest:
            check_digest(disk.backing_digest)
        if not await self._rbd.has(name):
            if in_use:
                raise NotFound(
                    f"volume {disk.volume_id} is missing from the Ceph pool {self._at.pool}",
                    [Reason("volume.missing", "its machine has run before", remedy="name the pool that holds it")],
                )
            async with self._making(name) as made:
                if disk.backing_digest:
                    await self._need_image(disk.backing_digest)
                    await self._rbd.clone(_image(disk.backing_digest), BASE, made, disk.size_bytes)
                else:
                    await self._rbd.create(made, disk.size_bytes)
        return DiskFile(
            volume_id=disk.volume_id,
            source=self._source(name),
            format="raw",
            qos=disk.qos,
            boot_order=disk.boot_order,
        )

    async def clone_volume(self, disk: Disk, source_volume_id: str, source_snapshot_id: str = "") -> None:
        """:raise StateConflict: a machine uses the source, and no snapshot of it is named."""
        name, source = _volume(disk.volume_id), _volume(source_volume_id)
        if await self._rbd.has(name):
            return
        snapshot = source_snapshot_id and check_snapshot(source_snapshot_id)
        if snapshot:
            await self._need_snapshot(source_volume_id, snapshot)
        else:
            await self._need(source_volume_id)
            await self._check_idle(source_volume_id)
            snapshot = f"clone-{disk.volume_id}"
            if snapshot in await self._rbd.snapshots(source):  # of an earlier try: its content may be old
                await self._let_go(source, snapshot)
            await self._rbd.snap("create", source, snapshot)
        await self._rbd.protect(source, snapshot)
        async with self._making(name) as made:
            await self._rbd.clone(source, snapshot, made, disk.size_bytes)

    async def grow_volume(self, disk: Disk) -> None:
        """:raise StateConflict: a machine uses it."""
        if (await self._need(disk.volume_id)) < disk.size_bytes:
            await self._check_idle(disk.volume_id)
            await self._rbd.resize(_volume(disk.volume_id), disk.size_bytes)

    async def remove_volume(self, volume_id: str) -> None:
        """:raise StateConflict: a machine uses it."""
        name = _volume(volume_id)
        await self._clear(name)
        if not await self._rbd.has(name):
            return
        await self._check_idle(volume_id)
        for snapshot in await self._rbd.snapshots(name):
            await self._let_go(name, snapshot)
        await self._rbd.remove(name)

    async def extent(self, volume_id: str) -> Extent:
        size = await self._need(volume_id)
        return Extent(size, await self._rbd.used(_volume(volume_id)))

    # -- snapshots -------------------------------------------------------------------------------------------

    async def take_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """Of a volume at rest, or of one whose machine stands still."""
        await self._need(volume_id)
        if check_snapshot(snapshot_id) not in await self._rbd.snapshots(_volume(volume_id)):
            await self._rbd.snap("create", _volume(volume_id), snapshot_id)

    async def revert_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        """:raise StateConflict: a machine uses it."""
        await self._need_snapshot(volume_id, snapshot_id)
        await self._check_idle(volume_id)
        await self._rbd.snap("rollback", _volume(volume_id), snapshot_id)

    async def delete_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        await self._need(volume_id)
        if check_snapshot(snapshot_id) in await self._rbd.snapshots(_volume(volume_id)):
            await self._let_go(_volume(volume_id), snapshot_id)

    async def export_snapshot(self, volume_id: str, snapshot_id: str, to: Path) -> None:
        if snapshot_id:
            await self._need_snapshot(volume_id, snapshot_id)
        else:
            await self._need(volume_id)
        with self._reading(_volume(volume_id), snapshot_id) as opened, new_file(to, self._tools.uid) as file:
            await self._img.export(opened, file)

    # -- images ----------------------------------------------------------------------------------------------

    async def images(self) -> tuple[str, ...]:
        names = (name.removeprefix("image-") for name in await self._rbd.names() if name.startswith("image-"))
        return tuple(sorted(name for name in names if is_digest(name)))

    async def keep_image(self, digest: str, file: Path) -> None:
        """Its content is copied in as a guest would see it."""
        name = _image(digest)
        if await self._rbd.has(name):
            return
        form, size = await asyncio.to_thread(format_of, file)
        async with self._making(name) as made:
            await self._rbd.create(made, size)
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with (
                    keys.opened(self._source(made), self._tools.uid) as target,
                    keys.opened(FileAt(Path(at(descriptor))), self._tools.uid, form.value) as source,
                ):
                    source = msgspec.structs.replace(source, descriptors=(descriptor,))
                    await self._img.convert(source, target, "raw")
            finally:
                os.close(descriptor)
            await self._rbd.snap("create", made, BASE)
            await self._rbd.protect(made, BASE)

    async def drop_image(self, digest: str) -> bool:
        name = _image(digest)
        await self._clear(name)
        if not await self._rbd.has(name):
            return True
        if await self._rbd.children(name, BASE):
            return False
        await self._let_go(name, BASE)
        await self._rbd.remove(name)
        return True

    # -- parts -----------------------------------------------------------------------------------------------

    def _source(self, name: str) -> RbdAt:
        return msgspec.structs.replace(self._at, image=name)

    @contextlib.contextmanager
    def _reading(self, name: str, snapshot: str) -> Iterator[Opened]:
        with keys.opened(self._source(name), self._tools.uid, snapshot=snapshot) as opened:
            yield opened

    @contextlib.asynccontextmanager
    async def _making(self, name: str) -> AsyncIterator[str]:
        """A name of its own; what is made under it gets its own name when the block ends well, else it goes."""
        await self._clear(name)
        made = f"making-{name}.{uuid.uuid4()}"
        try:
            yield made
            await self._rbd.rename(made, name)
        except BaseException:
            with contextlib.suppress(NotFound):
                await self._throw_away(made)
            raise

    async def _clear(self, name: str) -> None:
        """Throw away what a crash left half made. What somebody has open may be in the making: the next one looks."""
        for left in await self._rbd.names():
            if left.startswith(f"making-{name}.") and not await self._rbd.watchers(left):
                await self._throw_away(left)

    async def _throw_away(self, name: str) -> None:
        if await self._rbd.has(name):
            for snapshot in await self._rbd.snapshots(name):
                await self._let_go(name, snapshot)
            await self._rbd.remove(name)

    async def _let_go(self, name: str, snapshot: str) -> None:
        """Delete a snapshot; what was cloned from it gets blocks of its own first."""
        for child in await self._rbd.children(name, snapshot):
            await self._rbd.flatten(child)
        await self._rbd.unprotect(name, snapshot)
        await self._rbd.snap("rm", name, snapshot)

    async def _need(self, volume_id: str) -> int:
        """Its size. :raise NotFound"""
        name = _volume(volume_id)
        if not await self._rbd.has(name):
            raise NotFound(f"the Ceph pool {self._at.pool} holds no volume {volume_id}")
        return await self._rbd.size(name)

    async def _need_snapshot(self, volume_id: str, snapshot_id: str) -> None:
        await self._need(volume_id)
        if check_snapshot(snapshot_id) not in await self._rbd.snapshots(_volume(volume_id)):
            raise NotFound(f"volume {volume_id} has no snapshot {snapshot_id}")

    async def _need_image(self, digest: str) -> None:
        if not await self._rbd.has(_image(digest)):
            raise NotFound(f"the Ceph pool {self._at.pool} holds no image {digest}")

    async def _check_idle(self, volume_id: str) -> None:
        """Wait for a watch that may be a killed client's to pass.

        :raise StateConflict: it does not: a machine uses it.
        """
        until_s = self._clock.monotonic_s() + PATIENCE_S
        while watchers := await self._rbd.watchers(_volume(volume_id)):
            if self._clock.monotonic_s() >= until_s:
                raise _in_use(volume_id, watchers)
            await self._clock.sleep(LOOK_INTERVAL_S)


def _in_use(volume_id: str, watchers: Sequence[str]) -> StateConflict:
    told = f"Ceph counts {', '.join(watchers)} as having it open"
    remedy = f"stop the machine; a client that was killed is counted for {WATCH_S:.0f} s, then ask again"
    return StateConflict(
        f"volume {volume_id} is in use by a running machine",
        [Reason("volume.in_use", told, subject=volume_id, remedy=remedy)],
    )


def _volume(volume_id: str) -> str:
    return f"volume-{check_volume(volume_id)}"


def _image(digest: str) -> str:
    return f"image-{check_digest(digest)}"
