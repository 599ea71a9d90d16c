"""One TCP connection of a stream: frames on it, and the greeting with which it joins its line."""

from __future__ import annotations

import asyncio
import socket
import struct

import msgspec

from novacron.agent.stream.lanes import CHUNK_BYTES, LANES, Chunk
from novacron.errors import Malformed

GREETING = b"novacron stream 1\n"
TOKEN_BYTES = 16
SECRET_BYTES = 32
ACK = len(LANES)
FRAME_BYTES = 14
MAX_CHANNELS = 16
_FRAME = struct.Struct("!B?IQ")  # lane or ACK, last, length, sequence number
_ACKS = struct.Struct("!QQ")
_HELLO = struct.Struct(f"!{len(GREETING)}s{TOKEN_BYTES}sBQQ")
_WELCOME = struct.Struct(f"!{len(GREETING)}s?{SECRET_BYTES}sQQ")
_UNSENT_BYTES = 128 << 10
_BUFFER_BYTES = 64 << 10
_TCP_NOTSENT_LOWAT = 25


class Hello(msgspec.Struct, frozen=True):
    """Which stream a connection belongs to, which of its channels it is, and what has arrived at the source."""

    token: bytes
    number: int
    arrived: tuple[int, int]


class Welcome(msgspec.Struct, frozen=True):
    """offers: the target holds pages, known by keys made with `secret`. arrived: at the target."""

    offers: bool
    secret: bytes
    arrived: tuple[int, int]


def prompt(writer: asyncio.StreamWriter) -> None:
    """Have little wait on this side: what waits in the kernel cannot be overtaken."""
    sock: socket.socket | None = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.transport.set_write_buffer_limits(high=_BUFFER_BYTES)


class Channel:
    """Its reads and writes, one of each at a time; closing is for whoever made it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        prompt(writer)

    async def hello(self, words: Hello) -> Welcome:
        """Greet as the source, and hear the target. :raise Malformed: it is something else."""
        self._writer.write(_HELLO.pack(GREETING, words.token, words.number, *words.arrived))
        greeting, offers, secret, *arrived = _WELCOME.unpack(await self._reader.readexactly(_WELCOME.size))
        if greeting != GREETING:
            raise Malformed("the other end speaks another version of the stream")
        return Welcome(offers, secret, (arrived[0], arrived[1]))

    async def heard(self) -> Hello:
        """What a source says first. :raise Malformed: it is none."""
        greeting, token, number, *arrived = _HELLO.unpack(await self._reader.readexactly(_HELLO.size))
        if greeting != GREETING or number >= MAX_CHANNELS:
            raise Malformed("the other end speaks another version of the stream")
        return Hello(token, number, (arrived[0], arrived[1]))

    def welcome(self, words: Welcome) -> None:
        self._writer.write(_WELCOME.pack(GREETING, words.offers, words.secret, *words.arrived))

    async def send(self, chunk: Chunk) -> None:
        self._writer.write(_FRAME.pack(chunk.lane, chunk.last, len(chunk.payload), chunk.seq) + chunk.payload)
        await self._writer.drain()

    async def acknowledge(self, arrived: tuple[int, int]) -> None:
        """How far each lane has come. Also said when there is nothing new, to show that this end lives."""
        self._writer.write(_FRAME.pack(ACK, False, _ACKS.size, 0) + _ACKS.pack(*arrived))
        await self._writer.drain()

    async def receive(self) -> Chunk | tuple[int, int]:
        """A chunk, or how far the other side has come.

        :raise Malformed: neither. :raise asyncio.IncompleteReadError, OSError: it broke.
        """
        lane, last, length, seq = _FRAME.unpack(await self._reader.readexactly(FRAME_BYTES))
        if lane > ACK or length > CHUNK_BYTES or (lane == ACK and length != _ACKS.size):
            raise Malformed("the other end of the stream sends no such frame")
        payload = await self._reader.readexactly(length)
        if lane == ACK:
            control, bulk = _ACKS.unpack(payload)
            return (control, bulk)
        return Chunk(lane, seq, last, payload)

    def abort(self) -> None:
        """Break it now."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """End it once all is written."""
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()
