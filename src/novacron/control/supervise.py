"""Keeps a worker going: one that dies is logged, counted and started again after a growing pause; never silently."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from novacron.clock import Clock

FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A worker that ran this long has recovered: the next pause is short again."""

Work = Callable[[], Awaitable[None]]

_log = structlog.get_logger("supervisor")


async def keep_going(name: str, work: Work, clock: Clock, note_failure: Callable[[str], None]) -> None:
    """Run `work` for ever; only cancelling ends it. A worker that merely returns has failed too."""
    pause_s = FIRST_PAUSE_S
    while True:
        began_s = clock.monotonic_s()
        try:
            await work()
            _log.error("a worker ended by itself", worker=name)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 (whatever it was, the others go on and this one comes back)
            _log.exception("a worker died", worker=name)
        note_failure(name)
        if clock.monotonic_s() - began_s >= STEADY_S:
            pause_s = FIRST_PAUSE_S
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, LAST_PAUSE_S)
