"""Going through very many records holds nobody up, and who waits is woken."""

from __future__ import annotations

import asyncio

import pytest

from novacron.control.breath import Bell, breathing
from novacron.testing.hand_clock import HandClock

pytestmark = pytest.mark.anyio


async def test_others_act_while_very_much_is_gone_through() -> None:
    acted = 0

    async def act() -> None:
        nonlocal acted
        while True:
            acted += 1
            await asyncio.sleep(0)

    acting = asyncio.create_task(act())
    seen = [(thing, acted) async for thing in breathing(range(10), every=4)]
    acting.cancel()
    assert [thing for thing, _ in seen] == list(range(10))
    assert [turn for _, turn in seen] == [0] * 4 + [1] * 4 + [2] * 2


async def test_what_is_handed_out_of_little_comes_at_once() -> None:
    assert [thing async for thing in breathing([])] == []
    assert [thing async for thing in breathing("ab")] == ["a", "b"]


@pytest.mark.parametrize("at_most_s", [None, 10.0])
async def test_who_rests_is_woken(at_most_s: float | None) -> None:
    bell, before = Bell(), asyncio.all_tasks()
    resting = asyncio.create_task(bell.rest(HandClock(), at_most_s))
    await asyncio.sleep(0)
    assert not resting.done()
    bell.ring()
    await resting
    assert asyncio.all_tasks() == before
    bell.ring()  # while the worker looks: there is something to see again
    await bell.rest(HandClock(), at_most_s)
    resting = asyncio.create_task(bell.rest(HandClock(), at_most_s))
    await asyncio.sleep(0)
    assert not resting.done()
    resting.cancel()


async def test_who_rests_goes_on_when_the_time_is_over() -> None:
    clock, before = HandClock(), asyncio.all_tasks()
    resting = asyncio.create_task(Bell().rest(clock, 10.0))
    await clock.advance(9.9)
    assert not resting.done()
    await clock.advance(0.1)
    await resting
    assert asyncio.all_tasks() == before
