"""The target's door: where the source's channels come in, open for as long as the stream lasts and for it alone."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct

from novacron.agent.stream.channel import SECRET_BYTES, Channel, Welcome
from novacron.agent.stream.lanes import CHUNK_BYTES
from novacron.agent.stream.line import Line
from novacron.errors import InvalidInput, Malformed

MAX_STRANGERS = 32
"""So many connections at once that have not shown who they are."""
GREET_WITHIN_S = 5.0


class Door:
    """visited: set when the source has come for the first time."""

    def __init__(self, line: Line, context: ssl.SSLContext, secret: bytes | None, peer: str | None) -> None:
        """secret: what page keys are made with; None: no pages are held. peer: the only address that is let in."""
        self._line, self._context, self._secret, self._peer = line, context, secret, peer
        self._token: bytes | None = None
        self._strangers = 0
        self._visits: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self.visited = asyncio.Event()

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Where the source may come, from now on. :raise InvalidInput: it cannot listen there."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=MAX_STRANGERS)
        except OSError as wrong:
            raise InvalidInput.field("host", f"cannot listen on {host}:{port}: {wrong.strerror}") from wrong
        self._socket.setblocking(False)
        return host, self._socket.getsockname()[1]

    def close(self) -> None:
        """Nothing listens afterwards, also if it was never run."""
        if self._socket is not None:
            self._socket.close()

    async def run(self) -> None:
        """Let visitors in until cancelled; nothing listens and nobody visits afterwards."""
        assert self._socket is not None, "listen first"  # noqa: S101
        try:
            while True:
                visitor, address = await asyncio.get_running_loop().sock_accept(self._socket)
                if self._strangers >= MAX_STRANGERS or self._peer not in (None, address[0]):
                    visitor.close()
                    continue
                self._strangers += 1
                visit = asyncio.create_task(self._visit(visitor))
                self._visits.add(visit)
                visit.add_done_callback(self._visits.discard)
        finally:
            self.close()
            for visit in self._visits:
                visit.cancel()
            await asyncio.gather(*self._visits, return_exceptions=True)

    async def _visit(self, visitor: socket.socket) -> None:
        channel: Channel | None = None
        known = False
        try:
            async with asyncio.timeout(GREET_WITHIN_S):
                channel = Channel(*await shake_hands(visitor, self._context, GREET_WITHIN_S, 4 * CHUNK_BYTES))
                hello = await channel.heard()
                if self._token not in (None, hello.token):
                    return  # another stream of the same key: a source that began anew cannot go on with this one
                channel.welcome(
                    Welcome(self._secret is not None, self._secret or bytes(SECRET_BYTES), self._line.arrived)
                )
            self._token, known = hello.token, True
            self._strangers -= 1
            self.visited.set()
            await self._line.carry(hello.number, channel, hello.arrived)
        except (OSError, EOFError, TimeoutError, Malformed, struct.error):
            pass  # whoever it was is gone
        finally:
            self._strangers -= not known
            if channel is not None:
                channel.abort()


async def shake_hands(
    visitor: socket.socket, context: ssl.SSLContext, within_s: float, limit: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """TLS with one who has come. limit: bytes of it that are held unread. After a failure the visitor is sent away.

    :raise OSError: it has not the key, or takes too long.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, visitor, ssl=context, ssl_handshake_timeout=within_s
        )
    except BaseException:
        visitor.close()
        raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
