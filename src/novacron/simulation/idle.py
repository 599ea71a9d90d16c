"""An event loop on which time passes when nothing is left to do: no waiting, and no instant is left half done."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from novacron.testing.hand_clock import HandClock

P = ParamSpec("P")
T = TypeVar("T")


class _IdleSelector(selectors.DefaultSelector):
    """Where a loop would wait it winds the clock instead; while time is held (a thread works) it does wait."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        events = super().select(0)
        return events if events or self._clock.wake_next() else super().select(timeout)


class _AtOnce(ThreadPoolExecutor):
    """Does what it is given at once: files are small here, and what takes no virtual time must not be overtaken."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 (whoever asked is told)
            done.set_exception(error)
        return done


def loop_on(clock: HandClock) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes event loops, for asyncio.Runner, that wind that clock."""

    def make() -> asyncio.AbstractEventLoop:
        loop: Any = asyncio.SelectorEventLoop(_IdleSelector(clock))
        loop.set_default_executor(_AtOnce(1))
        return loop  # type: ignore[no-any-return]

    return make
