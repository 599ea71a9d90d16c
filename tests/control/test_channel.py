"""One channel for all who asked for the same: woken together, each at its own pace, the slow one let go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from novacron.control import channel
from novacron.control.channel import MAX_TAKEN_BYTES, Channels, Filter, Listener, filter_of
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


def test_the_same_wish_in_other_words_is_the_same_filter() -> None:
    one = Subscribe(ids=("a", "b"), labels={"x": "1", "y": "2"}, after=7)
    assert filter_of(one) == filter_of(Subscribe(ids=("b", "a"), labels={"y": "2", "x": "1"}))


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_what_was_framed_is_read_again(size: int) -> None:
    frame = framed(b"x" * size)
    assert text_of(frame) == "x" * size
    assert len(frame) - size == (2 if size < 126 else 4 if size < 65_536 else 10)
