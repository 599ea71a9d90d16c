"""One channel for all who asked for the same: woken together, each at its own pace, the slow one let go."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import pytest

from novacron.control import channel
from novacron.control.channel import MAX_TAKEN_BYTES, TURN_AT_ONCE, Channels, Filter, Listener, filter_of
from novacron.control.peer import framed, text_of
from novacron.control.store.kinds import NODES, VMS
from novacron.control.store.records import Seen
from novacron.errors import Unavailable
from novacron.model.event import ObjectType
from novacron.wire.stream import Subscribe
from tests.bench.records import a_node, a_vm

pytestmark = pytest.mark.anyio

ALL = Filter()


def changed(vm_id: str = "a", kind: Any = VMS) -> Seen:
    record: Any = a_vm(vm_id, vm_id, "n") if kind is VMS else a_node(vm_id)
    return Seen(1, 0, kind, record, record)


async def taken(listener: Listener) -> list[bytes]:
    piece = await listener.next()
    assert b"".join(piece.frames) == piece.joined
    return list(piece.frames)


async def test_what_comes_together_is_taken_together_and_made_once() -> None:
    channels, made = Channels(), []

    def frame() -> bytes:
        made.append(1)
        return b"%d" % len(made)

    listeners = [channels.join(wanted) for wanted in (ALL, ALL, Filter(ids=frozenset("ab")))]
    for _ in range(3):
        channels.put(changed(), frame)
    async with asyncio.timeout(5):
        assert [await taken(one) for one in listeners] == [[b"1", b"2", b"3"]] * 3
    assert len(made) == 3
    channels.put(changed("z"), frame)
    assert await taken(listeners[0]) == [b"4"]
    asked = asyncio.create_task(taken(listeners[2]))
    channels.put(changed("b"), frame)
    async with asyncio.timeout(5):
        assert await asked == [b"5"]


async def test_nothing_is_made_that_nobody_wants() -> None:
    channels = Channels()
    listener = channels.join(Filter(object_types=frozenset({ObjectType.NODE})))
    channels.put(changed(), lambda: pytest.fail("made for nobody"))
    channels.put(changed("n", NODES), lambda: b"n")
    assert await taken(listener) == [b"n"]
    channels.leave(Filter(object_types=frozenset({ObjectType.NODE})), listener)
    channels.put(changed("n", NODES), lambda: pytest.fail("made for one that has gone"))
    assert channels.listeners == 0


async def test_who_joins_hears_only_what_comes_then() -> None:
    channels = Channels()
    channels.join(ALL)
    channels.put(changed(), lambda: b"old")
    late = channels.join(ALL)
    channels.put(changed(), lambda: b"new")
    assert await taken(late) == [b"new"]


async def test_the_slow_one_is_let_go_at_once_and_the_others_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_WAITING", 5)
    channels = Channels()
    slow, quick = channels.join(ALL), channels.join(ALL)
    lost, heard = asyncio.create_task(slow.lost()), []
    for number in range(12):
        channels.put(changed(), lambda number=number: b"%d" % number)  # type: ignore[misc]
        heard += await taken(quick)
    assert heard == [b"%d" % number for number in range(12)]
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="too slow"):
            await lost


async def test_one_that_has_lost_its_place_is_not_handed_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_WAITING", 5)
    channels = Channels()
    slow = channels.join(ALL)
    for _ in range(6):
        channels.put(changed(), lambda: b"x")
    with pytest.raises(Unavailable, match="too slow"):
        await slow.next()


async def test_what_everybody_has_taken_is_kept_no_longer() -> None:
    channels = Channels()
    quick, slow = channels.join(ALL), channels.join(ALL)
    (shared,) = channels._by_filter.values()
    for _ in range(3):
        channels.put(changed(), lambda: b"x")
        await quick.next()
    assert shared.kept == 3
    await slow.next()
    channels.put(changed(), lambda: b"x")
    async with asyncio.timeout(5):
        await asyncio.gather(quick.next(), slow.next())
        while shared.kept:
            await asyncio.sleep(0)


async def test_one_is_handed_no_more_at_once_than_its_connection_should_hold() -> None:
    channels = Channels()
    listener = channels.join(ALL)
    big = b"x" * (MAX_TAKEN_BYTES // 2)
    for _ in range(5):
        channels.put(changed(), lambda: big)
    assert [len(await taken(listener)) for _ in range(3)] == [2, 2, 1]


class Pipe:
    """A connection that holds so many pieces and is emptied by hand."""

    def __init__(self, holds: int = 1000) -> None:
        self.holds = holds
        self.taken: list[bytes] = []
        self.changed = asyncio.Event()
        self.is_gone = False
        self._room = asyncio.Event()
        self._room.set()

    def take(self, frames: bytes) -> bool:
        if self.is_gone or not self._room.is_set():
            return False
        self.taken.append(frames)
        self.changed.set()
        if len(self.taken) == self.holds:
            self._room.clear()
        return True

    async def drained(self) -> None:
        await self._room.wait()
        if self.is_gone:
            raise ConnectionError("gone")

    def empty(self) -> bytes:
        held, self.taken = b"".join(self.taken), []
        self._room.set()
        return held

    async def has(self, size: int) -> None:
        """Wait until it has taken so many bytes."""
        while sum(map(len, self.taken)) < size:
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def pouring(listener: Listener, pipe: Pipe) -> AsyncIterator[asyncio.Task[NoReturn]]:
    task = asyncio.create_task(listener.pour(pipe))
    await asyncio.sleep(0)  # it has begun
    try:
        async with asyncio.timeout(5):
            yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_comes_is_poured_in_the_channels_own_turn_and_what_waits_before_it() -> None:
    channels, pipe = Channels(), Pipe()
    listener = channels.join(ALL)
    channels.put(changed(), lambda: b"1")
    async with pouring(listener, pipe) as task:
        await pipe.has(1)
        woken = _count_wakes(listener)
        for number in (2, 3, 4):
            channels.put(changed(), lambda number=number: b"%d" % number)  # type: ignore[misc]
            await pipe.has(number)
        assert b"".join(pipe.taken) == b"1234"
        assert woken == []
        assert not task.done()


def _count_wakes(listener: Listener) -> list[int]:
    """A list that grows whenever the listener's own task is woken."""
    woken: list[int] = []
    wake = listener._news.set
    listener._news.set = lambda: (woken.append(1), wake())[1]  # type: ignore[method-assign]
    return woken


async def test_what_is_full_is_waited_for_and_gets_all_in_order() -> None:
    channels, full, open_ = Channels(), Pipe(holds=1), Pipe()
    first, second = channels.join(ALL), channels.join(ALL)
    heard = b""
    async with pouring(first, full), pouring(second, open_):
        for number in range(10):
            channels.put(changed(), lambda number=number: b"%d" % number)  # type: ignore[misc]
            await open_.has(number + 1)
            if number in (3, 4, 8):
                heard += full.empty()
        while len(heard) < 10:
            heard += full.empty()
            await full.has(1) if len(heard) < 10 else None
    assert (heard, b"".join(open_.taken)) == (b"0123456789", b"0123456789")


async def test_more_than_one_piece_goes_on_without_new_events() -> None:
    channels, pipe = Channels(), Pipe()
    big = b"x" * (MAX_TAKEN_BYTES // 2)
    async with pouring(channels.join(ALL), pipe):
        for _ in range(5):
            channels.put(changed(), lambda: big)
        await pipe.has(5 * len(big))
        assert max(map(len, pipe.taken)) <= MAX_TAKEN_BYTES


async def test_one_that_has_gone_or_fallen_behind_ends_its_pouring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_WAITING", 5)
    channels, gone, slow, quick = Channels(), Pipe(), Pipe(holds=1), Pipe()
    async with pouring(channels.join(ALL), gone) as lost, pouring(channels.join(ALL), slow) as behind:
        async with pouring(channels.join(ALL), quick):
            gone.is_gone = True
            for number in range(9):
                channels.put(changed(), lambda number=number: b"%d" % number)  # type: ignore[misc]
                await quick.has(number + 1)
        with pytest.raises(ConnectionError, match="gone"):
            await lost
        slow.empty()
        with pytest.raises(Unavailable, match="too slow"):
            await behind
    assert b"".join(quick.taken) == b"012345678"


async def test_others_of_the_loop_have_their_turn_between_many_listeners() -> None:
    channels, pipes = Channels(), [Pipe() for _ in range(2 * TURN_AT_ONCE + 1)]
    seen: list[int] = []

    def look() -> None:
        seen.append(sum(bool(pipe.taken) for pipe in pipes))
        if seen[-1] < len(pipes):
            asyncio.get_running_loop().call_soon(look)

    async with contextlib.AsyncExitStack() as stack:
        for pipe in pipes:
            await stack.enter_async_context(pouring(channels.join(ALL), pipe))
        channels.put(changed(), lambda: b"x")
        look()
        for pipe in pipes:
            await pipe.has(1)
    assert {TURN_AT_ONCE, 2 * TURN_AT_ONCE} <= set(seen)
    assert all(pipe.taken == [b"x"] for pipe in pipes)


def test_the_same_wish_in_other_words_is_the_same_filter() -> None:
    one = Subscribe(ids=("a", "b"), labels={"x": "1", "y": "2"}, after=7)
    assert filter_of(one) == filter_of(Subscribe(ids=("b", "a"), labels={"y": "2", "x": "1"}))


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_was_framed_is_read_again(size: int) -> None:
    frame = framed(b"x" * size)
    assert text_of(frame) == "x" * size
    assert len(frame) - size == (2 if size < 126 else 4 if size < 65_536 else 10)
