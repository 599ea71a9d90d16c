"""Fans changes out to WebSockets: each subscriber misses nothing and hears nothing twice, or is told to list again.

A subscriber joins at the revision the record cache stands at. What it missed up to there is read from the store's
watch, what comes after from the cache's listeners; every event carries the same number on both ways.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from novacron.control.access.guard import WEBSOCKET_TOKEN
from novacron.control.channel import Channels, Filter, Listener, filter_of, record_of
from novacron.control.peer import drop, framed, outlet_of, send_frames
from novacron.control.problems import problem
from novacron.control.store.base import Change
from novacron.control.store.kinds import KINDS
from novacron.control.store.records import Records, Seen
from novacron.errors import Compacted, Forbidden, InvalidInput, NovaCronError, Reason, Unavailable
from novacron.model.event import CHANGES_PER_REVISION, ChangeKind, Event, revision_of, seq_of
from novacron.wire.stream import MAX_FRAME_BYTES, ErrorFrame, EventFrame, Ready, Resync, Subscribe, ToClient

PATH = "/events"
SUBPROTOCOL = "novacron.events.v1"
SUBSCRIBE_WITHIN_S = 10.0
FAREWELL_S = 1.0
CLOSE_POLICY, CLOSE_SLOW = 1008, 1013

View = Callable[[Any, int], dict[str, Any]]
"""Record and revision → the object as the API shows it."""

_encode = msgspec.json.Encoder().encode
_subscribe = msgspec.json.Decoder(Subscribe)
_log = structlog.get_logger("stream")


class Stream:
    """All subscribers. views: by record prefix, how its objects are shown; of other records no event tells."""

    def __init__(self, records: Records, views: Mapping[str, View]) -> None:
        self._records = records
        self._views = views
        self._channels = Channels()
        records.subscribe(self._fan_out)

    @property
    def subscribers(self) -> int:
        """How many listen now."""
        return self._channels.listeners

    async def serve(self, websocket: WebSocket) -> None:
        """One connection, from its handshake to its end. Who asks has been established by the guard."""
        if not is_same_origin(websocket.headers.get("origin"), websocket.headers.get("host", "")):
            refused = Forbidden(
                "events are not for pages of other origins",
                [Reason("origin.foreign", "the Origin header names another host", remedy="ask from the server's own")],
            )
            await websocket.send_denial_response(problem(refused, websocket.url.path))
            return
        offered = websocket.scope.get("subprotocols", ())
        chosen = next((one for one in offered if not one.startswith(WEBSOCKET_TOKEN)), None)
        await websocket.accept(subprotocol=chosen if chosen == SUBPROTOCOL else None)
        try:
            await self._converse(websocket)
        except WebSocketDisconnect:
            return
        except NovaCronError as error:
            await _farewell(websocket, error, CLOSE_SLOW if isinstance(error, Unavailable) else CLOSE_POLICY)

    async def _converse(self, websocket: WebSocket) -> None:
        try:
            async with asyncio.timeout(SUBSCRIBE_WITHIN_S):
                wanted = await _read_subscribe(websocket)
        except TimeoutError as late:
            raise InvalidInput(f"no subscribe came within {SUBSCRIBE_WITHIN_S:.0f} s") from late
        passing = filter_of(wanted)
        joined, listener = self._records.revision, self._channels.join(passing)  # one moment: nothing lies between
        jobs = [
            asyncio.create_task(self._send(websocket, wanted, joined, listener), name="stream-send"),
            asyncio.create_task(_hear(websocket), name="stream-hear"),
            asyncio.create_task(listener.lost(), name="stream-lost"),
        ]
        try:
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()
        finally:
            self._channels.leave(passing, listener)
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _send(self, websocket: WebSocket, wanted: Subscribe, joined: int, listener: Listener) -> None:
        if wanted.after is not None:
            async for frame in self._missed(filter_of(wanted), wanted.after, joined):
                await send_frames(websocket, (frame,), frame)
        ready = _framed(Ready(seq=_last_of(joined)))
        await send_frames(websocket, (ready,), ready)
        outlet = outlet_of(websocket)
        if outlet is not None:
            await listener.pour(outlet)
        while True:
            piece = await listener.next()
            await send_frames(websocket, piece.frames, piece.joined)

    async def _missed(self, wanted: Filter, after: int, joined: int) -> AsyncIterator[bytes]:
        """Frames of every event after `after` up to revision `joined`, or one resync when they are not kept."""
        seen_whole = after % CHANGES_PER_REVISION == CHANGES_PER_REVISION - 1
        start = revision_of(after) if seen_whole else revision_of(after) - 1
        if revision_of(after) > joined:
            yield _resync(joined, "the number is one that was never given: list again")
            return
        if start >= joined:
            return
        watch = self._records.store.watch("", after=max(start, 0))
        try:
            async for changes in watch:
                for one in _seen(changes):
                    if seq_of(one.revision, one.index) > after and wanted.passes(one):
                        yield self._frame(one)
                if changes[0].revision >= joined:
                    return
        except Compacted:
            yield _resync(joined, "changes since then are no longer kept: list again, then go on from here")
        finally:
            await watch.aclose()  # type: ignore[attr-defined]

    def _fan_out(self, seen: Sequence[Seen]) -> None:
        for one in seen:
            if one.kind.prefix in self._views:
                self._channels.put(one, functools.partial(self._frame, one))

    def _frame(self, seen: Seen) -> bytes:
        if seen.now is None:
            change = ChangeKind.DELETED
        else:
            change = ChangeKind.CREATED if seen.before is None else ChangeKind.UPDATED
        record = record_of(seen)
        event = Event(
            seq=seq_of(seen.revision, seen.index),
            type=f"{seen.kind.object_type.value}.{change.value}",
            object_type=seen.kind.object_type,
            object_id=record.id,
            object=self._views[seen.kind.prefix](record, seen.revision),
        )
        return _framed(EventFrame(event=event))


def is_same_origin(origin: str | None, host: str) -> bool:
    """Whether a browser page may listen: no Origin (not a browser), or the server's own host and port."""
    if origin is None:
        return True
    parts = urlsplit(origin)
    return parts.scheme in ("http", "https") and bool(host) and parts.netloc.lower() == host.lower()


def _seen(changes: Sequence[Change]) -> Iterator[Seen]:
    kinds = {kind.prefix: kind for kind in KINDS}
    for change in changes:
        kind = kinds.get(change.key[: change.key.find("/") + 1])
        if kind is None or (change.value is None and change.previous is None):
            continue
        now = kind.decode(change.key, change.value) if change.value is not None else None
        before = kind.decode(change.key, change.previous) if change.previous is not None else None
        yield Seen(change.revision, change.index, kind, now, before)


def _last_of(revision: int) -> int:
    return seq_of(revision, CHANGES_PER_REVISION - 1)


def _resync(joined: int, message: str) -> bytes:
    return _framed(Resync(seq=_last_of(joined), message=message))


def _framed(frame: ToClient) -> bytes:
    return framed(_encode(frame))


async def _read_subscribe(websocket: WebSocket) -> Subscribe:
    text = await _receive(websocket)
    try:
        return _subscribe.decode(text)
    except (msgspec.DecodeError, UnicodeError) as wrong:
        raise InvalidInput(f"the first frame must be a subscribe: {wrong}") from wrong


async def _hear(websocket: WebSocket) -> None:
    """Wait for the other side to go. It has nothing more to say."""
    await _receive(websocket)
    raise InvalidInput("a connection subscribes once: open another for another subscription")


async def _receive(websocket: WebSocket) -> str | bytes:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | bytes = message.get("text") or message.get("bytes") or ""
    if len(text) > MAX_FRAME_BYTES:
        raise InvalidInput(f"a frame may have {MAX_FRAME_BYTES} bytes")
    return text


async def _farewell(websocket: WebSocket, error: NovaCronError, code: int) -> None:
    """Say why, then close; a peer that does not even take that is left alone."""
    frame = ErrorFrame(code=error.code, message=error.message)
    try:
        async with asyncio.timeout(FAREWELL_S):
            await websocket.send_text(_encode(frame).decode())
            await websocket.close(code)
    except (TimeoutError, WebSocketDisconnect, RuntimeError) as gone:
        drop(websocket)  # else what waits to be sent would be kept until it is read
        _log.info("a subscriber was gone before it was told why", why=str(gone), reason=error.message)
