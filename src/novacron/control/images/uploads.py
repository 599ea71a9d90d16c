"""Unfinished uploads in the pool: bytes that gather piece by piece, across broken connections and restarts.

    uploads/<upload id>/upload.json    what it is for; written first, never changed
    uploads/<upload id>/data           what has come; its size is the offset

Nothing here is an image: a file leaves for the shelf when it is whole, compared and inspected.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from novacron.control.body import Body
from novacron.control.images.shelf import pool_failures, to_the_end
from novacron.control.images.sink import Sink
from novacron.errors import Busy, Conflict, ImageRefused, NotFound, Reason, TooLarge
from novacron.model.identity import is_id
from novacron.model.image import FileRole

KEPT_FOR = datetime.timedelta(hours=24)
META, DATA = "upload.json", "data"

T = TypeVar("T")


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """What an upload is for. sha256: what it must have; empty: anything. size_bytes 0 with a `url`: not known."""

    id: str
    image_id: str
    role: FileRole
    size_bytes: int
    created_at: datetime.datetime
    sha256: str = ""


class _Writer:
    """Who writes to an upload now, and the sha256 of what was written without a break."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.writing: asyncio.Task[int] | None = None
        self.hasher: Any = None
        self.hashed = 0


class Uploads:
    """The uploads of one pool."""

    def __init__(self, pool_dir: Path) -> None:
        self._dir = pool_dir / "uploads"
        self._writers: dict[str, _Writer] = {}

    def directory(self, upload_id: str) -> Path:
        """Where its bytes gather. :raise NotFound: the id is none."""
        if not is_id(upload_id):
            raise NotFound(f"no upload {upload_id[:64]!r}")
        return self._dir / upload_id

    async def start(self, upload: Upload) -> None:
        """Make it, empty. :raise NoRoom, Unavailable"""
        await self._do(lambda: self._start(upload))

    async def adopt(self, upload: Upload, file: Path) -> None:
        """Make it with a file of the pool that is whole; the file moves."""

        def move() -> None:
            self._start(upload)
            file.rename(self.directory(upload.id) / DATA)

        await self._do(move)

    async def find(self, upload_id: str) -> tuple[Upload, int]:
        """The upload and its offset. :raise NotFound: it is done, was swept, or never was."""
        found = await self._do(lambda: self._read(self.directory(upload_id)))
        if found is None:
            raise NotFound(f"no upload {upload_id!r}: it is finished, or was given up and swept away")
        return found

    async def taken_over(self, upload_id: str) -> tuple[Upload, int]:
        """As `find`, for somebody who goes on with it: who wrote until now has ended, and all that came is counted."""
        writer = self._writers.setdefault(upload_id, _Writer())
        await self._interrupt(writer)
        async with writer.turn:
            return await self.find(upload_id)

    async def open_ones(self) -> list[tuple[Upload, int]]:
        """Every upload that can be gone on with, oldest first."""

        def read() -> list[tuple[Upload, int]]:
            if not self._dir.is_dir():
                return []
            read = (self._read(path) for path in self._dir.iterdir())
            return sorted((one for one in read if one is not None), key=lambda one: one[0].id)

        return await self._do(read)

    async def append(self, upload_id: str, offset: int, stream: AsyncIterator[bytes] | Body) -> int:
        """Add what comes at `offset`; the new offset. What had come before a failure stays.

        A second writer replaces the first: its connection is most likely the one that broke unnoticed.

        :raise Conflict: the upload is at another offset; the reason says which.
        :raise TooLarge: more comes than was announced. :raise Busy: another writer took over.
        :raise NotFound, NoRoom, Unavailable
        """
        writer = self._writers.setdefault(upload_id, _Writer())
        await self._interrupt(writer)
        async with writer.turn:
            upload, known = await self.find(upload_id)
            if offset != known:
                raise _elsewhere(known)
            writer.writing = asyncio.create_task(self._write(upload, writer, offset, stream))
            try:
                return await writer.writing
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    await self._interrupt(writer)
                    raise
                raise Busy("another connection goes on with this upload") from None
            finally:
                writer.writing = None

    async def digest(self, upload_id: str, size_bytes: int | None = None, *, expected: str = "") -> str:
        """The sha256 of a whole upload, in hex; counted while it came, or now when there was a break.

        size_bytes: what it has when it is whole; None: what was announced. expected: what it must have beside.

        :raise Conflict: it is not whole. :raise ImageRefused: it is not what was announced; it has to begin anew.
        """
        writer = self._writers.setdefault(upload_id, _Writer())
        await self._interrupt(writer)
        async with writer.turn:
            upload, offset = await self.find(upload_id)
            if offset != (upload.size_bytes if size_bytes is None else size_bytes):
                raise _elsewhere(offset)
            whole = writer.hasher is not None and writer.hashed == offset
            found = writer.hasher.hexdigest() if whole else await self._do(lambda: self._hash(upload_id))
        if {expected, upload.sha256} - {"", found}:
            await self.drop(upload_id)
            raise ImageRefused(
                "the file did not arrive as it was sent",
                [Reason("image.digest", f"its sha256 is {found}, not the one expected", remedy="send it again")],
            )
        return str(found)

    async def drop(self, upload_id: str) -> None:
        """Take it away. Absent: fine."""
        path = self.directory(upload_id)
        writer = self._writers.get(upload_id)
        if writer is not None:
            await self._interrupt(writer)
        await self._do(lambda: _remove(path))
        self._writers.pop(upload_id, None)

    async def sweep(self, needed: Callable[[Upload], bool], now: datetime.datetime) -> int:
        """Take away what nobody needs, and what nobody has gone on with for a day; how many there were."""

        def stale() -> list[str]:
            found = []
            for path in self._dir.iterdir() if self._dir.is_dir() else ():
                read = self._read(path)
                kept = read is not None and needed(read[0]) and now - _touched(path) < KEPT_FOR
                if not kept and is_id(path.name) and (read is not None or now - _touched(path) > KEPT_FOR):
                    found.append(path.name)
            return found

        gone = [one for one in await self._do(stale) if not self._is_written(one)]
        for upload_id in gone:
            await self.drop(upload_id)
        return len(gone)

    # -- parts -----------------------------------------------------------------------------------------------

    def _is_written(self, upload_id: str) -> bool:
        writer = self._writers.get(upload_id)
        return writer is not None and writer.turn.locked()

    async def _interrupt(self, writer: _Writer) -> None:
        if writer.writing is not None:
            writer.writing.cancel()
            await asyncio.wait([writer.writing])

    async def _write(self, upload: Upload, writer: _Writer, offset: int, stream: AsyncIterator[bytes] | Body) -> int:
        hasher = writer.hasher if writer.hashed == offset else None
        if offset == 0:
            hasher = hashlib.sha256()
        writer.hasher = None  # while it may be ahead of the file
        path = self.directory(upload.id) / DATA
        with await self._do(lambda: path.open("r+b", buffering=0)) as file, pool_failures():
            sink = Sink(file.fileno(), offset, hasher)
            try:
                await _pour(stream, sink, upload)
            finally:
                await sink.end()  # keeps what came before the line broke
                writer.hasher, writer.hashed = hasher, sink.place
        return sink.place

    def _start(self, upload: Upload) -> None:
        self._dir.mkdir(mode=0o711, exist_ok=True)
        path = self.directory(upload.id)
        path.mkdir(mode=0o700)
        os.close(os.open(path / DATA, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        making = path / f".{META}"
        making.write_bytes(msgspec.json.encode(upload))
        making.rename(path / META)

    def _read(self, path: Path) -> tuple[Upload, int] | None:
        try:
            upload = msgspec.json.decode((path / META).read_bytes(), type=Upload)
            return upload, (path / DATA).stat().st_size
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None

    def _hash(self, upload_id: str) -> str:
        with (self.directory(upload_id) / DATA).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    async def _do(self, work: Callable[[], T]) -> T:
        with pool_failures():
            return await to_the_end(asyncio.to_thread(work))


async def _pour(stream: AsyncIterator[bytes] | Body, sink: Sink, upload: Upload) -> None:
    """All of it into the sink. :raise TooLarge: it is more than was announced. What the stream raises passes."""
    if isinstance(stream, Body):
        if sink.place + stream.left > upload.size_bytes:
            raise _too_much(upload)
        while await stream.fill(sink):
            await sink.hand_on()
        return
    async for piece in stream:
        if sink.place + len(piece) > upload.size_bytes:
            raise _too_much(upload)
        await sink.take(piece)


def _touched(path: Path) -> datetime.datetime:
    """When somebody last wrote to it."""
    times = [path.stat().st_mtime]
    with contextlib.suppress(FileNotFoundError):
        times.append((path / DATA).stat().st_mtime)
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC)


def _remove(path: Path) -> None:
    """The description first: what is left of a broken removal is no upload."""
    (path / META).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def _elsewhere(offset: int) -> Conflict:
    reason = Reason("upload.offset", f"it is at offset {offset}", subject=str(offset), remedy="go on from that offset")
    return Conflict(f"the upload is at offset {offset}", [reason])


def _too_much(upload: Upload) -> TooLarge:
    reason = Reason("image.too_large", "more came than was announced", remedy="announce the whole size")
    return TooLarge(f"the file has more than the {upload.size_bytes} bytes announced", [reason])
