"""Measures the link to another node: a bounded burst over TLS with a key of its own, timed where it arrives.

    source → target   pings, each echoed; then chunks; then an end
    target → source   how many bytes arrived, and at what rate over the second half of the time

The first half is left out: TCP is still finding its speed, and a shaper lets the first bytes pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import secrets
import socket
import ssl
import struct
from collections.abc import Sequence

from novacron.agent.stream.bucket import Bucket
from novacron.agent.stream.channel import prompt
from novacron.agent.stream.door import shake_hands
from novacron.agent.stream.identity import MIN_SECRET_BYTES, End, context
from novacron.errors import Busy, DriverError, InvalidInput, NovaCronError, Unavailable
from novacron.wire.link import MOST_BYTES, MOST_S, LinkAt, LinkFound, LinkListen, LinkProbe

LISTENS_S = 10.0
CONNECT_WITHIN_S = 3.0
ANSWER_WITHIN_S = 5.0
MOST_LISTENERS = 8
PINGS = 5
CHUNK_BYTES = 16 << 10
_LENGTH = struct.Struct("!I")
_PING = (1 << 32) - 1
_END = 0
_ANSWER = struct.Struct("!Qd")
_BROKEN = (OSError, EOFError, TimeoutError, struct.error)

Seen = Sequence[tuple[float, int]]
"""When, in seconds, so many bytes in all had arrived."""


class LinkProber:
    """Answers both verbs. host: this node's address for streams."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._listening: set[asyncio.Task[None]] = set()

    async def listen(self, args: LinkListen) -> LinkAt:
        """Open a port for one burst from that peer. :raise Busy: too many are open. :raise DriverError: none can be."""
        if len(self._listening) >= MOST_LISTENERS:
            raise Busy("too many links are being measured here: try again in a moment")
        try:
            peer = str(ipaddress.ip_address(args.peer))
        except ValueError as wrong:
            raise InvalidInput.field("peer", "is not an IP address", "set the source's migration_host") from wrong
        secret = secrets.token_bytes(MIN_SECRET_BYTES)
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            port = socket.create_server((self._host, 0), family=family, backlog=4)
        except OSError as wrong:
            raise DriverError(f"cannot listen on {self._host}: {wrong.strerror}") from wrong
        port.setblocking(False)
        listening = asyncio.create_task(_take_one(port, peer, context(secret, End.TARGET)), name="link-probe")
        self._listening.add(listening)
        listening.add_done_callback(self._listening.discard)
        return LinkAt(host=self._host, port=port.getsockname()[1], key_hex=secret.hex())

    async def probe(self, args: LinkProbe) -> LinkFound:
        """Send a burst there. :raise Unavailable: nobody answers there, or too little arrived to tell."""
        where = f"{args.to.host}:{args.to.port}"
        try:
            tls = context(bytes.fromhex(args.to.key_hex), End.SOURCE)
        except ValueError as wrong:
            raise InvalidInput.field("key_hex", "is not hex", "give the one the target made") from wrong
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(CONNECT_WITHIN_S):
                local = (self._host, 0)
                reader, writer = await asyncio.open_connection(args.to.host, args.to.port, ssl=tls, local_addr=local)
            prompt(writer)
            async with asyncio.timeout(ANSWER_WITHIN_S + MOST_S):
                return await _burst(reader, writer, args.bytes_per_s)
        except _BROKEN as wrong:
            words = str(wrong) or "it does not answer in time"
            raise Unavailable(f"the link to {where} cannot be measured: {words}") from wrong
        finally:
            if writer is not None:
                writer.transport.abort()

    async def close(self) -> None:
        """Nothing listens afterwards."""
        listening = tuple(self._listening)
        for one in listening:
            one.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


# -- the target --------------------------------------------------------------------------------------------


async def _take_one(port: socket.socket, peer: str, tls: ssl.SSLContext) -> None:
    """Whoever is not the peer, or has not the key, is sent away and uses nothing up."""
    loop = asyncio.get_running_loop()
    with port, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LISTENS_S):
            while True:
                visitor, address = await loop.sock_accept(port)
                if address[0] != peer:
                    visitor.close()
                    continue
                try:
                    await _take_in(visitor, tls)
                except (*_BROKEN, NovaCronError):
                    continue
                return


async def _take_in(visitor: socket.socket, tls: ssl.SSLContext) -> None:
    reader, writer = await shake_hands(visitor, tls, CONNECT_WITHIN_S, 4 * CHUNK_BYTES)
    try:
        prompt(writer)
        seen = await _arrived(reader, writer)
        writer.write(_ANSWER.pack(seen[-1][1] if seen else 0, rate_of(seen)))
        await writer.drain()
        await reader.read(1)  # until the source has it and leaves
    finally:
        writer.transport.abort()


async def _arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen:
    loop, seen, total = asyncio.get_running_loop(), [], 0
    while (length := _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]) != _END:
        if length == _PING:
            writer.write(_LENGTH.pack(_PING))
            continue
        total += length
        if length > CHUNK_BYTES or total > MOST_BYTES:
            raise EOFError("more comes than was to come")
        await reader.readexactly(length)
        seen.append((loop.time(), total))
    return seen


def rate_of(seen: Seen) -> float:
    """Bytes a second over the second half of the time; 0: too few came to tell. Pure."""
    if len(seen) < 2:
        return 0.0
    (first_s, _), (last_s, total) = seen[0], seen[-1]
    half_s = (first_s + last_s) / 2
    from_s, before = next(one for one in reversed(seen[:-1]) if one[0] <= half_s)
    passed_s = last_s - from_s
    return (total - before) / passed_s if passed_s > 0 else 0.0


# -- the source --------------------------------------------------------------------------------------------


async def _burst(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: int) -> LinkFound:
    rtt_s = min([await _ping(reader, writer) for _ in range(PINGS)])
    sent = await _send(writer, bytes_per_s)
    writer.write(_LENGTH.pack(_END))
    await writer.drain()
    arrived, rate = _ANSWER.unpack(await reader.readexactly(_ANSWER.size))
    if arrived != sent or not rate > 0 or not math.isfinite(rate):
        raise EOFError("too little of it arrived to tell")
    return LinkFound(rate_bytes_per_s=rate, rtt_ms=rtt_s * 1e3, sent_bytes=sent)


async def _ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    now = asyncio.get_running_loop().time
    asked_s = now()
    writer.write(_LENGTH.pack(_PING))
    await writer.drain()
    await reader.readexactly(_LENGTH.size)
    return now() - asked_s


async def _send(writer: asyncio.StreamWriter, bytes_per_s: int) -> int:
    """How many bytes went, all told, until one of the limits was met."""
    now = asyncio.get_running_loop().time
    until_s, bucket, sent = now() + MOST_S, Bucket(now(), bytes_per_s or None), 0
    chunk = _LENGTH.pack(CHUNK_BYTES) + bytes(CHUNK_BYTES)
    while sent + CHUNK_BYTES <= MOST_BYTES:
        wait_s = bucket.wait_s(now())
        if now() + wait_s >= until_s:
            break
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        bucket.take(CHUNK_BYTES)
        writer.write(chunk)
        await writer.drain()
        sent += CHUNK_BYTES
    return sent
