"""A server's process as the rest of the world meets it: frozen, it does and hears nothing; killed, never again.

What it awaits of the store, of agents and of the clock is held back until it is thawed, and then comes all at once, in
no order; its clock goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from novacron.clock import Clock
from novacron.control.line_listeners import Answerer, HelloListener, ProgressListener, ReportListener, Unsubscribe
from novacron.control.link import Answer
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put, Store
from novacron.errors import NovaCronError, StoreUnavailable
from novacron.testing.sim_lines import SimLines
from novacron.wire.membership import Question, Standing, Terms


class Held(Protocol):
    """A clock that can be kept from going on; `HandClock` is one."""

    def held(self) -> AbstractContextManager[None]:
        """No time passes while the block runs."""
        ...


class Frost:
    """What holds a server's tasks back. `dead`: for good."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._held: list[asyncio.Future[None]] = []
        self._frozen = self._dead = False

    async def passed(self) -> None:
        """Return when the server runs. :raise StoreUnavailable: it never will."""
        if self._dead:
            raise StoreUnavailable("this server is dead")
        if self._frozen:
            held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._held.append(held)
            await held

    async def around(self, doing: Awaitable[Any]) -> Any:
        """Begin it when the server runs, and know of its outcome when the server runs."""
        try:
            await self.passed()
        except BaseException:
            if inspect.iscoroutine(doing):
                doing.close()
            raise
        try:
            outcome = await doing
        except NovaCronError:
            await self.passed()
            raise
        await self.passed()
        return outcome

    def freeze(self) -> None:
        self._frozen = True

    def thaw(self) -> None:
        self._frozen = False
        self._rng.shuffle(self._held)
        for held in self._held:
            if not held.done():
                held.set_result(None)
        self._held.clear()

    def kill(self) -> None:
        self._dead = True
        for held in self._held:
            if not held.done():
                held.set_exception(StoreUnavailable("this server is dead"))
        self._held.clear()


class FrostClock:
    """Implements Clock."""

    def __init__(self, clock: Clock, frost: Frost) -> None:
        self._clock, self._frost = clock, frost
        self.monotonic_s, self.wall = clock.monotonic_s, clock.wall

    async def sleep(self, seconds: float) -> None:
        try:
            await self._frost.around(self._clock.sleep(seconds))
        except StoreUnavailable:
            await asyncio.Event().wait()  # the dead do not wake, not even to fail


class FrostStore:
    """Implements Store. `at_door` may hold back a commit that has left the server, whatever becomes of that."""

    def __init__(self, store: Store, frost: Frost, clock: Held) -> None:
        self._store, self._frost, self._clock = store, frost, clock
        self.at_door: Callable[[Sequence[Put | Delete]], Awaitable[None]] | None = None

    async def get(self, key: str) -> Entry | None:
        found: Entry | None = await self._frost.around(self._store.get(key))
        return found

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        page: Page = await self._frost.around(self._store.list(prefix, after=after, limit=limit))
        return page

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        async def arriving() -> int:
            if self.at_door is not None:
                await self.at_door(ops)
            with self._clock.held():  # a disk takes real time, and nobody is to be late because of it
                return await self._store.commit(ops, expect)

        return int(await self._frost.around(arriving()))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        async for changes in self._store.watch(prefix, after=after):
            await self._frost.passed()
            yield changes

    async def revision(self) -> int:
        return int(await self._frost.around(self._store.revision()))

    async def compact(self, revision: int) -> None:
        await self._frost.around(self._store.compact(revision))

    async def close(self) -> None:
        """The store is everybody's."""


class FrostLines:
    """Implements reign.Lines. It hears when it runs."""

    def __init__(self, lines: SimLines, frost: Frost, clock: Clock) -> None:
        self._lines, self._frost, self._clock = lines, frost, clock
        self._heard_s: dict[str, float] = {}
        self.is_connected = lines.is_connected
        self.greet = lines.greet
        lines.on_hello(self._heard(lambda hello: hello.node_id))
        lines.on_report(self._heard(lambda node_id, _report: node_id))

    def _heard(self, who: Callable[..., str]) -> Callable[..., Awaitable[None]]:
        async def hear(*told: Any) -> None:
            await self._frost.passed()
            self._heard_s[who(*told)] = self._clock.monotonic_s()

        return hear

    def heard_ago_s(self, node_id: str) -> float | None:
        heard_s = self._heard_s.get(node_id)
        return None if heard_s is None else self._clock.monotonic_s() - heard_s

    async def call(
        self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float, term: int = 0
    ) -> Answer:
        calling = self._lines.call(node_id, args, answer, deadline_s=deadline_s, term=term)
        found: Answer = await self._frost.around(calling)
        return found

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        self._lines.on_progress(migration_id, listener)

    def on_question(self, terms: Callable[[], Terms], answerer: Answerer) -> None:
        """See LineListeners.on_question."""

        async def answer(node_id: str, question: Question) -> Standing:
            standing: Standing = await self._frost.around(answerer(node_id, question))
            return standing

        self._lines.on_question(terms, answer)

    def on_hello(self, listener: HelloListener) -> Unsubscribe:
        return self._lines.on_hello(self._thawed(listener))

    def on_report(self, listener: ReportListener) -> Unsubscribe:
        return self._lines.on_report(self._thawed(listener))

    def _thawed(self, listener: Callable[..., Awaitable[None] | None]) -> Callable[..., Awaitable[None]]:
        async def tell(*told: Any) -> None:
            await self._frost.passed()
            answer = listener(*told)
            if inspect.isawaitable(answer):
                await answer

        return tell
