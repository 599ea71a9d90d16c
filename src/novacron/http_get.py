"""One GET over HTTP/1.1 on a stream somebody opened: bounded head, streamed body, no redirects, no cookies, no proxy.

For who must decide himself where a connection leads (a checked address, a pinned certificate, a unix socket).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import h11

from novacron.errors import Unavailable

PIECE_BYTES = 256 << 10
IDLE_S = 30.0
MAX_HEAD_BYTES = 32 << 10
STREAM_LIMIT = 1 << 20


class Answer:
    """A status, headers by lower-case name, and the body still to come."""

    def __init__(self, reader: asyncio.StreamReader, connection: h11.Connection, head: h11.Response) -> None:
        self.status = head.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self._reader = reader
        self._connection = connection

    @property
    def length(self) -> int | None:
        """How long the body is, where the answer says so."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    async def body(self) -> AsyncIterator[bytes]:
        """The body in pieces. :raise Unavailable: it broke off, or nothing came for IDLE_S."""
        while True:
            event = await _next(self._reader, self._connection)
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return


@contextlib.asynccontextmanager
async def get(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str, headers: Mapping[str, str]
) -> AsyncIterator[Answer]:
    """Ask for `target`; the connection is closed afterwards. :raise Unavailable: what answers is no HTTP server."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    asked = {"host": host, "accept-encoding": "identity", "connection": "close", **headers}
    try:
        request = h11.Request(method="GET", target=target, headers=list(asked.items()))
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        event = await _next(reader, connection)
        while isinstance(event, h11.InformationalResponse):
            event = await _next(reader, connection)
        if not isinstance(event, h11.Response):
            raise Unavailable("the connection ended without an answer")
        if sum(len(name) + len(value) for name, value in event.headers) > MAX_HEAD_BYTES:
            raise Unavailable(f"the answer's head has more than {MAX_HEAD_BYTES} bytes")
        yield Answer(reader, connection, event)
    finally:
        writer.transport.abort()


async def _next(reader: asyncio.StreamReader, connection: h11.Connection) -> object:
    try:
        while True:
            event = connection.next_event()
            if event is not h11.NEED_DATA:
                break
            async with asyncio.timeout(IDLE_S):
                connection.receive_data(await reader.read(PIECE_BYTES))
    except TimeoutError as late:
        raise Unavailable(f"nothing came for {IDLE_S:g} s") from late
    except (OSError, h11.RemoteProtocolError) as broken:
        raise Unavailable(f"the connection broke: {broken}") from broken
    if isinstance(event, h11.ConnectionClosed):
        raise Unavailable("the connection ended too early")
    return event
