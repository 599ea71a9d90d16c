"""Going through very many records holds nobody up."""

from __future__ import annotations

import asyncio

import pytest

from novacron.control.breath import breathing

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
