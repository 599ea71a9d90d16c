"""Three etcd members killed, stopped and brought back under writes and a watch: nothing is lost or told twice."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from novacron.control.store.base import Change, Expect, Put
from novacron.control.store.etcd import EtcdStore
from novacron.errors import CompareFailed, StoreUnavailable
from tests.etcd_members import Members, members, opened, settled

pytestmark = [pytest.mark.anyio, pytest.mark.system]
PATIENCE_S = 60.0
WRITERS = 4


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Members]:
    with members(tmp_path, 3) as started:
        yield started


@pytest.fixture(autouse=True)
async def _settled() -> AsyncIterator[None]:
    yield
    await settled()


class Traffic(msgspec.Struct):
    """Writers that count up a record each by compare-and-swap, and a watch that hears them.

    acknowledged: writer → revision of each count, from 1; heard: everything the watch told.
    """

    store: EtcdStore
    acknowledged: dict[str, list[int]] = msgspec.field(default_factory=dict)
    heard: list[tuple[Change, ...]] = msgspec.field(default_factory=list)
    slowest_s: float = 0.0  # of all commits; tests.bench.etcd shows it
    stop: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    moved: asyncio.Condition = msgspec.field(default_factory=asyncio.Condition)

    async def write(self, name: str) -> None:
        """Every answer must be the truth: a comparison is never lost, as nobody else writes this record."""
        revisions = self.acknowledged.setdefault(name, [])
        while not self.stop.is_set():
            before_s = time.monotonic()
            expect = [Expect(name, revisions[-1] if revisions else 0)]
            revision = await self.store.commit([Put(name, str(len(revisions) + 1).encode())], expect)
            self.slowest_s = max(self.slowest_s, time.monotonic() - before_s)
            revisions.append(revision)
            async with self.moved:
                self.moved.notify_all()

    async def listen(self) -> None:
        watch = self.store.watch("w/", after=0)
        try:
            async for changes in watch:
                self.heard.append(changes)
                async with self.moved:
                    self.moved.notify_all()
        finally:
            await watch.aclose()  # type: ignore[attr-defined]

    @property
    def written(self) -> int:
        return sum(map(len, self.acknowledged.values()))

    async def goes_on(self, by: int = 40) -> None:
        """Wait until that many more writes of every writer together were acknowledged, and as many heard."""
        written, heard = self.written + by, len(self.heard) + by
        async with asyncio.timeout(PATIENCE_S), self.moved:
            await self.moved.wait_for(lambda: self.written >= written and len(self.heard) >= heard)

    async def end(self) -> None:
        self.stop.set()
        async with asyncio.timeout(PATIENCE_S), self.moved:
            await self.moved.wait_for(lambda: len(self.heard) >= self.written)

    def check(self) -> None:
        """Each acknowledged write was told once, in order, with the revision it was acknowledged with."""
        told = [(item[0].revision, item[0].key, item[0].value) for item in self.heard]
        assert all(len(item) == 1 for item in self.heard)
        expected = [
            (revision, name, str(number).encode())
            for name, revisions in self.acknowledged.items()
            for number, revision in enumerate(revisions, 1)
        ]
        assert told == sorted(expected)


@contextlib.asynccontextmanager
async def traffic(store: EtcdStore) -> AsyncIterator[Traffic]:
    """Ends with the check."""
    one = Traffic(store)
    listening = asyncio.create_task(one.listen())
    writing = [asyncio.create_task(one.write(f"w/{number}")) for number in range(WRITERS)]
    try:
        await one.goes_on()
        yield one
        await one.goes_on()
        one.stop.set()
        await asyncio.gather(*writing)
        await one.end()
        one.check()
    finally:
        for task in (listening, *writing):
            task.cancel()
        await asyncio.gather(listening, *writing, return_exceptions=True)


async def test_killed_members_lose_no_acknowledged_write_and_no_event(cluster: Members) -> None:
    """The member in use, then whoever leads, then each in turn; one returns before the next dies."""
    async with opened(cluster.address()) as store, traffic(store) as running:
        for place in (0, cluster.leader(), 1, 2):
            cluster.kill(place)
            await running.goes_on()
            cluster.start(place)
            await cluster.up(place)
            await running.goes_on()
    async with opened(cluster.address(places=(1,))) as other:
        entries = {entry.key: (entry.value, entry.modified) for entry in (await other.list("w/")).entries}
    assert entries == {
        name: (str(len(revisions)).encode(), revisions[-1]) for name, revisions in running.acknowledged.items()
    }


async def test_the_leader_killed_in_the_midst_of_a_stop_of_the_member_in_use(cluster: Members) -> None:
    """A silent member is worse than a dead one: nothing says that it is gone."""
    async with opened(cluster.address()) as store, traffic(store) as running:
        cluster.signal(0, signal.SIGSTOP)
        await running.goes_on()
        cluster.signal(0, signal.SIGCONT)
        await running.goes_on()
        place = cluster.leader()
        cluster.signal(place, signal.SIGSTOP)
        await running.goes_on()
        cluster.kill(place)
        await running.goes_on()
        cluster.start(place)


async def test_without_a_majority_writes_are_refused_and_the_watch_waits(cluster: Members) -> None:
    async with opened(cluster.address()) as store:
        made = await store.commit([Put("w/a", b"1")])
        watch = store.watch("w/", after=0)
        assert (await anext(watch))[0].revision == made
        waiting = asyncio.ensure_future(anext(watch))
        for place in (0, 1):
            cluster.kill(place)
        with pytest.raises(StoreUnavailable, match="no etcd member did it in time") as refused:
            await store.commit([Put("w/a", b"2")], [Expect("w/a", made)])
        assert "majority" in refused.value.reasons[0].remedy
        for place in (0, 1):
            cluster.start(place)
        async with asyncio.timeout(PATIENCE_S):
            await win(store, made)
            told = [await waiting]
            while told[-1][0].value != b"won":
                told.append(await anext(watch))
        assert [item[0].value for item in told] in ([b"won"], [b"2", b"won"])
        await watch.aclose()  # type: ignore[attr-defined]


async def win(store: EtcdStore, modified: int) -> None:
    """After an unknown outcome: a conflicting write, until one of them stands."""
    while True:
        try:
            await store.commit([Put("w/a", b"won")], [Expect("w/a", modified)])
        except CompareFailed:
            entry = await store.get("w/a")
            assert entry is not None
            assert entry.value == b"2"
            modified = entry.modified
        except StoreUnavailable:
            continue
        else:
            return
