"""The server looks for garbage among what lives long seldom, but it does."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from novacron.control import main

pytestmark = pytest.mark.anyio


class Loop:
    """Refers to itself, so that only a search for garbage ends it."""

    def __init__(self) -> None:
        self.myself = self


async def test_what_lives_long_is_looked_through_by_the_clock_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "GARBAGE_EVERY_S", 0.0)
    before = gc.get_threshold()
    try:
        async with main._seldom_looked_through():
            assert gc.isenabled()
            assert gc.get_freeze_count() > 0
            assert gc.get_threshold() == (*before[:2], main.NEVER)
            gone = weakref.ref(Loop())
            async with asyncio.timeout(20):
                while gone() is not None:
                    await asyncio.sleep(0)
        assert gc.get_threshold() == before
    finally:
        gc.unfreeze()
