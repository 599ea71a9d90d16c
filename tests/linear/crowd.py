"""Clients that read, write, create and delete a few records at once, each at any server, until they are stopped."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec

from novacron.errors import (
    CompareFailed,
    DeadlineExceeded,
    NameTaken,
    NotFound,
    NovaCronError,
    PreconditionFailed,
    Unavailable,
)
from tests.linear.checker import violations
from tests.linear.history import Asking, Kind, Op, Outcome, Recorder
from tests.linear.register import ABSENT, LEAVING, step
from tests.linear.sessions import judged
from tests.linear.ways import Found, Way

PATIENCE_S = 120.0
READS, SWAPS = 12, 12  # of 24 and what a way offers

Ways = Callable[[str, str], Way]
"""Client's name, server's name → a way of its own."""


@contextmanager
def _classified(one: Asking, is_read: bool = False) -> Any:
    """What a failure says of an operation's outcome; it goes no further."""
    try:
        yield
    except NotFound:
        one.done(Outcome.OK if is_read else Outcome.MISSING, **({"value": ABSENT} if is_read else {}))
    except (PreconditionFailed, CompareFailed, NameTaken):
        one.done(Outcome.REFUSED)
    except (Unavailable, DeadlineExceeded) as wrong:
        if any(reason.code == "server.unreachable" for reason in wrong.reasons):
            one.nothing()  # no connection: nobody has seen it
    except NovaCronError:
        one.nothing()


class Actor:
    """One client: one operation after the other, at whichever server."""

    def __init__(self, name: str, keys: Sequence[str], ways: Mapping[str, Way], recorder: Recorder) -> None:
        self.name = name
        self._keys = keys
        self._ways = ways
        self._recorder = recorder
        self._rng = random.Random(name)
        self._count = 0

    async def act(self) -> bool:
        """One thing more; whether it was answered."""
        key, server = self._rng.choice(self._keys), self._rng.choice(tuple(self._ways))
        offers = self._ways[server].offers
        kinds = {Kind.READ: READS, Kind.SWAP: SWAPS, **offers}
        kind = self._rng.choices(tuple(kinds), tuple(kinds.values()))[0]
        if kind is Kind.READ:
            return (await self.read(key, server, newest=self._rng.random() < 0.5)) is not None
        if kind is Kind.CREATE:
            return await self._create(key, server)
        if kind is Kind.WRITE:
            return await self._write(key, server)
        seen = await self.read(key, self._rng.choice(tuple(self._ways)), newest=self._rng.random() < 0.8)
        if seen is None or seen.op is None or seen.op.value in (ABSENT, LEAVING):
            return seen is not None
        return await self._swap(kind, key, server, seen.op)

    async def read(self, key: str, server: str, *, newest: bool) -> Asking | None:
        said = {"server": server, "consistent": newest}
        with self._recorder.asking(self.name, key, Kind.READ, **said) as one, _classified(one, is_read=True):
            _told(one, await self._ways[server].read(key, newest=newest))
        return one if await self._answered(one, server) else None

    async def _create(self, key: str, server: str) -> bool:
        value = self._new_value()
        with self._recorder.asking(self.name, key, Kind.CREATE, server=server, value=value) as one, _classified(one):
            _told(one, await self._ways[server].create(key, value))
        return await self._answered(one, server)

    async def _write(self, key: str, server: str) -> bool:
        value = self._new_value()
        with self._recorder.asking(self.name, key, Kind.WRITE, server=server, value=value) as one:
            with _classified(one):
                _told(one, await self._ways[server].write(key, value))
            if one.op is not None and one.op.outcome is Outcome.REFUSED:
                one.nothing()  # others wrote too often
        return await self._answered(one, server)

    async def _swap(self, kind: Kind, key: str, server: str, seen: Op) -> bool:
        """Write or delete what was seen, if it still is so."""
        way = self._ways[server]
        found = Found(value=seen.value, revision=seen.revision, object_id=seen.object_id)
        value = self._new_value() if kind is Kind.SWAP else ""
        said = {"server": server, "expected": seen.value, "expected_revision": seen.revision, "value": value}
        with self._recorder.asking(self.name, key, kind, **said) as one:
            with _classified(one):
                if kind is Kind.SWAP:
                    _told(one, await way.swap(key, found, value))
                else:
                    done = await way.delete(key, found)
                    one.done(Outcome.OK, revision=done.revision)
            if way.others_write and one.op is not None and one.op.outcome is Outcome.REFUSED:
                one.nothing()  # it says nothing of the value
        return await self._answered(one, server)

    async def _answered(self, one: Asking, server: str) -> bool:
        answered = one.op is not None and one.op.outcome is not Outcome.UNKNOWN
        if not answered or self._rng.random() < 0.02:
            await self._ways[server].reconnect()
        return answered

    def _new_value(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"


def _told(one: Asking, found: Found) -> None:
    one.done(
        Outcome.OK,
        value=found.value,
        revision=found.revision,
        object_id=found.object_id,
        generation=found.generation,
    )


class Crowd(msgspec.Struct):
    """Actors at work on one recorder."""

    actors: Sequence[Actor]
    recorder: Recorder
    answered: int = 0
    moved: asyncio.Condition = msgspec.field(default_factory=asyncio.Condition)

    async def run(self, actor: Actor) -> None:
        while True:
            if not await actor.act():
                await asyncio.sleep(0.02)  # a server that is down refuses at once: leave it time to come up
                continue
            async with self.moved:
                self.answered += 1
                self.moved.notify_all()

    async def goes_on(self, by: int = 60) -> None:
        """Wait until that many more things were answered."""
        wanted = self.answered + by
        async with asyncio.timeout(PATIENCE_S), self.moved:
            await self.moved.wait_for(lambda: self.answered >= wanted)


@asynccontextmanager
async def at_work(crowd: Crowd) -> AsyncIterator[Crowd]:
    """All actors act until the end of the block; what was under way then is of unknown outcome."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(crowd.run(actor)) for actor in crowd.actors]
        try:
            await crowd.goes_on()
            yield crowd
            await crowd.goes_on()
        finally:
            for task in tasks:
                task.cancel()


def judge(history: Sequence[Op], initial: Callable[[str], str]) -> str:
    """What was done, in a line. :raise AssertionError: a promise is broken; says which and how."""
    newest = [op for op in history if op.kind is not Kind.READ or op.consistent]
    broken = [*map(str, violations(newest, step, initial)), *judged(history)]
    assert not broken, "\n".join(broken)
    unknown = sum(op.outcome is Outcome.UNKNOWN for op in history)
    refused = sum(op.outcome is Outcome.REFUSED for op in history)
    writes = sum(op.wrote for op in history)
    return f"{len(history)} operations: {writes} writes done, {refused} refused, {unknown} unknown"
