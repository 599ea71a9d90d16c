"""Image files in the pool: received into `incoming`, shown in `images` under their digest, taken away again.

    incoming/<uuid>             being received: nothing points at it
    incoming/<uuid>.<digest>    a note that this digest is on its way in or out: the record is written next, or was
    images/<digest>             whole, inspected, read-only

A note stands while record and file could disagree, so a crash leaves something to settle from: if no record uses the
digest, its file goes too. It also stands while a file outlives its image because volumes stand on it. What is in
`images` without a note is never touched: it may be another store's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from novacron.control.images.sink import Sink
from novacron.errors import ImageRefused, NoRoom, NotFound, Reason, TooLarge, Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


class Arrived(msgspec.Struct, frozen=True):
    """A received file, on disk for good but shown to nobody yet."""

    path: Path
    digest: str
    size_bytes: int


class Shelf:
    """The files of one pool. Its directory must exist: a pool that is not mounted is not made anew."""

    def __init__(self, pool_dir: Path) -> None:
        self._images = pool_dir / "images"
        self._incoming = pool_dir / "incoming"

    @contextlib.asynccontextmanager
    async def receive(
        self, stream: AsyncIterator[bytes], *, max_bytes: int, expected: str = ""
    ) -> AsyncIterator[Arrived]:
        """Keep what comes; it is gone after the block unless it was shown meanwhile.

        expected: the sha256 it must have, in hex; empty: any.

        :raise TooLarge: more than `max_bytes`. :raise NoRoom: the pool is full. :raise Unavailable: it is not there.
        :raise ImageRefused: another digest than expected.
        """
        path = self._incoming / str(uuid.uuid4())
        try:
            await self._do(lambda: self._make(path))
            digest, size = await self._write(path, stream, max_bytes)
            if expected and digest != expected:
                raise _other_digest(digest)
            yield Arrived(path, digest, size)
        finally:
            await self._do(lambda: path.unlink(missing_ok=True))

    @contextlib.asynccontextmanager
    async def adopt(self, file: Path, digest: str) -> AsyncIterator[Arrived]:
        """Take over a whole file of this pool, whose sha256 is known; it is gone after the block unless it was shown.

        :raise NoRoom, Unavailable
        """
        path = self._incoming / str(uuid.uuid4())

        def move() -> int:
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            file.rename(path)
            return path.stat().st_size

        try:
            yield Arrived(path, digest, await self._do(move))
        finally:
            await self._do(lambda: path.unlink(missing_ok=True))

    async def show(self, arrived: Arrived) -> Path:
        """Put it in `images`, read-only; the note to settle when its record is written, or is not to be."""
        return await self._do(lambda: self._show(arrived))

    async def held(self, digest: str) -> Path:
        """Where the file with that digest lies. :raise NotFound: the pool does not hold it."""
        path = self._images / digest
        if not await self._do(path.is_file):
            reason = Reason("image.elsewhere", "it lies in another pool than the server's", digest)
            raise NotFound(f"the server's storage pool holds no file {digest}", [reason])
        return path

    async def note(self, digest: str) -> Path:
        """Make a note that the digest may be on its way out."""
        return await self._do(lambda: self._note(digest))

    async def settle(self, note: Path, *, used: bool, keep: bool = False) -> None:
        """End a note: its digest's file stays if a record uses it, and goes otherwise.

        keep: let the note stand for a later settling: what uses the file now may be its last user.
        """
        if not keep:
            await self._do(lambda: self._settle(note, used=used))

    async def notes(self) -> list[tuple[Path, str]]:
        """What a crash left: notes, with the digest they are about; empty for a file that was being received."""
        return await self._do(self._notes)

    async def free_bytes(self) -> int:
        """Room left in the pool."""
        return await self._do(self._free_bytes)

    # -- in a thread -----------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[], Result]) -> Result:
        with pool_failures():
            return await to_the_end(asyncio.to_thread(work))

    async def _write(self, path: Path, stream: AsyncIterator[bytes], max_bytes: int) -> tuple[str, int]:
        hasher = hashlib.sha256()
        with await self._do(lambda: path.open("r+b", buffering=0)) as file, pool_failures():
            sink = Sink(file.fileno(), hasher=hasher)
            try:
                async for piece in stream:
                    await sink.take(piece)
                    if sink.place > max_bytes:
                        raise _too_much(max_bytes)
            finally:
                await sink.end()
            await self._do(lambda: os.fsync(file.fileno()))
        return hasher.hexdigest(), sink.place

    def _make(self, path: Path) -> None:
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _show(self, arrived: Arrived) -> Path:
        arrived.path.chmod(0o444)
        note = arrived.path.with_name(f"{arrived.path.name}.{arrived.digest}")
        arrived.path.rename(note)
        _sync(self._incoming)
        try:
            with contextlib.suppress(FileExistsError):  # the same bytes are there already
                os.link(note, self._images / arrived.digest)
            _sync(self._images)
        except OSError:
            note.rename(arrived.path)
            raise
        return note

    def _note(self, digest: str) -> Path:
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        note = self._incoming / f"{uuid.uuid4()}.{digest}"
        try:
            os.link(self._images / digest, note)  # takes no room, so that a full pool can be emptied
        except FileNotFoundError:
            note.touch(mode=0o400)
        _sync(self._incoming)
        return note

    def _settle(self, note: Path, *, used: bool) -> None:
        digest = note.suffix[1:]
        if digest and not used:
            (self._images / digest).unlink(missing_ok=True)
            _sync(self._images)
        note.unlink(missing_ok=True)

    def _notes(self) -> list[tuple[Path, str]]:
        if not self._incoming.is_dir():
            return []
        return [(path, path.suffix[1:]) for path in sorted(self._incoming.iterdir())]

    def _free_bytes(self) -> int:
        seen = os.statvfs(self._images)
        return seen.f_bavail * seen.f_frsize


@contextlib.contextmanager
def pool_failures() -> Iterator[None]:
    """The file system's failures as NoRoom or Unavailable."""
    try:
        yield
    except OSError as wrong:
        if wrong.errno in _FULL:
            raise NoRoom("the storage pool is full: delete images or volumes, or make it larger") from wrong
        raise Unavailable(f"the storage pool cannot be used: {wrong.strerror}: is it mounted?") from wrong


async def to_the_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Do it whole even when who asked is cancelled, and only then say so: half of it would be nobody's to undo."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _too_much(max_bytes: int) -> TooLarge:
    reason = Reason("image.too_large", "too large for its role", remedy="send a smaller file")
    return TooLarge(f"the file has more than {max_bytes} bytes", [reason])


def _other_digest(found: str) -> ImageRefused:
    return ImageRefused(
        "the file did not arrive as it was sent",
        [Reason("image.digest", f"its sha256 is {found}, not the one expected", remedy="send it again")],
    )
