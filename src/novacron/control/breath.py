"""Giving way: to others while very many things are gone through, and until there is something to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

from novacron.clock import Clock

Thing = TypeVar("Thing")


async def breathing(things: Iterable[Thing], every: int = 256) -> AsyncIterator[Thing]:
    """Each thing in turn; after so many others may act, and what was true of the things may be so no more."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % every == 0:
            await asyncio.sleep(0)


class Bell:
    """Where a worker rests between two looks. `ring`, from within the event loop, ends its rest, or the next one."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def rest(self, clock: Clock, at_most_s: float | None) -> None:
        """Return once it has been rung since the last rest, and at the latest after so long. None: only then."""
        waits: list[asyncio.Task[object]] = [asyncio.create_task(self._rung.wait())]
        if at_most_s is not None:
            waits.append(asyncio.create_task(clock.sleep(at_most_s)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        self._rung.clear()
