"""Failpoints of a lab's processes: armed by a test, waited for until somebody stands at one."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from novacron import failpoint
from novacron.lab.processes import Child
from tests.system.spine import END_S

STOPPED = "T"


class Points:
    """The directory that the lab's processes look in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def arm(self, place: str, what: str) -> None:
        (self._folder / place).write_text(what)

    async def struck(self, place: str) -> None:
        """Return when somebody has come to it."""
        async with asyncio.timeout(END_S):
            while (self._folder / place).exists():
                await asyncio.sleep(0.01)

    async def holds(self, place: str, child: Child) -> None:
        """Return when `child` stands still there."""
        await self.held(place, [child])

    async def held(self, place: str, children: Iterable[Child]) -> Child:
        """Which of them stands still there, once one does."""
        await self.struck(place)
        async with asyncio.timeout(END_S):
            while True:
                for child in children:
                    if state_of(child.process.pid) == STOPPED:
                        return child
                await asyncio.sleep(0.01)


def thaw(child: Child) -> None:
    child.process.send_signal(signal.SIGCONT)


def state_of(pid: int) -> str:
    """As the kernel calls it, one letter; empty: there is no such process."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@asynccontextmanager
async def points() -> AsyncIterator[Points]:
    """Processes started meanwhile look in there; what is armed is there until one comes to it."""
    with tempfile.TemporaryDirectory(prefix="nc-points-") as folder:
        os.environ[failpoint.VARIABLE] = folder
        try:
            yield Points(Path(folder))
        finally:
            del os.environ[failpoint.VARIABLE]
