"""Bytes on their way into a file: written past the page cache and hashed in a thread while the next ones come.

Large files would push everything else out of the cache, and copying them into it costs more than writing them. Where
the file system cannot do without it, and for what does not fill whole blocks, the cache is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
from typing import Any

PIECE_BYTES = 4 << 20
BLOCK_BYTES = 4096


class Sink:
    """Of an open descriptor, from `place` on. hasher: is told every byte that was written; None: nobody counts.

    Written at the place, so that what another writer left is never doubled. Call `end` whatever happens: it keeps what
    came until then. :raise OSError: the file cannot be written.
    """

    def __init__(self, descriptor: int, place: int = 0, hasher: Any = None) -> None:
        self._descriptor = descriptor
        self._hasher = hasher
        self._direct = True
        self._buffers = (mmap.mmap(-1, PIECE_BYTES), mmap.mmap(-1, PIECE_BYTES))  # aligned to pages
        self._filling = 0
        self._filled = 0
        self._written: asyncio.Future[None] | None = None
        self.place = place  # where the next byte goes, of those taken so far

    async def take(self, piece: bytes) -> None:
        """Add bytes. Waits only when the thread is a whole piece behind."""
        left = memoryview(piece)
        while left:
            end = self._filled + min(len(left), PIECE_BYTES - self.place % PIECE_BYTES)
            took = end - self._filled
            self._buffers[self._filling][self._filled : end] = left[:took]
            self._filled, self.place, left = end, self.place + took, left[took:]
            if self.place % PIECE_BYTES == 0:
                await self._hand_on()

    async def end(self) -> None:
        """All that was taken is in the file and counted."""
        await self._hand_on()
        await self._caught_up()

    async def _hand_on(self) -> None:
        await self._caught_up()
        buffer, length = self._buffers[self._filling], self._filled
        self._filling, self._filled = 1 - self._filling, 0
        if length:
            at = self.place - length
            self._written = asyncio.ensure_future(asyncio.to_thread(self._write, buffer, length, at))

    async def _caught_up(self) -> None:
        """A caller that is cancelled leaves when the thread is done: half of a piece would be nobody's."""
        written, self._written = self._written, None
        if written is None:
            return
        try:
            await asyncio.shield(written)
        except asyncio.CancelledError:
            await asyncio.wait([written])
            raise

    # -- in the thread ---------------------------------------------------------------------------------------

    def _write(self, buffer: mmap.mmap, length: int, at: int) -> None:
        with memoryview(buffer) as whole, whole[:length] as piece:
            done = self._write_past_cache(piece, at)
            self._set_direct(wanted=False)
            while done < length:
                done += os.pwrite(self._descriptor, piece[done:], at + done)
            if self._hasher is not None:
                self._hasher.update(piece)

    def _write_past_cache(self, piece: memoryview, at: int) -> int:
        """How many bytes of whole blocks were written so: all, or as far as the file system went along."""
        whole = len(piece) - len(piece) % BLOCK_BYTES
        done = 0
        if at % BLOCK_BYTES == 0 and whole and self._set_direct(wanted=True):
            with contextlib.suppress(
                OSError
            ):  # a full disk is met again without; some file systems refuse at this point
                while done < whole:
                    wrote = os.pwrite(self._descriptor, piece[done:whole], at + done)
                    done += wrote
                    if wrote % BLOCK_BYTES:
                        break
        return done

    def _set_direct(self, *, wanted: bool) -> bool:
        """Whether the descriptor's writes go past the cache now."""
        if not self._direct:
            return False
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
        except OSError:
            self._direct = False
        return self._direct and wanted
