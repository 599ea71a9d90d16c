"""Bytes on their way into a file: written and hashed in a thread while the next ones come."""

from __future__ import annotations

import asyncio
import os
from typing import Any

PIECE_BYTES = 4 << 20


class Sink:
    """Of an open descriptor, from `place` on. hasher: is told every byte that was written; None: nobody counts.

    Written at the place, so that what another writer left is never doubled. Call `end` whatever happens: it keeps what
    came until then. :raise OSError: the file cannot be written.
    """

    def __init__(self, descriptor: int, place: int = 0, hasher: Any = None) -> None:
        self._descriptor = descriptor
        self._hasher = hasher
        self._pending = bytearray()
        self._written: asyncio.Future[None] | None = None
        self.place = place  # where the next byte goes, of those taken so far

    async def take(self, piece: bytes) -> None:
        """Add bytes. Waits only when the thread is a whole piece behind."""
        self.place += len(piece)
        self._pending += piece
        if len(self._pending) >= PIECE_BYTES:
            await self._hand_on()

    async def end(self) -> None:
        """All that was taken is in the file and counted."""
        await self._hand_on()
        await self._caught_up()

    async def _hand_on(self) -> None:
        await self._caught_up()
        pending, self._pending = self._pending, bytearray()
        if pending:
            at = self.place - len(pending)
            self._written = asyncio.ensure_future(asyncio.to_thread(self._write, pending, at))

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

    def _write(self, pending: bytearray, at: int) -> None:
        done = 0
        with memoryview(pending) as left:
            while done < len(pending):
                done += os.pwrite(self._descriptor, left[done:], at + done)
        if self._hasher is not None:
            self._hasher.update(pending)
