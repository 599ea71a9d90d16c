"""Does the work that images' records ask for: fetches files from elsewhere and converts disks, one task each.

Everything is in the record, so a restarted server begins the work again. What fails is told there and ends; what
nobody wants any more (the task was replaced, the image is gone) is stopped, and what it had is taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.errands import Errands
from novacron.control.images import catalogue, convert, remote
from novacron.control.images.inspect import Inspected, inspect_file
from novacron.control.images.service import MAX_FILE_BYTES, ImageService
from novacron.control.images.shelf import Arrived
from novacron.control.images.uploads import Upload
from novacron.control.store.kinds import IMAGES
from novacron.control.store.records import Records, Seen
from novacron.errors import DeadlineExceeded, DriverError, NotFound, NovaCronError, StoreError, StoreUnavailable
from novacron.model.image import DiskFormat, FilePhase, FileRole, FileTask, Image, ImageFile, task_of
from novacron.model.vm import Problem

AT_ONCE = 2
IMPORT_WITHIN_S = 6 * 3600.0
PROGRESS_S = 1.0
RETRY_S = 5.0
COLLECT_S = 600.0


class Filler:
    """`run` until cancelled. allow, ca_file: see remote.fetch."""

    def __init__(
        self, records: Records, images: ImageService, clock: Clock, allow: Sequence[str], ca_file: Path | None
    ) -> None:
        self._records = records
        self._images = images
        self._clock = clock
        self._allow = allow
        self._ca_file = ca_file
        self._errands = Errands[None]("fill")  # by upload id
        self._places = asyncio.Semaphore(AT_ONCE)
        self._log = structlog.get_logger("filler")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            async with self._errands:
                for stored in self._records.all(IMAGES):
                    self._consider(stored.record.id)
                while True:
                    await self._collect()
                    await self._clock.sleep(COLLECT_S)
        finally:
            stop()

    async def _collect(self) -> None:
        try:
            await self._images.collect()
        except NovaCronError as wrong:
            self._log.warning("files nobody needs were not taken away", why=wrong.message)

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is IMAGES:
                gone = {task.upload_id for task in change.before.tasks} if change.before else set()
                kept = {task.upload_id for task in change.now.tasks} if change.now else set()
                for upload_id in gone - kept:
                    self._errands.call_off(upload_id)
                if change.now is not None:
                    self._consider(change.now.id)

    def _consider(self, image_id: str) -> None:
        stored = self._records.get(IMAGES, image_id)
        for task in stored.record.tasks if stored else ():
            if task.phase is not FilePhase.FAILED:
                self._errands.begin(task.upload_id, None, functools.partial(self._work, image_id, task))

    # -- one task --------------------------------------------------------------------------------------------

    async def _work(self, image_id: str, task: FileTask) -> None:
        """Until it is done, has failed and said so, or nobody wants it."""
        try:
            async with self._places:
                await self._until_said(image_id, task)
        finally:
            if not self._is_wanted(image_id, task):
                await self._images.uploads.drop(task.upload_id)

    async def _until_said(self, image_id: str, task: FileTask) -> None:
        while self._is_wanted(image_id, task):
            try:
                await self._do(image_id, task)
            except (StoreUnavailable, StoreError) as passing:
                self._log.warning("will try again", image=image_id, why=passing.message)
                await self._clock.sleep(RETRY_S)
            except NovaCronError as wrong:
                await self._fail(image_id, task, wrong)
            except TimeoutError:
                late = DeadlineExceeded(f"the file did not come within {IMPORT_WITHIN_S:g} s")
                await self._fail(image_id, task, late)
            except Exception as broken:  # noqa: BLE001  (a fault of ours must be seen, and end in words)
                self._log.exception("work on an image's file broke", image=image_id)
                await self._fail(image_id, task, NovaCronError(f"the server failed on it: {type(broken).__name__}"))
            else:
                return

    async def _do(self, image_id: str, task: FileTask) -> None:
        now = self._task(image_id, task)
        if now is not None and now.phase is FilePhase.FETCHING:
            await self._fetch(image_id, now)
            now = self._task(image_id, task)
        if now is not None and now.phase is FilePhase.CONVERTING:
            await self._convert(now)

    async def _fetch(self, image_id: str, task: FileTask) -> None:
        """Have the bytes, then hand them to the service as an upload that is whole."""
        uploads = self._images.uploads
        await uploads.drop(task.upload_id)  # what an earlier start left
        most = MAX_FILE_BYTES[task.role]
        async with asyncio.timeout(IMPORT_WITHIN_S), remote.fetch(task.url, self._allow, self._ca_file) as answer:
            length = answer.length or 0
            await self._images.check_room(task.role, length)
            upload = self._upload(image_id, task, length or most)
            await uploads.start(upload)
            got = _Counted(answer.body())
            async with self._told(image_id, task, got.so_far, length):
                size = await uploads.append(upload.id, 0, got.pieces())
        digest = await uploads.digest(upload.id, size_bytes=size)
        await self._images.take_in(msgspec.structs.replace(upload, size_bytes=size), digest)

    async def _convert(self, task: FileTask) -> None:
        uploads = self._images.uploads
        upload, _ = await uploads.find(task.upload_id)
        directory = uploads.directory(upload.id)
        found = await asyncio.to_thread(inspect_file, task.role, directory / convert.SOURCE)
        if found.part is None:
            raise DriverError("the disk to convert has changed")
        extent = convert.Extent(found.part.offset, found.part.length, found.virtual_size_bytes)
        size = [0]
        async with self._told(upload.image_id, task, lambda: size[0], 0):
            result = await convert.to_qcow2(directory, extent, lambda seen: size.__setitem__(0, seen))
        digest = await asyncio.to_thread(_digest, result)
        made = await asyncio.to_thread(inspect_file, task.role, result)
        if made.format is not DiskFormat.QCOW2:
            raise DriverError("qemu-img made something else of it")
        await self._images.keep_file(
            upload, result, digest, lambda arrived: _converted(arrived, made, found, task), found=found
        )

    # -- what the record says --------------------------------------------------------------------------------

    def _task(self, image_id: str, task: FileTask) -> FileTask | None:
        """The task as the record has it now, if it is still this one."""
        stored = self._records.get(IMAGES, image_id)
        now = task_of(stored.record, task.role) if stored else None
        return now if now is not None and now.upload_id == task.upload_id else None

    def _is_wanted(self, image_id: str, task: FileTask) -> bool:
        now = self._task(image_id, task)
        return now is not None and now.phase is not FilePhase.FAILED

    def _upload(self, image_id: str, task: FileTask, size_bytes: int) -> Upload:
        return Upload(
            id=task.upload_id,
            image_id=image_id,
            role=task.role,
            size_bytes=size_bytes,
            sha256=task.sha256,
            created_at=self._clock.wall(),
        )

    async def _fail(self, image_id: str, task: FileTask, wrong: NovaCronError) -> None:
        reason = wrong.reasons[0] if wrong.reasons else None
        message = (
            f"{wrong.message}: {reason.message}" if reason and reason.message not in wrong.message else wrong.message
        )
        problem = Problem(
            code=reason.code if reason else wrong.code,
            message=message,
            at=self._clock.wall(),
            remedy=reason.remedy if reason else "",
        )
        await self._images.uploads.drop(task.upload_id)
        self._log.warning("a file was not taken in", image=image_id, role=task.role.value, why=message)
        await self._change(
            image_id, task, lambda now: msgspec.structs.replace(now, phase=FilePhase.FAILED, problem=problem)
        )

    async def _change(self, image_id: str, task: FileTask, change: Callable[[FileTask], FileTask]) -> None:
        def changed(image: Image) -> Image | None:
            now = task_of(image, task.role)
            if now is None or now.upload_id != task.upload_id:
                return None
            return catalogue.with_task(image, change(now), self._clock.wall())

        with contextlib.suppress(NotFound):  # deleted meanwhile: nobody to tell
            await self._records.change(IMAGES, image_id, changed)

    @contextlib.asynccontextmanager
    async def _told(
        self, image_id: str, task: FileTask, done: Callable[[], int], size_bytes: int
    ) -> AsyncIterator[None]:
        """Write how far it is into the record, at most every PROGRESS_S, for as long as the block runs."""

        async def tell() -> None:
            told = -1
            while True:
                await self._clock.sleep(PROGRESS_S)
                if done() != told:
                    told = done()
                    with contextlib.suppress(StoreError):
                        await self._change(
                            image_id,
                            task,
                            lambda now, told=told: msgspec.structs.replace(  # type: ignore[misc]
                                now, done_bytes=told, size_bytes=size_bytes
                            ),
                        )

        telling = asyncio.create_task(tell())
        try:
            yield
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)


class _Counted:
    """A stream, and how much of it has passed."""

    def __init__(self, stream: AsyncIterator[bytes]) -> None:
        self._stream = stream
        self._seen = 0

    def so_far(self) -> int:
        return self._seen

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._seen += len(piece)
            yield piece


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _converted(arrived: Arrived, made: Inspected, found: Inspected, task: FileTask) -> ImageFile:
    return ImageFile(
        role=FileRole.DISK,
        digest=arrived.digest,
        size_bytes=arrived.size_bytes,
        format=made.format,
        virtual_size_bytes=made.virtual_size_bytes,
        source_format=found.part.source_format if found.part else None,
        source_digest=task.sha256,
    )
