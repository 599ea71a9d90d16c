"""Has the source keep to the bandwidth its migration's record says, for as long as somebody waits for its stream.

The record is what is wanted: whoever changes it, by hand or to share a budget anew, changes it there. A bandwidth that
cannot be told now, because nothing flows yet or the line is down, is told again until it is told or the step has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.control.store.records import Records, Seen
from novacron.errors import NovaCronError
from novacron.model.migration import Migration
from novacron.wire.moving import SetBandwidth

RETRY_S = 0.5
DEADLINE_S = 10.0


class BandwidthTeller:
    """One for all migrations of a conductor."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._log = structlog.get_logger("conductor")

    @asynccontextmanager
    async def of(self, migration: Migration) -> AsyncIterator[None]:
        """While the block runs, which began by telling the source what this record says.

        A stream that is joined again may go at the pace of before a change, so one that was changed is told anew.
        """
        news = asyncio.Event()

        def heard(seen: Sequence[Seen]) -> None:
            if any(one.kind is MIGRATIONS and one.now is not None and one.now.id == migration.id for one in seen):
                news.set()

        stop = self._records.subscribe(heard)
        news.set()  # it may have been changed between the reading of the record and here
        telling = asyncio.create_task(self._tell(migration, news), name=f"bandwidth-{migration.id}")
        try:
            yield
        finally:
            stop()
            telling.cancel()  # not awaited: the hand-over comes next, and the guest stands still
            telling.add_done_callback(self._ended)

    async def _tell(self, migration: Migration, news: asyncio.Event) -> None:
        told = None if migration.paced_by else migration.goals.bandwidth_bytes_per_s
        while True:
            await news.wait()
            news.clear()
            now = self._records.find(MIGRATIONS, migration.id).record
            wanted = now.goals.bandwidth_bytes_per_s
            if wanted == told:
                continue
            vm = self._records.find(VMS, now.vm_id).record
            verb = SetBandwidth(vm_id=vm.id, generation=vm.generation, migration_id=now.id, bytes_per_s=wanted)
            try:
                await self._agents.call(now.source_node, verb, type(None), deadline_s=DEADLINE_S)
                told = wanted
            except NovaCronError as not_now:
                self._log.info("bandwidth not set; trying again", migration_id=now.id, why=not_now.message)
                await self._clock.sleep(RETRY_S)
                news.set()

    def _ended(self, telling: asyncio.Task[None]) -> None:
        if not telling.cancelled() and (failure := telling.exception()) is not None:
            self._log.warning("bandwidth was not set", why=str(failure))
