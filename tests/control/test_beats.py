"""Heartbeats written together: one transaction for many, each still for itself when one of them has lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.nodes.beats import MAX_TOGETHER, Beats
from novacron.control.store.base import Delete, Expect, Put
from novacron.control.store.kinds import MEMBERS
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import NotFound, StoreUnavailable
from novacron.model.ha import FenceClass
from novacron.model.membership import Membership, MemberState
from novacron.wire.membership import Beat

pytestmark = pytest.mark.anyio


class Watched:
    """A store whose commits are counted, can be held back and can fail. Else as the one behind it."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.commits: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.fails = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        self.commits.append(len(ops))
        await self.open.wait()
        if self.fails:
            raise StoreUnavailable("away")
        return await self._store.commit(ops, expect)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Watched]:
    one = await SqliteStore.open(tmp_path / "store.db", durable=False)
    yield Watched(one)
    await one.close()


@pytest.fixture
async def records(store: Watched) -> AsyncIterator[Records]:
    one = Records(store, SystemClock(), random.Random(1))  # type: ignore[arg-type]
    await one.start()
    yield one
    await one.stop()


async def members(records: Records, count: int) -> list[str]:
    ids = [f"n{number}" for number in range(count)]
    for one in ids:
        pledge = {"ttl_s": 15.0, "fence_class": FenceClass.TIMER, "boot_id": "b"}
        await records.create(MEMBERS, Membership(id=one, state=MemberState.UP, epoch=1, beats=1, **pledge))
    return ids


def beat(beats: int = 2, epoch: int = 1) -> Beat:
    return Beat(id=beats, epoch=epoch, beats=beats, ttl_s=15.0)


def beats_of(records: Records, node_id: str) -> int:
    stored = records.get(MEMBERS, node_id)
    assert stored is not None
    return stored.record.beats


async def first_under_way(beats: Beats, store: Watched, node_id: str) -> asyncio.Task[object]:
    """One that is being written, and hangs in the store."""
    store.commits.clear()
    store.open.clear()
    task: asyncio.Task[object] = asyncio.create_task(beats.count(node_id, beat()))
    while not store.commits:
        await asyncio.sleep(0)
    return task


async def test_what_comes_while_one_is_written_goes_together(records: Records, store: Watched) -> None:
    ids, beats = await members(records, MAX_TOGETHER + 3), Beats(records)
    first = await first_under_way(beats, store, ids[0])
    rest = [asyncio.create_task(beats.count(one, beat())) for one in ids[1:]]
    await asyncio.sleep(0)
    store.open.set()
    counted = await asyncio.gather(first, *rest)
    assert store.commits == [1, MAX_TOGETHER, 2]
    assert [one.record.beats for one in counted if one] == [2] * len(ids)
    assert {beats_of(records, one) for one in ids} == {2}
    for one, found in zip(ids, counted, strict=True):  # each is told the very revision at which it was written
        assert found == records.get(MEMBERS, one)


async def test_one_that_has_lost_costs_the_others_nothing(records: Records, store: Watched) -> None:
    ids, beats = await members(records, 4), Beats(records)
    first = await first_under_way(beats, store, ids[0])
    rest = [asyncio.create_task(beats.count(one, beat())) for one in ids[1:]]
    await asyncio.sleep(0)
    stale = records.get(MEMBERS, ids[2])
    assert stale is not None
    barred = msgspec.structs.replace(stale.record, state=MemberState.FENCING, epoch=2)
    other = Put(MEMBERS.key(ids[2]), msgspec.json.encode(barred))  # as another server writes it, not seen here yet
    get, seen = records.get, {ids[2]: stale}
    await store._store.commit([other])
    await records.caught_up(await store._store.revision())
    records.get = lambda kind, one: seen.pop(one, None) or get(kind, one)  # type: ignore[method-assign, assignment]
    store.open.set()
    counted = await asyncio.gather(first, *rest)
    assert [one is not None for one in counted] == [True, True, False, True]
    assert [beats_of(records, one) for one in ids] == [2, 2, 1, 2]
    assert store.commits[:2] == [1, 3]


async def test_what_does_not_count_is_not_written(records: Records, store: Watched) -> None:
    ids, beats = await members(records, 2), Beats(records)
    store.commits.clear()
    assert await beats.count(ids[0], beat(epoch=7)) is None
    assert store.commits == []
    with pytest.raises(NotFound):
        await beats.count("nobody", beat())


async def test_two_beats_of_one_node_are_counted_in_order(records: Records, store: Watched) -> None:
    ids, beats = await members(records, 2), Beats(records)
    first = await first_under_way(beats, store, ids[0])
    second, third = (asyncio.create_task(beats.count(ids[1], beat(number))) for number in (2, 3))
    await asyncio.sleep(0)
    store.open.set()
    await first
    assert [one and one.record.beats for one in await asyncio.gather(second, third)] == [2, 3]


async def test_nobody_is_told_what_is_not_known(records: Records, store: Watched) -> None:
    ids, beats = await members(records, 3), Beats(records)
    store.fails = True
    outcomes = await asyncio.gather(*(beats.count(one, beat()) for one in ids), return_exceptions=True)
    assert [type(one) for one in outcomes] == [StoreUnavailable] * 3
    store.fails = False
    assert await beats.count(ids[0], beat()) is not None


async def test_who_waits_no_longer_hinders_nobody(records: Records, store: Watched) -> None:
    ids, beats = await members(records, 3), Beats(records)
    first = await first_under_way(beats, store, ids[0])
    gone, stays = (asyncio.create_task(beats.count(one, beat())) for one in ids[1:])
    await asyncio.sleep(0)
    gone.cancel()
    store.open.set()
    await first
    assert await stays is not None
    assert beats_of(records, ids[1]) == 2
