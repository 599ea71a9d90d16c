"""Real QEMUs over the stream proxy: the guest arrives with its memory whole; cancel and lost targets act as ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.agent.stream.cache import PageCache, Scope
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.receiver import Receiver
from novacron.agent.stream.sender import Sender
from novacron.errors import MigrationFailed, NovaCronError
from tests.agent.stream_ends import Relay
from tests.system.rom_machine import needs_qemu, until
from tests.system.rom_pair import RomMachine, pair

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
HOST = "127.0.0.1"
ROUND = 150  # ticks in which it has written, or compared, all of its working set
SLOW = 1 << 20  # what QEMU gives a second, so that there is a middle


class Move:
    """A guest that ticks, its target, and a stream between their hosts through a relay."""

    def __init__(
        self, source: RomMachine, target: RomMachine, sender: Sender, receiver: Receiver, relay: Relay
    ) -> None:
        self.source, self.target, self.sender, self.receiver, self.relay = source, target, sender, receiver, relay
        self.address = ""

    async def begin(self, bandwidth: int = 0, downtime_limit: int = 300) -> None:
        await self.source.do("migrate-set-parameters", max_bandwidth=bandwidth, downtime_limit=downtime_limit)
        await self.source.do("migrate", uri=self.address)

    async def finish(self) -> None:
        """Completed at both; the target runs on with no page wrong, and where the source stood."""
        await self.source.migration("completed")
        await self.target.migration("completed")
        assert (await self.source.do("query-status"))["status"] == "postmigrate"
        last, _ = self.source.ticks()[-1]
        await self.target.do("cont")
        await self.target.ticking(ROUND)  # every page of its working set is compared
        ticks = self.target.ticks()
        assert {bad for _, bad in ticks} == {0}
        assert ticks[0][0] <= last + 3
        await self.sender.wait()
        await self.receiver.wait()


@contextlib.asynccontextmanager
async def between(
    scope: Scope | None = None, *, memory_mib: int = 32, pages: int = 16, wss: int = 2048, deadline_s: float = 20
) -> AsyncIterator[Move]:
    async with pair(memory_mib, pages, wss) as (source, target, folder):
        key, relay = os.urandom(32), Relay()
        settings = Settings(silence_s=0.5, deadline_s=deadline_s)
        async with (
            Receiver(secret=key, host=HOST, qemu_path=folder / "in", scope=scope, settings=settings) as receiver,
            relay.opened(await receiver.start()) as through,
            Sender(secret=key, target=through, socket_path=folder / "out", settings=settings) as sender,
        ):
            await target.do("migrate-incoming", uri=f"unix:{folder / 'in'}")
            move = Move(source, target, sender, receiver, relay)
            move.address = await sender.start()
            yield move


async def test_a_guest_arrives_with_its_memory_whole() -> None:
    async with between() as move:
        await move.source.ticking(ROUND)
        await move.begin()
        await move.finish()
        figures = move.sender.figures()
        assert figures.pages > 1500
        assert figures.ratio > 5  # its pages hold one number each


async def test_a_like_guest_is_made_of_pages_the_target_holds(tmp_path: Path) -> None:
    cache = PageCache(tmp_path, 64 << 20)
    moves = []
    for _ in range(2):
        async with between(cache.scope("tests")) as move:
            await move.source.ticking(ROUND)
            await move.begin()
            await move.finish()
            moves.append(move.sender.figures())
    cache.close()
    first, second = moves
    assert second.held_pages > 0.75 * second.pages
    assert second.pages - second.held_pages < first.pages - first.held_pages  # even the first has pages that are alike


async def test_a_cut_in_the_middle_is_survived() -> None:
    async with between() as move:
        await move.source.ticking(ROUND)
        await move.begin(SLOW)
        await until(lambda: move.receiver.figures().raw_bytes > 1 << 20, "a part of the stream")
        move.relay.cut()
        assert await move.source.state() == "active"
        move.relay.mend()
        await until(lambda: move.sender.figures().reconnects > 0, "a new connection")
        await move.source.do("migrate-set-parameters", max_bandwidth=0)
        await move.finish()


async def test_cancel_works_at_once_also_when_nothing_passes() -> None:
    async with between(deadline_s=2) as move:
        await move.begin(SLOW)
        await until(lambda: move.receiver.figures().raw_bytes > 0, "the beginning of the stream")
        move.relay.deafen()
        async with asyncio.timeout(1):
            await move.source.do("migrate_cancel")
            while await move.source.state() != "cancelled":
                await asyncio.sleep(0.005)
        await move.source.ticking()
        await move.sender.close()
        with pytest.raises(NovaCronError):
            await move.receiver.wait()
        await asyncio.to_thread(move.target.process.wait, 10)
        assert {bad for _, bad in move.source.ticks()} == {0}


async def test_a_cancelled_migration_ends_both_ends_by_itself() -> None:
    async with between() as move:
        await move.begin(SLOW)
        await until(lambda: move.receiver.figures().raw_bytes > 0, "the beginning of the stream")
        await move.source.do("migrate_cancel")
        for end in (move.sender, move.receiver):
            with contextlib.suppress(MigrationFailed):  # as it comes: the target's QEMU may go before all has arrived
                await end.wait()
        await asyncio.to_thread(move.target.process.wait, 10)
        await move.source.ticking()


async def test_a_target_that_dies_fails_the_migration_and_the_source_runs() -> None:
    async with between() as move:
        await move.begin(SLOW)
        await until(lambda: move.receiver.figures().raw_bytes > 0, "the beginning of the stream")
        move.target.process.kill()
        async with asyncio.timeout(10):
            while await move.source.state() != "failed":
                await asyncio.sleep(0.005)
        await move.source.ticking()
        with contextlib.suppress(NovaCronError):
            await move.sender.wait()


async def test_post_copy_passes_with_its_requests() -> None:
    async with between(memory_mib=64, pages=64, wss=8192) as move:
        for machine in (move.source, move.target):
            try:
                await machine.capable("postcopy-ram")
            except RuntimeError as refused:
                pytest.skip(f"no post-copy here: {refused}")
        await move.source.ticking(ROUND)
        await move.begin(SLOW, downtime_limit=1)
        await until(lambda: move.receiver.figures().raw_bytes > 0, "the beginning of the stream")
        await move.source.do("migrate-start-postcopy")
        await move.target.migration("postcopy-active", "completed")
        await move.target.do("cont")
        await move.target.ticking(3)
        await move.source.migration("completed")
        await move.target.migration("completed")
        await move.target.ticking(ROUND)
        assert {bad for _, bad in move.target.ticks()} == {0}
