"""Workers are kept going: a death is counted, told and followed by a new start; pauses grow and shrink again."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

import pytest

from novacron.config import ServerConfig
from novacron.control import once
from novacron.control.household import household
from novacron.control.staff import HOUSEKEEPING_S, workers
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.control.supervise import FIRST_PAUSE_S, LAST_PAUSE_S, STEADY_S, keep_going
from novacron.errors import Compacted
from novacron.testing.hand_clock import HandClock
from tests.control.api import POOL_ID, TinyAgents

pytestmark = pytest.mark.anyio


async def test_a_worker_that_dies_is_started_again_after_growing_pauses() -> None:
    clock = HandClock()
    starts: list[float] = []
    failures: list[str] = []

    async def work() -> None:
        starts.append(clock.monotonic_s())
        if len(starts) == 3:
            return  # merely ending is failing too
        if len(starts) == 10:
            await clock.sleep(STEADY_S)
        raise RuntimeError("broken")

    keeping = asyncio.create_task(keep_going("worker", work, clock, failures.append))
    await clock.advance(LAST_PAUSE_S * 8 + STEADY_S)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses[:3] == [FIRST_PAUSE_S, FIRST_PAUSE_S * 2, FIRST_PAUSE_S * 4]
    assert pauses[7:9] == [LAST_PAUSE_S, LAST_PAUSE_S]
    assert pauses[9] == STEADY_S + FIRST_PAUSE_S  # it had recovered
    assert failures == ["worker"] * len(failures)
    assert len(failures) >= len(starts) - 1


async def test_a_worker_that_is_ended_stays_ended() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    failures: list[str] = []
    keeping = asyncio.create_task(keep_going("worker", work, HandClock(), failures.append))
    await asyncio.sleep(0)
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert failures == []


async def test_the_house_is_kept_small(tmp_path: Path) -> None:
    clock = HandClock()
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    records = Records(store, clock, random.Random(1))
    await records.start()
    config = ServerConfig(data_dir=tmp_path, pool_dir=tmp_path, keep_revisions=10)
    work = workers(household(config, records, TinyAgents(), clock, POOL_ID), TinyAgents())  # type: ignore[arg-type]
    kept = once.Once(store, f"{once.KEYS}admin/key", "request", clock.wall())
    await records.commit(*kept.note({}, 200))
    for number in range(30):
        await records.commit(ops=[once.Put("scratch", str(number).encode())])
    keeping = asyncio.create_task(work["housekeeping"]())
    await clock.advance(HOUSEKEEPING_S + 1)
    await _compacted(store)
    assert await store.get(f"{once.KEYS}admin/key") is not None
    await clock.advance(once.KEPT_FOR.total_seconds())
    async with asyncio.timeout(5):
        while await store.get(f"{once.KEYS}admin/key") is not None:
            await clock.advance(HOUSEKEEPING_S)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await records.stop()
    await store.close()


async def _compacted(store: SqliteStore) -> None:
    """Until what is older than the last ten revisions is gone, and no more than that."""
    last = await store.revision()
    async with asyncio.timeout(5):
        while True:
            try:
                async for _ in store.watch("", after=last - 11):
                    break
            except Compacted:
                break
            await asyncio.sleep(0.001)
    async for changes in store.watch("", after=last - 10):
        assert changes[0].revision == last - 9
        return
