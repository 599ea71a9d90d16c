"""The verbs about image files: fetched by digest from other nodes or the server, compared while they stream, kept.

    <state>/fetching/<digest>    what has come so far; a broken line goes on from its end, also after a restart

What is kept under a digest has that digest: nothing is handed to a pool before it was counted to the last byte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import structlog

from novacron.agent.sources import Server, opened
from novacron.agent.storage.base import Pool
from novacron.agent.storage.depot import Depot
from novacron.agent.storage.names import check_digest
from novacron.errors import DeadlineExceeded, ImageRefused, NoRoom, NotFound, Reason, Unavailable
from novacron.wire import storage as wire

TRIES = 3
PIECE_BYTES = 1 << 20
STALE_S = 24 * 3600.0


class Images:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(self, depot: Depot, directory: Path, server: Server) -> None:
        self._depot = depot
        self._dir = directory
        self._server = server
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._log = structlog.get_logger("images")

    async def held(self, args: wire.ImagesHeld) -> wire.ImagesFound:
        """:raise Unavailable: the pool is not there."""
        return wire.ImagesFound(digests=await self._depot.pool(args.pool).images())

    async def drop(self, args: wire.ImageDrop) -> None:
        """One that a volume needs stays."""
        await self._depot.pool(args.pool).drop_image(args.digest)

    async def fetch(self, args: wire.ImageFetch) -> None:
        """Have the file in the pool. Asked twice at once, it is fetched once.

        :raise NotFound: no source has it. :raise Unavailable: none could be reached to the end; what came is kept.
        :raise NoRoom
        """
        digest = check_digest(args.digest)
        pool = self._depot.pool(args.pool)
        if digest in await pool.images():
            return
        async with self._turns.setdefault(digest, asyncio.Lock()):
            if digest in await pool.images():
                return
            part = self._dir / digest
            await self._have(args, part)
            await pool.keep_image(digest, part)
            await asyncio.to_thread(part.unlink, missing_ok=True)

    def file(self, digest: str) -> Path:
        """A file this node fetched before, for another node. :raise NotFound"""
        return self._local(digest, self._depot.pools()[1:])

    def sweep(self) -> None:
        """Take away what an earlier process left of fetches that nobody went on with."""
        for path in self._dir.iterdir() if self._dir.is_dir() else ():
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()

    # -- parts -----------------------------------------------------------------------------------------------

    async def _have(self, args: wire.ImageFetch, part: Path) -> None:
        """The whole file at `part`, from the first source that gives it."""
        await asyncio.to_thread(self._prepare, part, args.size_bytes)
        reasons = []
        try:
            here = self._local(args.digest, self._depot.pools())
        except NotFound:
            pass
        else:
            await _Receiver(part, args).take(lambda offset: _read(here, offset))
            return
        for source in args.sources:
            name = source.door or "the server"
            try:
                await self._from(source, args, part)
            except (NotFound, Unavailable, DeadlineExceeded, ImageRefused) as wrong:
                self._log.info("a source does not give a file", source=name, digest=args.digest, why=wrong.message)
                reasons.append(Reason(f"source.{wrong.code}", wrong.message, subject=name))
            else:
                return
        if all(reason.code == "source.not_found" for reason in reasons):
            raise NotFound(f"nobody has the image file {args.digest}", reasons)
        raise Unavailable(f"the image file {args.digest} could not be fetched", reasons)

    async def _from(self, source: wire.ImageSource, args: wire.ImageFetch, part: Path) -> None:
        """A line that breaks after some of the file has come is dialled again, and goes on from there."""
        receiver = _Receiver(part, args)
        for tries_left in reversed(range(TRIES)):
            try:
                await receiver.take(lambda offset: opened(source, self._server, args.digest, offset))
            except Unavailable:
                if tries_left == 0 or not receiver.came:
                    raise
            else:
                return

    def _prepare(self, part: Path, size_bytes: int) -> None:
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        seen = os.statvfs(self._dir)
        if size_bytes > seen.f_bavail * seen.f_frsize + (part.stat().st_size if part.exists() else 0):
            raise NoRoom(f"there is no room in {self._dir} for an image file of {size_bytes} bytes")

    def _local(self, digest: str, pools: tuple[Pool, ...]) -> Path:
        for pool in pools:
            path_of: Callable[[str], Path] | None = getattr(pool, "image_path", None)  # of pools that are directories
            if path_of is not None:
                try:
                    return path_of(digest)
                except NotFound:
                    continue
        raise NotFound(f"this node does not hold the image file {digest}")


class _Receiver:
    """Adds to a file what comes, and compares the whole."""

    def __init__(self, part: Path, args: wire.ImageFetch) -> None:
        self._part = part
        self._args = args
        self.came = False

    async def take(self, source: Callable[[int], AsyncIterator[bytes]]) -> None:
        """From where the file ends to the end. `source`: the bytes from an offset on.

        :raise ImageRefused: it is another file; what came is thrown away. :raise Unavailable: it ended too early.
        """
        hasher, offset = await asyncio.to_thread(self._so_far)
        with self._part.open("ab", buffering=0) as file:
            async for piece in source(offset):
                offset += len(piece)
                if offset > self._args.size_bytes:
                    break
                await asyncio.to_thread(_write, file.fileno(), piece)
                hasher.update(piece)
                self.came = True
            await asyncio.to_thread(os.fsync, file.fileno())
        if offset < self._args.size_bytes:
            raise Unavailable(f"the source ended after {offset} of {self._args.size_bytes} bytes")
        if offset > self._args.size_bytes or hasher.hexdigest() != self._args.digest:
            self._part.unlink()
            raise ImageRefused(f"the source gave another file than {self._args.digest}")

    def _so_far(self) -> tuple[hashlib._Hash, int]:
        hasher = hashlib.sha256()
        self._part.touch(mode=0o600)
        if self._part.stat().st_size > self._args.size_bytes:
            os.truncate(self._part, 0)
        with self._part.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
        return hasher, self._part.stat().st_size


def _write(handle: int, piece: bytes) -> None:
    left = memoryview(piece)
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError as wrong:
        raise NoRoom(f"an image file cannot be written: {wrong.strerror}") from wrong


async def _read(path: Path, offset: int) -> AsyncIterator[bytes]:
    try:
        with await asyncio.to_thread(path.open, "rb") as file:
            file.seek(offset)
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
    except OSError as wrong:
        raise Unavailable(f"cannot read {path}: {wrong.strerror}") from wrong
