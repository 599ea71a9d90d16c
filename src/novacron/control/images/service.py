"""Decides what requests about images mean, has their files kept, and records it.

A record never points at a file that is not there (see custody).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.body import Body
from novacron.control.images import catalogue
from novacron.control.images.custody import Custody
from novacron.control.images.inspect import Inspected, inspect_file
from novacron.control.images.shelf import Arrived, Shelf, to_the_end
from novacron.control.images.uploads import Upload, Uploads
from novacron.control.once import Change, Once, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import IMAGES, VMS
from novacron.control.store.records import WRITE_TRIES, Records, create, remove
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, NoRoom, NotFound, Reason, StateConflict, StoreUnavailable, TooLarge
from novacron.model.image import FilePhase, FileRole, FileTask, Image, ImageFile, ImageState
from novacron.wire.rest.images import ImageCreate, ImageImport, ImageUpdate, UploadCreate

MAX_FILE_BYTES = {
    FileRole.DISK: 1 << 40,
    FileRole.KERNEL: 256 << 20,
    FileRole.INITRD: 1 << 30,
    FileRole.FIRMWARE: 16 << 20,
    FileRole.CDROM: 64 << 30,
}
Held = frozenset[str] | None


class ImageService:
    """Requests about images. `sweep` once at the start, before anything is asked, and now and then afterwards."""

    def __init__(self, records: Records, room: Room, clock: Clock, pool_dir: Path) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self.shelf = Shelf(pool_dir)
        self.uploads = Uploads(pool_dir)
        self._custody = Custody(records, clock, self.shelf, pool_dir)

    async def sweep(self) -> None:
        """Take away what a crash left of uploads and deletions. :raise Unavailable: the pool is not there."""
        await self._custody.sweep(at_start=True)

    async def collect(self) -> None:
        """Take away files that outlived their image and that no volume needs any more, and uploads nobody goes on with.

        :raise Unavailable: the pool is not there.
        """
        await self._custody.sweep(at_start=False)
        await self.uploads.sweep(self._awaits, self._clock.wall())

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

    async def update(self, ref: str, asked: ImageUpdate, held: Held) -> Outcome:
        """Change its words, its tags and its protection; its files never change.

        A tag another image has is taken from it in the same transaction.

        :raise StateConflict: tags for an image that is not ready. :raise NotFound, NameTaken, PreconditionFailed
        """
        named = asked.model_dump(exclude_none=True)
        if asked.tags is not None:
            named["tags"] = tuple(dict.fromkeys(asked.tags))
        image_id = self._records.find(IMAGES, ref).record.id

        def change(image: Image) -> Image:
            if named.get("tags") and image.state is not ImageState.READY:
                raise StateConflict.of(f"image {image.name}", image.state.value, (ImageState.READY.value,), "tag")
            new = msgspec.structs.replace(image, **named)
            return image if new == image else msgspec.structs.replace(new, updated_at=self._clock.wall())

        beside = None
        if asked.tags is not None:
            tags = named["tags"]
            beside = lambda: catalogue.retag(self._records, image_id, tags)  # noqa: E731
        return await Change(self._records, IMAGES, image_id, held, beside=beside).write(change)

    async def put_file(
        self,
        ref: str,
        role: FileRole,
        stream: AsyncIterator[bytes],
        *,
        expected: str = "",
        announced_bytes: int = 0,
        held: Held = None,
    ) -> Outcome:
        """Receive a file, look into it, and make it the image's file for that role, in place of an earlier one.

        expected: its sha256 in hex; announced_bytes: how much will come. Empty and 0: not told. A disk that must be
        converted first is recorded as a task (202). After a failure nothing of the upload is left.

        :raise ImageRefused: it is not what its role asks for, or not what was expected; with the reason.
        :raise StateConflict: the image is ready. :raise NotFound, PreconditionFailed, TooLarge, NoRoom
        """
        image = self._pending(ref, held)  # by id from here: the name may become another's while this takes its time
        await self.check_room(role, announced_bytes)
        async with self.shelf.receive(stream, max_bytes=MAX_FILE_BYTES[role], expected=expected) as arrived:
            found = await asyncio.to_thread(inspect_file, role, arrived.path)
            if found.part is None:
                return await to_the_end(self._custody.keep(image.id, _file(role, arrived, found), arrived, held))
            upload = self._upload(image.id, role, arrived.size_bytes, arrived.digest)
            await self.uploads.adopt(upload, arrived.path)
            return await self._begin(upload, FilePhase.CONVERTING, held)

    async def remove_file(self, ref: str, role: FileRole, held: Held) -> Outcome:
        """Take a pending image's file away, and end the work on it.

        :raise StateConflict: the image is ready. :raise NotFound: it has neither. :raise PreconditionFailed
        """
        image = self._pending(ref, held)
        return await to_the_end(self._custody.remove(image.id, role, held))

    async def seal(self, ref: str, held: Held, once: Once) -> Outcome:
        """Its files are complete: VMs may be made from it.

        :raise Conflict: a machine could not start from it, with a reason for each lack. :raise NotFound
        """
        image_id = self._records.find(IMAGES, ref).record.id
        change = Change(self._records, IMAGES, image_id, held, once)
        return await change.write(lambda image: catalogue.sealed(image, self._clock.wall()))

    async def delete(self, ref: str, held: Held) -> None:
        """Forget an image that no VM was made from; its files go unless another image has the same bytes.

        :raise Conflict: VMs use it, a reason for each; or it is protected. :raise NotFound, PreconditionFailed
        """
        await to_the_end(self._delete(self._records.find(IMAGES, ref).record.id, held))

    # -- uploads in pieces -----------------------------------------------------------------------------------

    async def start_upload(self, ref: str, role: FileRole, asked: UploadCreate, held: Held) -> tuple[Upload, int]:
        """An upload to append to, and its offset: the one that was begun for the same file, else a new one.

        :raise StateConflict: the image is ready. :raise NotFound, PreconditionFailed, TooLarge, NoRoom
        """
        image = self._pending(ref, held)
        for upload, _ in await self.uploads.open_ones():
            same = (upload.image_id, upload.role, upload.size_bytes) == (image.id, role, asked.size_bytes)
            if same and upload.sha256 == asked.sha256.lower() and self._awaits(upload):
                return await self.uploads.taken_over(upload.id)
        await self.check_room(role, asked.size_bytes)
        upload = self._upload(image.id, role, asked.size_bytes, asked.sha256.lower())
        await self.uploads.start(upload)
        return upload, 0

    async def find_upload(self, ref: str, upload_id: str) -> tuple[Upload, int]:
        """An upload of that image and its offset. :raise NotFound"""
        image_id = self._records.find(IMAGES, ref).record.id
        upload, offset = await self.uploads.find(upload_id)
        if upload.image_id != image_id:
            raise NotFound(f"no upload {upload_id!r} of this image")
        return upload, offset

    async def append(
        self, ref: str, upload_id: str, offset: int, stream: AsyncIterator[bytes] | Body, held: Held
    ) -> int:
        """Add to an upload; the new offset. See Uploads.append."""
        self._pending(ref, held)
        await self.find_upload(ref, upload_id)
        return await self.uploads.append(upload_id, offset, stream)

    async def finish_upload(self, ref: str, upload_id: str, sha256: str, held: Held, once: Once) -> Outcome:
        """All has come: compare and inspect it, and make it the image's file; converted first, it is a task (202).

        sha256: what it must have; empty: what was announced, if anything.

        :raise ImageRefused: it is not what its role asks for, or not what was announced; it has to be sent anew.
        :raise Conflict: it is not whole. :raise NotFound, PreconditionFailed, StateConflict
        """
        self._pending(ref, held)
        upload, _ = await self.find_upload(ref, upload_id)
        return await self.take_in(upload, await self.uploads.digest(upload_id, expected=sha256.lower()), held, once)

    async def drop_upload(self, ref: str, upload_id: str) -> None:
        """Give an upload up. :raise NotFound"""
        upload, _ = await self.find_upload(ref, upload_id)
        await self.uploads.drop(upload.id)

    async def take_in(self, upload: Upload, digest: str, held: Held = None, once: Once | None = None) -> Outcome:
        """Make a whole upload the image's file, or begin to convert it. After a refusal the upload is gone.

        :raise ImageRefused, NotFound, StateConflict
        """
        data = self.uploads.directory(upload.id) / "data"
        try:
            found = await asyncio.to_thread(inspect_file, upload.role, data)
        except Exception:
            await self.uploads.drop(upload.id)
            raise
        if found.part is not None:
            return await self._begin(msgspec.structs.replace(upload, sha256=digest), FilePhase.CONVERTING, held, once)
        return await self.keep_file(
            upload, data, digest, lambda arrived: _file(upload.role, arrived, found), held=held, once=once
        )

    async def keep_file(
        self,
        upload: Upload,
        path: Path,
        digest: str,
        make: Callable[[Arrived], ImageFile],
        *,
        found: Inspected | None = None,
        held: Held = None,
        once: Once | None = None,
    ) -> Outcome:
        """Put a whole, inspected file of an upload on the shelf and into the image's record; the upload ends."""
        async with self.shelf.adopt(path, digest) as arrived:
            outcome = await to_the_end(
                self._custody.keep(upload.image_id, make(arrived), arrived, held, once=once, found=found)
            )
        await self.uploads.drop(upload.id)
        return outcome

    async def complete(self, image_id: str, file: ImageFile) -> Outcome:
        """A disk that a node has put among the pool's images is the image's, which is ready then.

        :raise ImageRefused: it is none. :raise NotFound: the server's pool does not hold it.
        """
        async with self._custody.turn:
            path, notes = await self.shelf.held(file.digest), [await self.shelf.note(file.digest)]
            try:
                seen = await asyncio.to_thread(inspect_file, file.role, path)
                size, now = seen.virtual_size_bytes, self._clock.wall()
                true = msgspec.structs.replace(file, format=seen.format, virtual_size_bytes=size)
                change = Change(self._records, IMAGES, image_id)
                return await change.write(lambda image: catalogue.sealed(catalogue.with_file(image, true, now), now))
            except StoreUnavailable:
                notes.clear()  # it may be recorded or not: the next start settles it
                raise
            finally:  # when the image was deleted meanwhile, or refuses the file, nobody needs it
                await self._custody.settle(notes)

    # -- from elsewhere --------------------------------------------------------------------------------------

    async def import_file(self, ref: str, role: FileRole, asked: ImageImport, held: Held, once: Once) -> Outcome:
        """Have the file fetched from `asked.url`, as a task of the image (202), in place of earlier work on it.

        :raise StateConflict: the image is ready. :raise NotFound, PreconditionFailed, NoRoom
        """
        image = self._pending(ref, held)
        await self.check_room(role, 0)
        upload = self._upload(image.id, role, 0, (asked.sha256 or "").lower())
        return await self._begin(upload, FilePhase.FETCHING, held, once, url=asked.url)

    async def check_room(self, role: FileRole, announced_bytes: int) -> None:
        """:raise TooLarge: more than a file of the role may have. :raise NoRoom: more than the pool has left."""
        if announced_bytes > MAX_FILE_BYTES[role]:
            raise TooLarge(
                f"a {role.value} file may have {MAX_FILE_BYTES[role]} bytes",
                [Reason("image.too_large", f"{announced_bytes} bytes announced", remedy="send a smaller file")],
            )
        free = await self.shelf.free_bytes()
        if announced_bytes > free:
            raise NoRoom(
                f"the storage pool has {free} bytes left, {announced_bytes} are announced",
                [Reason("pool.full", "no room for this file", remedy="delete images or volumes, or make it larger")],
            )

    # -- parts -----------------------------------------------------------------------------------------------

    def _pending(self, ref: str, held: Held) -> Image:
        stored = self._records.find(IMAGES, ref)
        check_match(held, stored)
        catalogue.check_pending(stored.record, "change the files of")
        return stored.record

    def _upload(self, image_id: str, role: FileRole, size_bytes: int, sha256: str) -> Upload:
        return Upload(
            id=self._records.new_id(),
            image_id=image_id,
            role=role,
            size_bytes=size_bytes,
            sha256=sha256,
            created_at=self._clock.wall(),
        )

    def _awaits(self, upload: Upload) -> bool:
        """Whether the image an upload is for still takes files."""
        stored = self._records.get(IMAGES, upload.image_id)
        return stored is not None and stored.record.state is ImageState.PENDING

    async def _begin(
        self, upload: Upload, phase: FilePhase, held: Held, once: Once | None = None, url: str = ""
    ) -> Outcome:
        """Record the work on a file: a worker does it."""
        task = FileTask(
            role=upload.role,
            phase=phase,
            upload_id=upload.id,
            requested_at=self._clock.wall(),
            url=url,
            sha256=upload.sha256,
            size_bytes=upload.size_bytes,
        )

        def change(image: Image) -> Image:
            catalogue.check_pending(image, "change the files of")
            return catalogue.with_task(image, task, self._clock.wall())

        return await Change(self._records, IMAGES, upload.image_id, held, once).write(change, lambda _: True)

    async def _delete(self, image_id: str, held: Held) -> None:
        for _ in range(WRITE_TRIES):
            async with self._custody.turn, self._room.turn():
                ticket = await self._room.ticket()  # no VM is being promised from it meanwhile
                stored = self._records.find(IMAGES, image_id)
                check_match(held, stored)
                catalogue.check_deletable(stored.record, (vm.record for vm in self._records.all(VMS)))
                notes = [await self.shelf.note(digest) for digest in {file.digest for file in stored.record.files}]
                try:
                    await self._records.commit(remove(IMAGES, stored), catalogue.untag(stored.record), ticket)
                except CompareFailed:
                    continue
                except StoreUnavailable:
                    notes.clear()
                    raise
                finally:
                    await self._custody.settle(notes)
                return
        raise CompareFailed(f"image {image_id!r} is being changed by others: try again")


def _file(role: FileRole, arrived: Arrived, found: Inspected) -> ImageFile:
    return ImageFile(
        role=role,
        digest=arrived.digest,
        size_bytes=arrived.size_bytes,
        format=found.format,
        virtual_size_bytes=found.virtual_size_bytes,
    )
