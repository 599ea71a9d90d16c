"""A clock wound by hand: time passes when a test says so, and sleepers wake in the order of their deadlines."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import heapq
import itertools
from collections.abc import Iterator

START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
_SETTLE_ROUNDS = 20


class HandClock:
    """Implements clock.Clock. `await advance(seconds)` wakes sleepers one deadline at a time, letting each act.

    Work done in threads (the agent's ledger) takes no time on this clock: wait for its effect, not for the clock.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    def monotonic_s(self) -> float:
        return self._now_s

    def wall(self) -> datetime.datetime:
        return START + datetime.timedelta(seconds=self._now_s)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + seconds, next(self._order), woken))
        await woken

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No time passes while the block runs: for what takes real time, and would be late for no reason."""
        self._holders += 1
        self._free.clear()
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._free.set()

    @property
    def next_wake_s(self) -> float | None:
        """When the next sleeper wakes; None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def wake_next(self) -> bool:
        """Let time pass until the next sleeper wakes; for who knows that nobody can do anything before that.

        False: nobody sleeps, or time is held.
        """
        wake_s = self.next_wake_s
        if self._holders or wake_s is None:
            return False
        _, _, woken = heapq.heappop(self._sleepers)
        self._now_s = wake_s
        woken.set_result(None)
        return True

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        await self.settle()
        await self._free.wait()
        until_s = self._now_s + seconds
        while (wake_s := self.next_wake_s) is not None and wake_s <= until_s:
            self.wake_next()
            await self.settle()
            await self._free.wait()
        self._now_s = until_s

    async def settle(self) -> None:
        """Let every task that can run do so, without time passing."""
        for _ in range(_SETTLE_ROUNDS):
            await asyncio.sleep(0)
