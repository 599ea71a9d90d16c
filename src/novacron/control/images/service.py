"""Decides what requests about images mean, has their files kept, and records it.

A record never points at a file that is not there: files are shown before the record is written, and taken away after
it is gone. Both happen under one turn, so that of two images with the same bytes neither loses them to the other.
(One server a pool: with several, the turn has to become one of the whole cluster.)
"""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.images.inspect import Inspected, inspect
from novacron.control.images.shelf import Arrived, Shelf, to_the_end
from novacron.control.once import Change, Once, Outcome
from novacron.control.room import Room
from novacron.control.store.records import IMAGES, VMS, WRITE_TRIES, Records, Stored, create, remove
from novacron.errors import CompareFailed, Conflict, NoRoom, Reason, StateConflict, StoreUnavailable, TooLarge
from novacron.model.image import FileRole, Image, ImageFile, ImageState, file_of, is_bootable
from novacron.wire.rest.images import ImageCreate, ImageUpdate

MAX_FILE_BYTES = {
    FileRole.DISK: 1 << 40,
    FileRole.KERNEL: 256 << 20,
    FileRole.INITRD: 1 << 30,
    FileRole.FIRMWARE: 16 << 20,
}
MAX_NAMED = 10  # VMs named in a refusal


class ImageService:
    """Requests about images. `sweep` once at the start, before anything is asked."""

    def __init__(self, records: Records, room: Room, clock: Clock, pool_dir: Path) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._shelf = Shelf(pool_dir)
        self._turn = asyncio.Lock()

    async def sweep(self) -> None:
        """Take away what a crash left of uploads and deletions. :raise Unavailable: the pool is not there."""
        async with self._turn:
            for note, digest in await self._shelf.notes():
                await self._shelf.settle(note, used=self._uses(digest))

    async def create(self, asked: ImageCreate, once: Once) -> Outcome:
        """Record an image that waits for its files. :raise NameTaken"""
        now = self._clock.wall()
        image = Image(
            id=self._records.new_id(),
            name=asked.name,
            state=ImageState.PENDING,
            created_at=now,
            updated_at=now,
            labels=asked.labels,
            description=asked.description,
            cmdline=asked.cmdline,
        )
        try:
            revision = await self._records.commit(create(IMAGES, image), *once.note(image, 201))
        except CompareFailed as lost:
            await self._records.refuse_taken_name(IMAGES, None, image, lost)
            raise
        return Outcome(Stored(image, revision), 201)

    async def update(self, ref: str, asked: ImageUpdate, held: frozenset[str] | None) -> Outcome:
        """Change its words; its files never change. :raise NotFound, NameTaken, PreconditionFailed"""
        named = asked.model_dump(exclude_none=True)

        def change(image: Image) -> Image:
            new = msgspec.structs.replace(image, **named)
            return image if new == image else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await Change(self._records, IMAGES, ref, held).write(change)

    async def put_file(
        self,
        ref: str,
        role: FileRole,
        stream: AsyncIterator[bytes],
        *,
        expected: str = "",
        announced_bytes: int = 0,
        held: frozenset[str] | None = None,
    ) -> Outcome:
        """Receive a file, look into it, and make it the image's file for that role, in place of an earlier one.

        expected: its sha256 in hex; announced_bytes: how much will come. Empty and 0: not told.
        After a failure nothing of the upload is left.

        :raise ImageRefused: it is not what its role asks for, or not what was expected; with the reason.
        :raise StateConflict: the image is ready. :raise NotFound, PreconditionFailed, TooLarge, NoRoom
        """
        stored = self._records.find(IMAGES, ref)
        check_match(held, stored)
        image_id = stored.record.id  # by id from here: the name may become another's while this takes its time
        _check_pending(stored.record, "change the files of")
        await self._check_room(role, announced_bytes)
        async with self._shelf.receive(stream, max_bytes=MAX_FILE_BYTES[role], expected=expected) as arrived:
            found = await asyncio.to_thread(_inspect, role, arrived)
            file = ImageFile(
                role=role,
                digest=arrived.digest,
                size_bytes=arrived.size_bytes,
                format=found.format,
                virtual_size_bytes=found.virtual_size_bytes,
            )
            return await to_the_end(self._keep(image_id, file, arrived, held))

    async def seal(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Its files are complete: VMs may be made from it.

        :raise Conflict: a machine could not start from it, with a reason for each lack. :raise NotFound
        """
        change = Change(self._records, IMAGES, ref, held, once)
        return await change.write(lambda image: sealed(image, self._clock.wall()))

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget an image that no VM was made from; its files go unless another image has the same bytes.

        :raise Conflict: VMs use it; a reason for each. :raise NotFound, PreconditionFailed
        """
        await to_the_end(self._delete(ref, held))

    # -- parts -----------------------------------------------------------------------------------------------

    async def _check_room(self, role: FileRole, announced_bytes: int) -> None:
        if announced_bytes > MAX_FILE_BYTES[role]:
            raise TooLarge(
                f"a {role.value} file may have {MAX_FILE_BYTES[role]} bytes",
                [Reason("image.too_large", f"{announced_bytes} bytes announced", remedy="send a smaller file")],
            )
        free = await self._shelf.free_bytes()
        if announced_bytes > free:
            reason = Reason("pool.full", f"{free} bytes are free, {announced_bytes} are asked for", remedy="make room")
            raise NoRoom("the storage pool has too little room for this file", [reason])

    async def _keep(self, image_id: str, file: ImageFile, arrived: Arrived, held: frozenset[str] | None) -> Outcome:
        """Show the file, then record it; what it replaces goes when nothing else uses it."""

        def change(image: Image) -> Image:
            _check_pending(image, "change the files of")
            others = tuple(one for one in image.files if one.role is not file.role)
            if file in image.files:
                return image
            return msgspec.structs.replace(image, files=(*others, file), updated_at=self._clock.wall())

        async with self._turn:
            notes = [await self._shelf.show(arrived)]
            try:
                before = file_of(self._records.find(IMAGES, image_id).record, file.role)
                if before is not None:
                    notes.append(await self._shelf.note(before.digest))
                return await Change(self._records, IMAGES, image_id, held).write(change)
            except StoreUnavailable:
                notes.clear()  # it may be recorded or not: the next start settles it
                raise
            finally:
                await self._settle(notes)

    async def _delete(self, ref: str, held: frozenset[str] | None) -> None:
        for _ in range(WRITE_TRIES):
            async with self._turn, self._room.turn():
                ticket = await self._room.ticket()  # no VM is being promised from it meanwhile
                stored = self._records.find(IMAGES, ref)
                check_match(held, stored)
                self._check_unused(stored.record)
                notes = [await self._shelf.note(digest) for digest in {file.digest for file in stored.record.files}]
                try:
                    await self._records.commit(remove(IMAGES, stored), ticket)
                except CompareFailed:
                    continue
                except StoreUnavailable:
                    notes.clear()
                    raise
                finally:
                    await self._settle(notes)
                return
        raise CompareFailed(f"image {ref!r} is being changed by others: try again")

    async def _settle(self, notes: list[Path]) -> None:
        """End notes by what the records say now."""
        if not notes:
            return
        await self._records.caught_up(await self._records.store.revision())
        for note in notes:
            await self._shelf.settle(note, used=self._uses(note.suffix[1:]))

    def _uses(self, digest: str) -> bool:
        """Whether an image has a file with that digest, or a VM a volume on it."""
        images = (stored.record for stored in self._records.all(IMAGES))
        if any(file.digest == digest for image in images for file in image.files):
            return True
        vms = (stored.record for stored in self._records.all(VMS))
        return any(disk.backing_digest == digest for vm in vms for disk in vm.spec.disks)

    def _check_unused(self, image: Image) -> None:
        users = [stored.record.name for stored in self._records.all(VMS) if stored.record.spec.image_id == image.id]
        if users:
            reasons = [
                Reason("image.in_use", "it was made from this image", subject=name, remedy="delete the VM first")
                for name in users[:MAX_NAMED]
            ]
            raise Conflict(f"cannot delete image {image.name}: {len(users)} VMs were made from it", reasons)


def sealed(image: Image, now: datetime.datetime) -> Image:
    """The image as ready. :raise Conflict: a machine could not start from it, with a reason for each lack."""
    if image.state is ImageState.READY:
        return image
    lacks = []
    if not is_bootable(image):
        lacks.append(Reason("image.not_bootable", "it has no disk, kernel or firmware file", remedy="PUT one first"))
    if file_of(image, FileRole.KERNEL) is None:
        remedy = "PUT the kernel first"
        if file_of(image, FileRole.INITRD) is not None:
            lacks.append(Reason("image.initrd_alone", "it has an initrd file and no kernel", remedy=remedy))
        if image.cmdline:
            lacks.append(Reason("image.cmdline_alone", "it has a kernel command line and no kernel", remedy=remedy))
    if lacks:
        raise Conflict(f"cannot seal image {image.name}: {'; '.join(lack.message for lack in lacks)}", lacks)
    return msgspec.structs.replace(image, state=ImageState.READY, updated_at=now)


def _check_pending(image: Image, verb: str) -> None:
    if image.state is not ImageState.PENDING:
        raise StateConflict.of(f"image {image.name}", image.state.value, (ImageState.PENDING.value,), verb)


def _inspect(role: FileRole, arrived: Arrived) -> Inspected:
    with arrived.path.open("rb", buffering=0) as file:
        return inspect(role, lambda offset, length: os.pread(file.fileno(), length, offset), arrived.size_bytes)
