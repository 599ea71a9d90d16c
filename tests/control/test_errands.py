"""Works side by side: one for each key, told when they end, called off together, opened again."""

from __future__ import annotations

import asyncio

import pytest

from novacron.control.errands import Errands

pytestmark = pytest.mark.anyio


class Desk:
    """Works that wait to be let go, and which have been told to be over."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.over: list[str] = []
        self.go = asyncio.Event()
        self.errands = Errands[int]("desk", self.over.append)

    def begin(self, key: str, mark: int = 0) -> None:
        async def work() -> None:
            self.begun.append(f"{key}{mark}")
            await self.go.wait()

        self.errands.begin(key, mark, work)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_work_for_each_key_and_its_end_is_told() -> None:
    desk = Desk()
    async with desk.errands:
        desk.begin("a", 1)
        desk.begin("a", 2)
        desk.begin("b", 3)
        await turns()
        assert desk.begun == ["a1", "b3"]
        assert {key: errand.mark for key in desk.errands if (errand := desk.errands.under_way(key))} == {"a": 1, "b": 3}
        desk.errands.call_off("a")
        desk.errands.call_off("nobody")
        await turns()
        assert desk.over == ["a"]
        desk.go.set()
        await turns()
        assert desk.over == ["a", "b"]
        assert list(desk.errands) == []


async def test_whoever_is_told_may_begin_the_next_at_once() -> None:
    desk = Desk()
    desk.go.set()
    errands = Errands[int]("again", lambda key: desk.begun.append(key) if len(desk.begun) > 2 else begin(key))

    def begin(key: str) -> None:
        async def work() -> None:
            desk.begun.append(key)

        errands.begin(key, 0, work)

    async with errands:
        begin("a")
        await turns()
        await turns()
    assert desk.begun == ["a"] * 4


async def test_closing_calls_all_off_and_tells_nobody_and_they_can_be_opened_again() -> None:
    desk = Desk()
    desk.begin("early")
    async with desk.errands:
        desk.begin("a")
        await turns()
    desk.begin("late")
    assert (desk.begun, desk.over, list(desk.errands)) == (["a0"], [], [])
    async with desk.errands:
        desk.begin("a", 1)
        await turns()
    assert desk.begun == ["a0", "a1"]
