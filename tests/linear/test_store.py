"""The stores themselves, and typed records over them: linearizable with many clients, and while etcd members fail."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from novacron.clock import SystemClock
from novacron.control.store.base import Change, Delete, Expect, Put, Store
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from tests.etcd_members import Members, members, opened, settled
from tests.linear.crowd import Actor, Crowd, at_work, judge
from tests.linear.history import Recorder
from tests.linear.register import ABSENT
from tests.linear.ways import RecordsWay, StoreWay

pytestmark = pytest.mark.anyio

KEYS = ("one", "two")
SERVERS = ("s1", "s2", "s3")
CLIENTS = 5


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path, 3) as started:
        yield started


@contextlib.asynccontextmanager
async def records_of(stores: dict[str, Store]) -> AsyncIterator[dict[str, Records]]:
    """A cache for each server."""
    made = {name: Records(store, SystemClock(), random.Random(name)) for name, store in stores.items()}
    try:
        for one in made.values():
            await one.start()
        yield made
    finally:
        for one in made.values():
            await one.stop()


def crowd_at(stores: dict[str, Store], records: dict[str, Records]) -> list[Crowd]:
    """Clients of the stores, and others of the records."""
    raw, typed = Recorder(), Recorder()
    at_stores = {name: StoreWay(store) for name, store in stores.items()}
    at_records = {name: RecordsWay(one) for name, one in records.items()}
    return [
        Crowd([Actor(f"raw{number}", KEYS, at_stores, raw) for number in range(CLIENTS)], raw),
        Crowd([Actor(f"typed{number}", KEYS, at_records, typed) for number in range(CLIENTS)], typed),
    ]


def judge_all(crowds: list[Crowd]) -> None:
    for crowd in crowds:
        print(judge(crowd.recorder.history, lambda _: ABSENT))  # noqa: T201


async def test_sqlite_is_linearizable(tmp_path: Path) -> None:
    """Several caches over one file, as each server has one."""
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    try:
        stores: dict[str, Store] = dict.fromkeys(SERVERS, store)
        async with records_of(stores) as records:
            crowds = crowd_at(stores, records)
            async with at_work(crowds[0]), at_work(crowds[1]):
                for crowd in crowds:
                    await crowd.goes_on(600)
    finally:
        await store.close()
    judge_all(crowds)


class Forgetful:
    """A store that applies what it is told without comparing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.get, self.list, self.watch = store.get, store.list, store.watch
        self.revision, self.compact, self.close = store.revision, store.compact, store.close

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        return await self._store.commit(ops)


class Late:
    """A store that tells a server of nothing that is newer than that server's own last write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.get, self.list = store.get, store.list
        self.revision, self.compact, self.close = store.revision, store.compact, store.close
        self._written = 0
        self._moved = asyncio.Event()

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        self._written = await self._store.commit(ops, expect)
        self._moved.set()
        return self._written

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        async for changes in self._store.watch(prefix, after=after):
            while changes[0].revision > self._written:
                self._moved.clear()
                await self._moved.wait()
            yield changes


async def judged_at(store: Store) -> None:
    """One kind of clients at a time: what the others do must not excuse it."""
    stores: dict[str, Store] = dict.fromkeys(SERVERS, store)
    async with records_of(stores) as records:
        for crowd in crowd_at(stores, records):
            async with at_work(crowd):
                await crowd.goes_on(600)
            with pytest.raises(AssertionError, match="was followed by"):
                judge(crowd.recorder.history, lambda _: ABSENT)


async def test_a_store_that_forgets_to_compare_is_noticed(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    try:
        await judged_at(Forgetful(store))
    finally:
        await store.close()


async def test_a_cache_taken_for_the_newest_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: Records) -> None:
        """As if it had caught up."""

    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    try:
        async with records_of({name: Late(store) for name in SERVERS}) as records:
            monkeypatch.setattr(Records, "refresh", at_once)
            crowd = crowd_at({}, records)[1]
            async with at_work(crowd):
                await crowd.goes_on(600)
    finally:
        await store.close()
    with pytest.raises(AssertionError, match="the state is"):
        judge(crowd.recorder.history, lambda _: ABSENT)


@pytest.mark.system
async def test_etcd_is_linearizable_while_its_members_fail(cluster: Members) -> None:
    """Each server begins at another member; the leader stands still, a member dies, the next leader dies."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(settled)
        stores: dict[str, Store] = {}
        for place in range(len(SERVERS)):
            await cluster.up(place)
        for place, name in enumerate(SERVERS):
            order = [(place + step) % len(SERVERS) for step in range(len(SERVERS))]
            stores[name] = await stack.enter_async_context(opened(cluster.address(places=order)))
        records = await stack.enter_async_context(records_of(stores))
        crowds = crowd_at(stores, records)
        async with at_work(crowds[0]), at_work(crowds[1]):
            await _fail(cluster, crowds)
    judge_all(crowds)


async def _fail(cluster: Members, crowds: list[Crowd]) -> None:
    async def goes_on() -> None:
        for crowd in crowds:
            await crowd.goes_on()

    leader = cluster.leader()
    cluster.signal(leader, signal.SIGSTOP)
    await goes_on()
    cluster.signal(leader, signal.SIGCONT)
    await cluster.up(leader)
    for place in (0, cluster.leader()):
        cluster.kill(place)
        await goes_on()
        cluster.start(place)
        await cluster.up(place)
        await goes_on()
