"""Waiting for a thing to show, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Return when `condition` holds. :raise TimeoutError: it did not within the bound."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)
