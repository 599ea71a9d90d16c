"""The turn of a storage pool's image files: one at a time in this server, and among all servers of the pool."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from types import TracebackType

from novacron.control.images.shelf import pool_failures

LOCK_FILE = "images.lock"


class Turn:
    """`async with turn:`; a lock on a file of the pool, which the system lets go when a server dies.

    :raise Unavailable: the pool is not there.
    """

    def __init__(self, pool_dir: Path) -> None:
        self._file = pool_dir / LOCK_FILE
        self._here = asyncio.Lock()
        self._handle = -1

    async def __aenter__(self) -> None:
        await self._here.acquire()
        taking = asyncio.ensure_future(asyncio.to_thread(self._take))
        try:
            with pool_failures():
                self._handle = await asyncio.shield(taking)
        except BaseException:
            await asyncio.wait([taking])  # a thread that waits for the lock cannot be called off
            if not taking.cancelled() and taking.exception() is None:
                os.close(taking.result())
            self._here.release()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None
    ) -> None:
        os.close(self._handle)
        self._here.release()

    def _take(self) -> int:
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:
            os.close(handle)
            raise
        return handle
