"""A small NBD client: reads and writes blocks of a disk that QEMU exports, and asks what is known of its extents.

    Session.open(...)   fixed newstyle, structured replies, one export, at most one meta context
    read, write, extents       one request at a time
What comes is bounded and checked: the other end is a hypervisor that a guest may have broken into.
"""

from __future__ import annotations

import asyncio
import struct

from novacron.errors import MonitorFailed

ALLOCATION = "base:allocation"
DIRTY = "qemu:dirty-bitmap:{}"
DEPTH = "qemu:allocation-depth"  # 1: in the disk's own layer
HOLE = 1  # of base:allocation
MAX_READ_BYTES = 4 << 20
MAX_STATUS_BYTES = 1 << 30  # asked about at once
_MAX_CHUNK_BYTES = MAX_READ_BYTES + 64
_OPTION, _OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
_REQUEST, _STRUCTURED, _SIMPLE = 0x25609513, 0x668E33EF, 0x67446698
_GO, _STRUCTURED_REPLY, _SET_META_CONTEXT = 7, 8, 10
_ACK, _INFO, _META_CONTEXT = 1, 3, 4
_READ, _WRITE, _DISCONNECT, _BLOCK_STATUS = 0, 1, 2, 7
_DONE, _DATA, _HOLE_CHUNK, _STATUS, _ERRORS = 1, 1, 2, 5, 1 << 15

Extent = tuple[int, int]
"""Its length in bytes, and the flags of its context."""


class Session:
    """size_bytes: of the export. Its methods raise MonitorFailed when the other end breaks off or breaks the rules."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = 0
        self.size_bytes = 0

    async def begin(self, export: str, context: str) -> None:
        """Agree on the export and the context."""
        magic, options, _flags = struct.unpack(">QQH", await self._exactly(18))
        if (magic, options) != (0x4E42444D41474943, _OPTION):
            raise MonitorFailed("what answers is no NBD server")
        self._writer.write(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        await self._option(_STRUCTURED_REPLY, b"")
        name, query = export.encode(), context.encode()
        named = struct.pack(">I", len(name)) + name
        found = await self._option(_SET_META_CONTEXT, named + struct.pack(">II", 1, len(query)) + query)
        if not any(kind == _META_CONTEXT for kind, _ in found):
            raise MonitorFailed(f"the export has no context {context}")
        for kind, data in await self._option(_GO, named + struct.pack(">H", 0)):
            if kind == _INFO and len(data) == 12 and data[:2] == b"\0\0":
                (self.size_bytes,) = struct.unpack(">Q", data[2:10])

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk, at most MAX_READ_BYTES, inside it."""
        into = bytearray(length)
        for kind, data in await self._asked(_READ, offset, length):
            if kind == _DATA and len(data) >= 8:
                at = struct.unpack(">Q", data[:8])[0] - offset
                if not 0 <= at <= length - len(data) + 8:
                    raise MonitorFailed("the NBD server sent what was not asked for")
                into[at : at + len(data) - 8] = data[8:]
            elif kind != _HOLE_CHUNK:  # blank already
                raise MonitorFailed("the NBD server answered a read with something unexpected")
        return bytes(into)

    async def write(self, offset: int, data: bytes) -> None:
        """Bytes of the disk, at most MAX_READ_BYTES, inside it. Done: the disk has them, if not yet on its storage."""
        self._requests += 1
        self._writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _WRITE, self._requests, offset, len(data)) + data)
        try:
            await self._writer.drain()
        except OSError as wrong:
            raise MonitorFailed(f"the NBD server hung up: {wrong}") from wrong
        (magic,) = struct.unpack(">I", await self._exactly(4))
        if magic == _STRUCTURED:  # of a write, only what went wrong is told so
            raise MonitorFailed("a part of the disk cannot be written")
        error, handle = struct.unpack(">IQ", await self._exactly(12))
        if magic != _SIMPLE or handle != self._requests:
            raise MonitorFailed("the NBD server answered a write with something unexpected")
        if error:
            raise MonitorFailed(f"a part of the disk cannot be written: error {error}")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """What is known from there on, perhaps of less than `length`; of one byte at least."""
        for kind, data in await self._asked(_BLOCK_STATUS, offset, min(length, MAX_STATUS_BYTES)):
            if kind == _STATUS and len(data) >= 12 and len(data) % 8 == 4:
                found = list(struct.iter_unpack(">II", data[4:]))
                if all(size for size, _ in found):
                    return found
        raise MonitorFailed("the NBD server says nothing of its extents")

    async def end(self) -> None:
        """Say goodbye."""
        try:
            self._writer.write(struct.pack(">IHHQQI", _REQUEST, 0, _DISCONNECT, 0, 0, 0))
        finally:
            self._writer.close()

    async def _option(self, option: int, data: bytes) -> list[tuple[int, bytes]]:
        self._writer.write(struct.pack(">QII", _OPTION, option, len(data)) + data)
        found = []
        while True:
            magic, to, kind, length = struct.unpack(">QIII", await self._exactly(20))
            if magic != _OPTION_REPLY or to != option or length > _MAX_CHUNK_BYTES:
                raise MonitorFailed("the NBD server answered an option with something unexpected")
            found.append((kind, await self._exactly(length)))
            if kind >= 1 << 31:
                raise MonitorFailed(f"the NBD server refused option {option}: error {kind & 0xFFFF}")
            if kind == _ACK:
                return found

    async def _asked(self, command: int, offset: int, length: int) -> list[tuple[int, bytes]]:
        self._requests += 1
        self._writer.write(struct.pack(">IHHQQI", _REQUEST, 0, command, self._requests, offset, length))
        found, came = [], 0
        while True:
            magic, flags, kind, handle, size = struct.unpack(">IHHQI", await self._exactly(20))
            came += size + 20
            if magic != _STRUCTURED or handle != self._requests or came > _MAX_CHUNK_BYTES * 2:
                raise MonitorFailed("the NBD server answered with something unexpected")
            data = await self._exactly(size)
            if kind & _ERRORS:
                raise MonitorFailed(f"a part of the disk cannot be read: error {int.from_bytes(data[:4])}")
            found += [(kind, data)] if kind else []
            if flags & _DONE:
                return found

    async def _exactly(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except (OSError, asyncio.IncompleteReadError) as wrong:
            raise MonitorFailed(f"the NBD server hung up: {wrong}") from wrong
