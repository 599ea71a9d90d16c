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
        self._buffers = (_buffer(), _buffer())
        self._filling = 0
        self._filled = 0
        self._end = PIECE_BYTES - place % PIECE_BYTES  # pieces begin at whole multiples in the file
        self._written: asyncio.Future[None] | None = None
        self.place = place  # where the next byte goes, of those taken so far

    async def take(self, piece: bytes) -> None:
        """Add bytes. Waits only when the thread is a whole piece behind."""
        left = memoryview(piece)
        while left:
            room = self.room()
            took = min(len(left), len(room))
            room[:took] = left[:took]
            self.landed(took)
            left = left[took:]
            if not self.room():
                await self.hand_on()

    def room(self) -> memoryview:
        """Where the next bytes are to be put by who has them; empty: hand on first."""
        return self._buffers[self._filling][self._filled : self._end]

    def landed(self, count: int) -> None:
        """Take so many bytes, which lie at the beginning of the room."""
        self._filled += count
        self.place += count

    async def hand_on(self) -> None:
        """Give what was taken to the threads; there is room then. Waits until they are done with the piece before."""
        await self._caught_up()
        buffer, length = self._buffers[self._filling], self._filled
        self._filling, self._filled, self._end = 1 - self._filling, 0, PIECE_BYTES - self.place % PIECE_BYTES
        if length:
            self._written = asyncio.ensure_future(self._keep(buffer[:length], self.place - length))

    async def end(self) -> None:
        """All that was taken is in the file and counted."""
        await self.hand_on()
        await self._caught_up()

    async def _caught_up(self) -> None:
        """A caller that is cancelled, even again, leaves when the threads are done: the file is closed next."""
        written, self._written = self._written, None
        cancelled: asyncio.CancelledError | None = None
        while written is not None and not written.done():
            try:
                await asyncio.wait([written])
            except asyncio.CancelledError as wrong:
                cancelled = wrong
        if cancelled is not None:
            raise cancelled
        if written is not None:
            written.result()

    async def _keep(self, piece: memoryview, at: int) -> None:
        """Write and count it at once: the disk's time and the processor's do not add up."""
        work = [asyncio.to_thread(self._write, piece, at)]
        if self._hasher is not None:
            work.append(asyncio.to_thread(self._hasher.update, piece))
        for wrong in await asyncio.gather(*work, return_exceptions=True):
            if wrong is not None:
                raise wrong

    # -- in the thread ---------------------------------------------------------------------------------------

    def _write(self, piece: memoryview, at: int) -> None:
        done = self._write_past_cache(piece, at)
        self._set_direct(wanted=False)
        while done < len(piece):
            done += os.pwrite(self._descriptor, piece[done:], at + done)

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


def _buffer() -> memoryview:
    """Aligned to pages, as writing past the cache asks for."""
    return memoryview(mmap.mmap(-1, PIECE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
