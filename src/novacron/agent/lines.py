"""Keeps a line to each server that this node knows, as it comes to know more of them or fewer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from novacron.agent.line import Line
from novacron.agent.servers import Servers
from novacron.clock import Clock
from novacron.wire.agent import MigrationProgress

LOOK_EVERY_S = 5.0


class Lines:
    """`run` until cancelled."""

    def __init__(self, servers: Servers, make: Callable[[str], Line], clock: Clock) -> None:
        self._servers = servers
        self._make = make
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def announce(self, frame: MigrationProgress) -> None:
        """Tell all servers: whoever leads wants it, and only that one knows."""
        for line in self._lines.values():
            line.announce(frame)

    async def run(self) -> None:
        """A line that ends by itself is a fault, and is raised."""
        try:
            while True:
                self._servers.changed.clear()
                await self._adapt(self._servers.wanted())
                await self._servers.save()
                await self._until_changed()
        finally:
            await self._adapt(())

    async def _adapt(self, wanted: tuple[str, ...]) -> None:
        gone = [self._tasks.pop(address) for address in list(self._tasks) if address not in wanted]
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        self._lines = {address: self._lines.get(address) or self._make(address) for address in wanted}
        for address, line in self._lines.items():
            if address not in self._tasks:
                self._tasks[address] = asyncio.create_task(line.run(), name="line")

    async def _until_changed(self) -> None:
        """Also looked at from time to time: what is held back or remembered is so for a while."""
        waits = {
            asyncio.create_task(self._servers.changed.wait()),
            asyncio.create_task(self._clock.sleep(LOOK_EVERY_S)),
        }
        try:
            await asyncio.wait({*waits, *self._tasks.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        for task in self._tasks.values():
            if task.done():
                task.result()
