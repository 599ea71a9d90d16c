"""Going through very many things without holding up the event loop: heartbeats and requests come in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

Thing = TypeVar("Thing")


async def breathing(things: Iterable[Thing], every: int = 256) -> AsyncIterator[Thing]:
    """Each thing in turn; after so many others may act, and what was true of the things may be so no more."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % every == 0:
            await asyncio.sleep(0)
