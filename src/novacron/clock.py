"""The only source of time: everything that waits or stamps takes a Clock, so that a simulator can hand it another."""

from __future__ import annotations

import asyncio
import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the system sees it.

    `monotonic_s` orders and measures on this machine and counts while it sleeps (CLOCK_BOOTTIME);
    `wall` is for people and records only: it decides nothing.
    """

    def monotonic_s(self) -> float: ...

    def wall(self) -> datetime.datetime: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def monotonic_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
