"""The turn of a pool's image files: one server at a time, nobody's for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from novacron.control.images.turn import Turn
from novacron.errors import Unavailable

pytestmark = pytest.mark.anyio


async def test_one_at_a_time_in_all_servers_of_a_pool(tmp_path: Path) -> None:
    here, there = Turn(tmp_path), Turn(tmp_path)
    inside = 0

    async def work(turn: Turn) -> None:
        nonlocal inside
        for _ in range(20):
            async with turn:
                inside += 1
                await asyncio.sleep(0)
                assert inside == 1
                inside -= 1

    async with asyncio.timeout(20):
        await asyncio.gather(work(here), work(there), work(here))


async def test_who_gives_up_waiting_leaves_the_turn_to_others(tmp_path: Path) -> None:
    here, there = Turn(tmp_path), Turn(tmp_path)
    async with asyncio.timeout(20):
        async with here:
            waiting = asyncio.ensure_future(there.__aenter__())
            while not there._here.locked():
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with here, asyncio.timeout(10):
            pass
        async with there:
            pass


async def test_a_pool_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is it mounted"):
        async with Turn(tmp_path / "gone"):
            pass
    async with asyncio.timeout(10):
        with pytest.raises(Unavailable):
            async with Turn(tmp_path / "gone"):
                pass
