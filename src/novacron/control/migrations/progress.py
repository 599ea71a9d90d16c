"""Writes the newest progress report of a transfer to its record, for as long as somebody waits for the transfer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.migrations.journal import Journal
from novacron.model.migration import Progress

INTERVAL_S = 0.5


class ProgressWriter:
    """One for all migrations of a conductor."""

    def __init__(self, agents: Agents, clock: Clock, journal: Journal) -> None:
        self._agents = agents
        self._clock = clock
        self._journal = journal
        self._log = structlog.get_logger("conductor")

    @asynccontextmanager
    async def of(self, migration_id: str) -> AsyncIterator[None]:
        """At most one write every INTERVAL_S while the block runs. A write that fails is logged and nothing more."""
        newest: list[Progress] = []
        news = asyncio.Event()

        def heard(progress: Progress) -> None:
            newest[:] = [progress]
            news.set()

        async def write() -> None:
            while True:
                await news.wait()
                news.clear()
                await self._journal.progress(migration_id, newest[0])
                await self._clock.sleep(INTERVAL_S)

        self._agents.on_progress(migration_id, heard)
        writer = asyncio.create_task(write(), name=f"progress-{migration_id}")
        try:
            yield
        finally:
            self._agents.on_progress(migration_id, None)
            writer.cancel()  # not awaited: the hand-over comes next, and the guest stands still
            writer.add_done_callback(self._ended)

    def _ended(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and (failure := writer.exception()) is not None:
            self._log.warning("progress was not written", why=str(failure))
