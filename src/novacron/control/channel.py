"""Events for all who asked for the same: framed once, kept once, and taken by each listener at its own pace.

A channel keeps the events that pass its filter, and each listener knows how far it has read. Who is further behind
than what is kept has lost its place. Listeners have their turn together, and not again before GATHER_S has passed: so
what a busy cluster tells costs one write a listener and turn, not one an event. In its turn the channel itself writes
to whose connection takes it; only who does not, or has come to more than one piece, is woken and goes on by itself.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

import msgspec

from novacron.control.store.records import Seen
from novacron.errors import Reason, Unavailable
from novacron.model.event import ObjectType
from novacron.wire.stream import Subscribe

MAX_WAITING = 2048
"""Events kept for those who are behind, at most."""

MAX_TAKEN_BYTES = 256 << 10
"""Of what one listener is handed at once: what it does not read lies in its connection's own buffer."""

GATHER_S = 0.05

TURN_AT_ONCE = 32
"""Listeners written to before others of the loop have their turn, among them what the store tells: some 1 ms."""


class Piece(msgspec.Struct, frozen=True):
    """Frames that follow each other, and the same bytes in one: made once for all who stand at the same place."""

    frames: tuple[bytes, ...]
    joined: bytes


NOTHING = Piece((), b"")


class Filter(msgspec.Struct, frozen=True):
    """What passes, in a form by which equal ones are found: fields as in wire.stream.Subscribe."""

    object_types: frozenset[ObjectType] = frozenset()
    ids: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()

    def passes(self, seen: Seen) -> bool:
        """A record that left the filter by its labels passes once more, so that the listener sees it leave."""
        if self.object_types and seen.kind.object_type not in self.object_types:
            return False
        if self.ids and record_of(seen).id not in self.ids:
            return False
        sides = [side for side in (seen.now, seen.before) if side is not None]
        return not self.labels or any(self.labels <= side.labels.items() for side in sides)


def filter_of(wanted: Subscribe) -> Filter:
    """What a subscriber asked for."""
    return Filter(frozenset(wanted.object_types), frozenset(wanted.ids), frozenset(wanted.labels.items()))


def record_of(seen: Seen) -> Any:
    """As it is, or as it was before it was deleted."""
    return seen.now if seen.now is not None else seen.before


class Outlet(Protocol):
    """A connection that takes frames without waiting, until it is full."""

    def take(self, frames: bytes) -> bool:
        """Whether it took them: all or none. None when it is full or gone."""
        ...

    async def drained(self) -> None:
        """Wait until it takes frames again; raises what tells that it is gone."""
        ...


class Listener:
    """One who listens: how far it has come, and what wakes it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.place = channel.end
        self._news = asyncio.Event()
        self._lost = asyncio.Event()
        self._outlet: Outlet | None = None

    async def next(self) -> Piece:
        """The frames that wait for it, oldest first, at most about MAX_TAKEN_BYTES.

        :raise Unavailable: it has fallen too far behind.
        """
        while (taken := self._channel.since(self.place)) is NOTHING:
            self._news.clear()
            await self._news.wait()
        self.place += len(taken.frames)
        return taken

    async def lost(self) -> None:
        """:raise Unavailable: as soon as it has fallen too far behind."""
        await self._lost.wait()
        raise _too_slow()

    async def pour(self, outlet: Outlet) -> NoReturn:
        """What waits and what will come, to that outlet; by the channel itself while the outlet takes all there is.

        :raise Unavailable: it has fallen too far behind. What the outlet raises when it is gone.
        """
        while True:
            await outlet.drained()
            if self._channel.since(self.place) is not NOTHING:
                self._write(outlet)
                continue
            self._news.clear()
            self._outlet = outlet
            try:
                await self._news.wait()
            finally:
                self._outlet = None

    def wake(self, first: int) -> None:
        """There is something new. first: the place of the oldest event that is kept."""
        if self.place < first:
            self._lost.set()
            self._news.set()
        elif self._outlet is None or not self._write(self._outlet):
            self._news.set()

    def _write(self, outlet: Outlet) -> bool:
        """One piece to the outlet. Whether nothing waits any more."""
        piece = self._channel.since(self.place)
        if piece is not NOTHING and outlet.take(piece.joined):
            self.place += len(piece.frames)
        return self.place == self._channel.end


class Channel:
    """The events that pass one filter, until everybody who listens has taken them."""

    def __init__(self, wanted: Filter) -> None:
        self.wanted = wanted
        self.listeners: set[Listener] = set()
        self._kept: deque[bytes] = deque()
        self._first = 0  # the place of the oldest that is kept
        self._pieces: dict[int, Piece] = {}  # by place, of those that were taken since the last event
        self._has_news = False
        self._waking: asyncio.Handle | None = None

    @property
    def kept(self) -> int:
        """How many are kept."""
        return len(self._kept)

    @property
    def end(self) -> int:
        """The place of the next event."""
        return self._first + len(self._kept)

    def put(self, frame: bytes) -> None:
        """One more event. The oldest goes when there are too many."""
        self._kept.append(frame)
        self._pieces.clear()
        if len(self._kept) > MAX_WAITING:
            self._kept.popleft()
            self._first += 1
        self._has_news = True
        if self._waking is None:
            self._waking = asyncio.get_running_loop().call_soon(self._wake)

    def since(self, place: int) -> Piece:
        """What is there from that place on, not too much at once. :raise Unavailable: what was there is gone."""
        if place < self._first:
            raise _too_slow()
        if place == self.end:
            return NOTHING
        piece = self._pieces.get(place)
        if piece is None:
            piece = self._pieces[place] = self._cut(place)
        return piece

    def _cut(self, place: int) -> Piece:
        taken: list[bytes] = []
        size = 0
        for frame in itertools.islice(self._kept, place - self._first, None):
            if taken and size + len(frame) > MAX_TAKEN_BYTES:
                break
            taken.append(frame)
            size += len(frame)
        return Piece(tuple(taken), b"".join(taken))

    def _wake(self) -> None:
        self._forget_read()
        if not self._has_news:
            self._waking = None
            return
        self._has_news = False
        self._turn(iter(tuple(self.listeners)), asyncio.get_running_loop().time())

    def _turn(self, waiting: Iterator[Listener], began_s: float) -> None:
        """Some of them, then what else the loop has to do, then the next."""
        loop = asyncio.get_running_loop()
        some = tuple(itertools.islice(waiting, TURN_AT_ONCE))
        for listener in some:
            listener.wake(self._first)
        if len(some) == TURN_AT_ONCE:
            self._waking = loop.call_soon(self._turn, waiting, began_s)
        else:
            self._waking = loop.call_at(began_s + GATHER_S, self._wake)

    def _forget_read(self) -> None:
        """What everybody has taken need not be kept."""
        read = min((listener.place for listener in self.listeners), default=self.end)
        while self._first < read:
            self._kept.popleft()
            self._first += 1
        if read == self.end:
            self._pieces.clear()


class Channels:
    """One channel for each filter that somebody listens with."""

    def __init__(self) -> None:
        self._by_filter: dict[Filter, Channel] = {}
        self._by_id: dict[str, dict[Filter, Channel]] = {}  # those that name records, by each; those that do not by ""

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return sum(len(channel.listeners) for channel in self._by_filter.values())

    def join(self, wanted: Filter) -> Listener:
        """Listen from now on."""
        channel = self._by_filter.get(wanted)
        if channel is None:
            channel = self._by_filter[wanted] = Channel(wanted)
            for one in wanted.ids or ("",):
                self._by_id.setdefault(one, {})[wanted] = channel
        listener = Listener(channel)
        channel.listeners.add(listener)
        return listener

    def leave(self, wanted: Filter, listener: Listener) -> None:
        """Listen no more; a channel without listeners is given up."""
        channel = self._by_filter[wanted]
        channel.listeners.discard(listener)
        if channel.listeners:
            return
        del self._by_filter[wanted]
        for one in wanted.ids or ("",):
            del self._by_id[one][wanted]
            if not self._by_id[one]:
                del self._by_id[one]

    def put(self, seen: Seen, frame: Callable[[], bytes]) -> None:
        """Put the event of that change where it passes. frame: makes it, called once if at all."""
        made = b""
        for key in ("", record_of(seen).id):
            for channel in self._by_id.get(key, {}).values():
                if channel.wanted.passes(seen):
                    made = made or frame()
                    channel.put(made)


def _too_slow() -> Unavailable:
    return Unavailable(
        f"too slow: more than {MAX_WAITING} events were waiting",
        [Reason("stream.slow", "fell behind", remedy="subscribe again with `after` = the last seq received")],
    )
