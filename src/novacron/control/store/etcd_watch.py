"""A watch on etcd: whole revisions in order, each once, over members that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

import grpc
import grpc.aio
import msgspec

from novacron.control.store import bounds
from novacron.control.store.base import Change
from novacron.control.store.etcd_layout import Count, Layout
from novacron.control.store.etcd_line import Line, Watching
from novacron.control.store.etcd_words_pb2 import Event, Watch, WatchRequest, WatchResponse
from novacron.errors import Compacted, StoreUnavailable


class Pieces:
    """Joins what etcd tells in pieces: answers are cut where they grow large, also within a revision."""

    def __init__(self) -> None:
        self._open: list[Event] = []

    def take(self, events: Iterable[Event], *, more_follow: bool) -> list[list[Event]]:
        """The revisions that are whole now."""
        whole: list[list[Event]] = []
        for event in events:
            if self._open and self._open[-1].kv.mod_revision != event.kv.mod_revision:
                whole.append(self._open)
                self._open = []
            self._open.append(event)
        if self._open and not more_follow:
            whole.append(self._open)
            self._open = []
        return whole


class Watcher(msgspec.Struct, frozen=True):
    """What watches share. forgotten: up to which revision this process has compacted; closed: whether to end."""

    line: Line
    layout: Layout
    count: Count
    forgotten: Callable[[], int]
    closed: Callable[[], bool]

    async def follow(self, prefix: str, after: int) -> AsyncGenerator[tuple[Change, ...], None]:
        """As `Store.watch`."""
        while not self.closed():
            self._refuse_forgotten(after)
            try:
                async with self.line.watching(self._question(prefix, after)) as stream:
                    pieces = Pieces()
                    while (answer := await self._next(stream)) is not None:
                        for events in pieces.take(answer.events, more_follow=answer.fragment):
                            after = self.count.ours(events[0].kv.mod_revision)
                            self._refuse_forgotten(after - 1)
                            yield self._changes(events, after)
            except grpc.aio.AioRpcError:
                pass  # the member went; the line has left it
            if not self.closed():
                await self.line.pause()

    async def _next(self, stream: Watching) -> WatchResponse | None:
        """The next answer of a stream; None: it goes on at another member. :raise AioRpcError: :raise Compacted:"""
        answer = await _read(stream)
        if answer is None:
            return None
        if answer.compact_revision:
            gone = self.count.ours(answer.compact_revision)
            raise Compacted(f"changes before revision {gone} are no longer kept: list again")
        if "ermission denied" in answer.cancel_reason:
            raise StoreUnavailable(f"etcd refuses the watch: {answer.cancel_reason}")
        if answer.canceled or answer.header.cluster_id != self.line.cluster_id:
            self.line.shun(stream)
            return None
        return answer

    def _question(self, prefix: str, after: int) -> WatchRequest:
        low, high = self.layout.reach(bounds.range_of(prefix))
        start = self.count.theirs(after) + 1
        return WatchRequest(create=Watch(key=low, range_end=high, start_revision=start, prev_kv=True, fragment=True))

    def _refuse_forgotten(self, after: int) -> None:
        gone = max(self.forgotten(), self.count.floor)
        if after < gone:
            raise Compacted(f"changes up to revision {gone} are no longer kept, {after + 1} was asked: list again")

    def _changes(self, events: list[Event], revision: int) -> tuple[Change, ...]:
        found = []
        for index, event in enumerate(events):
            key = self.layout.text(event.kv.key)
            value = None if event.kind == Event.DELETE else event.kv.value
            found.append(Change(revision, index, key, value, _previous(event, key, revision)))
        return tuple(found)


def _previous(event: Event, key: str, revision: int) -> bytes | None:
    """:raise Compacted: there was one, and it is no longer kept."""
    if event.HasField("prev_kv"):
        return event.prev_kv.value
    if event.kind == Event.PUT and event.kv.create_revision == event.kv.mod_revision:
        return None
    raise Compacted(f"what {key} was before revision {revision} is no longer kept: list again")


async def _read(stream: Watching) -> WatchResponse | None:
    """The next answer; None: the stream ended, or was ended because its member was left. :raise AioRpcError"""
    try:
        answer = await stream.read()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None
    return answer if isinstance(answer, WatchResponse) else None
