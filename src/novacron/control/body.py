"""Large request bodies on their way past the HTTP parser: from the socket straight to where they are wanted.

uvicorn hands a body over in pieces, each of which was copied several times and cost memory of its own. For a body whose
length was announced nothing has to be parsed once its head was: `claim` takes the connection over for that long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httptools
from starlette.requests import Request
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from novacron.control import peer
from novacron.errors import Malformed

EXTENSION = "novacron.body"
SCRATCH_BYTES = 64 << 10


class Target(Protocol):
    """Where a body goes."""

    def room(self) -> memoryview:
        """Where its next bytes are wanted; empty: not now."""
        ...

    def landed(self, count: int) -> None:
        """So many bytes lie at the beginning of the room."""
        ...


class Connection(HttpToolsProtocol):
    """uvicorn's side of a connection, whose bodies can be claimed."""

    _seen_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: self._claim}  # type: ignore[dict-item]
        peer.note(self.scope, self.transport)  # type: ignore[arg-type]
        self._seen_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._seen_bytes += len(body)
        super().on_body(body)

    def _claim(self, scope: Scope) -> Body | None:
        """None: it has come already, its length is not known, or somebody has begun to read it."""
        cycle = self.cycle
        if cycle.scope is not scope or not cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        announced = [value for name, value in self.headers if name == b"content-length"]
        if len(announced) != 1 or self._seen_bytes != len(cycle.body) or self.scheme == "https":
            return None  # with TLS the bytes pass through memory anyway
        early, cycle.body = bytes(cycle.body), bytearray()
        return Body(self, early, int(announced[0]) - self._seen_bytes)

    def body_is_over(self) -> None:
        """What comes from here on is the next request."""
        self.parser = httptools.HttpRequestParser(self)
        self.transport.set_protocol(self)
        self.on_message_complete()

    def stay(self) -> None:
        """Do not end the connection as an idle one."""
        self._unset_keepalive_if_required()


class Body(asyncio.BufferedProtocol):
    """The rest of one request's body, `left` bytes. It has the connection until all of them came: `discard` always."""

    def __init__(self, connection: Connection, early: bytes, coming: int) -> None:
        self._connection = connection
        self._early = early
        self._coming = coming
        self._target: Target | None = None
        self._is_lost = False
        self._woken = asyncio.Event()
        connection.flow.pause_reading()
        connection.transport.set_protocol(self)

    @property
    def left(self) -> int:
        return len(self._early) + self._coming

    async def fill(self, target: Target) -> bool:
        """Until there is no room any more (true), or all has come. Whoever is cancelled loses nothing that landed.

        :raise Malformed: the line broke.
        """
        self._move_early(target)
        while self._coming and target.room():
            if self._is_lost:
                raise Malformed("the upload broke off")
            self._target = target
            self._woken.clear()
            self._connection.flow.resume_reading()
            try:
                await self._woken.wait()
            finally:
                self._target = None
                self._pause()
        return self.left > 0

    def discard(self) -> None:
        """Take what still comes, and forget it: the answer is read only after all was sent."""
        self._early = b""
        if self._coming and not self._is_lost:
            self._target = _Nowhere()
            self._connection.flow.resume_reading()

    def _move_early(self, target: Target) -> None:
        while self._early and (room := target.room()):
            count = min(len(self._early), len(room))
            room[:count] = self._early[:count]
            target.landed(count)
            self._early = self._early[count:]

    def _pause(self) -> None:
        if self._coming and not self._is_lost:
            self._connection.flow.pause_reading()

    # -- the connection's side ------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (the loop gives it)
        if self._target is None:
            raise RuntimeError("a paused connection was read")
        return self._target.room()[: self._coming]

    def buffer_updated(self, nbytes: int) -> None:
        target = self._target
        if target is None:
            raise RuntimeError("a paused connection was read")
        target.landed(nbytes)
        self._coming -= nbytes
        self._connection.stay()
        if not self._coming:
            self._connection.body_is_over()
            self._woken.set()
        elif not target.room():
            self._pause()
            self._woken.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._woken.set()
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class _Nowhere:
    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))

    def room(self) -> memoryview:
        return self._scratch

    def landed(self, count: int) -> None:
        """Forgotten."""


def claim(request: Request) -> Body | None:
    """The request's body, if it can be had past the parser. Not to be asked once it was read from otherwise."""
    ask: Callable[[Scope], Body | None] | None = request.scope.get("extensions", {}).get(EXTENSION)
    return ask(request.scope) if ask is not None else None
