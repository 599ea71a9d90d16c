"""One verb at a time on a machine; a verb that must not wait pushes the one at work aside."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from novacron.errors import DriverError, Reason

Result = TypeVar("Result")


class Gate:
    """Runs verbs one after another, each in a task of its own."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._at_work: asyncio.Task[Any] | None = None
        self._pushers: list[str] = []

    @property
    def idle(self) -> bool:
        """Whether nobody is at work or waits."""
        return not self._lock.locked() and not self._pushers

    async def run(self, verb: str, work: Coroutine[Any, Any, Result], *, pushes: bool = False) -> Result:
        """The result of `work`, once the verbs before it are done.

        pushes: end the verbs at work and waiting now (each undoes what it did) instead of waiting for them. Such a
        verb cannot be pushed itself. When the caller is cancelled so is the work, and the caller leaves after it
        has undone.

        :raise DriverError: it was pushed aside.
        """
        try:
            await (self._push(verb) if pushes else self._lock.acquire())
        except BaseException:
            work.close()
            raise
        try:
            if self._pushers and not pushes:
                work.close()
                raise self._gave_way(verb)
            return await self._finish(verb, work, pushes)
        finally:
            self._lock.release()

    async def _push(self, verb: str) -> None:
        self._pushers.append(verb)
        try:
            if self._at_work is not None:
                self._at_work.cancel()
            await self._lock.acquire()
        finally:
            self._pushers.remove(verb)

    async def _finish(self, verb: str, work: Coroutine[Any, Any, Result], pushes: bool) -> Result:
        task = asyncio.create_task(work)
        self._at_work = None if pushes else task
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # the caller has left; it learns nothing from it
            raise
        finally:
            self._at_work = None
        if task.cancelled() and self._pushers:
            raise self._gave_way(verb)
        return task.result()

    def _gave_way(self, verb: str) -> DriverError:
        reason = Reason("verb.pushed", f"{self._pushers[0]} was asked for meanwhile", subject=verb)
        return DriverError(f"{verb} gave way to {self._pushers[0]}", [reason])
