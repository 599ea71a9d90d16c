"""Both ends of a stream in one process, sockets in place of the two QEMUs, and a relay between that breaks at will."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from novacron.agent.stream.cache import Scope
from novacron.agent.stream.figures import Settings
from novacron.agent.stream.receiver import Receiver
from novacron.agent.stream.sender import Sender
from tests.agent.waiting import until

HOST = "127.0.0.1"


class Relay:
    """A TCP relay. Cut: connections break and none is taken. Deaf: nothing passes, and nobody is told."""

    def __init__(self) -> None:
        self.made = 0
        self._to: tuple[str, int] = ("", 0)
        self._through = asyncio.Event()
        self._through.set()
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def opened(self, to: tuple[str, int]) -> AsyncIterator[tuple[str, int]]:
        self._to = to
        server = await asyncio.start_server(self._take, HOST, 0)
        try:
            yield server.sockets[0].getsockname()
        finally:
            server.close()
            self._break()

    def cut(self) -> None:
        self._cut = True
        self._break()

    def deafen(self) -> None:
        self._through.clear()

    def mend(self) -> None:
        self._cut = False
        self._through.set()

    def _break(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        self.made += 1
        there, back = await asyncio.open_connection(*self._to)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back))
                both.create_task(self._pass(there, writer))
        except* OSError:
            pass
        finally:
            self._writers -= {writer, back}
            writer.transport.abort()
            back.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(32 << 10):
            await self._through.wait()
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


class Target:
    """Where the target's QEMU would wait. Says `greeting` on its return path and, at the end, `goodbye`."""

    def __init__(self) -> None:
        self.came = bytearray()
        self.over = asyncio.Event()
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.writer: asyncio.StreamWriter | None = None
        self.ended_well = False

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        writer.write(b"greeting ")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                self.came.extend(data)
                await self.going_on.wait()
            self.ended_well = True
            writer.write(b"goodbye")
        writer.close()
        self.over.set()


class Ends:
    """target: what arrived. `send` plays the source's QEMU."""

    def __init__(self, sender: Sender, receiver: Receiver, target: Target, relay: Relay, path: Path) -> None:
        self.sender, self.receiver, self.target, self.relay = sender, receiver, target, relay
        self._path = path

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._path)

    async def send(self, stream: bytes, piece: int = 200_000, *, stop_bytes: int = 0) -> bytes:
        """Send all, or until it is cut off, close, and read the return path to its end.

        stop_bytes: so much of the end goes when all before it has arrived.
        """
        reader, writer = await self.connect()
        hearing = asyncio.create_task(_heard(reader))
        stops_at = len(stream) - stop_bytes
        with contextlib.suppress(ConnectionError):
            for at in range(0, stops_at, piece):
                writer.write(stream[at : min(at + piece, stops_at)])
                await writer.drain()
            if stop_bytes:
                await until(lambda: len(self.target.came) == stops_at)
                writer.write(stream[stops_at:])
            writer.write_eof()
        heard = await hearing
        writer.close()
        return heard


async def _heard(reader: asyncio.StreamReader) -> bytes:
    heard = bytearray()
    with contextlib.suppress(ConnectionError):  # closed before it had read all
        while data := await reader.read(1 << 16):
            heard += data
    return bytes(heard)


@contextlib.asynccontextmanager
async def ends(
    scope: Scope | None = None, settings: Settings | None = None, cap: int | None = None, secret: bytes | None = None
) -> AsyncIterator[Ends]:
    """Open, and closed whatever happens; `secret`: what the source believes the migration's to be."""
    key = os.urandom(32)
    with tempfile.TemporaryDirectory(prefix="novacron-stream-") as folder:
        target, relay, path = Target(), Relay(), Path(folder)
        async with (
            await asyncio.start_unix_server(target.take, path / "target"),
            Receiver(secret=key, host=HOST, qemu_path=path / "target", scope=scope, settings=settings) as receiver,
            relay.opened(await receiver.start()) as through,
            Sender(
                secret=secret or key,
                target=through,
                socket_path=path / "source",
                settings=settings,
                cap_bytes_per_s=cap,
            ) as sender,
        ):
            await sender.start()
            yield Ends(sender, receiver, target, relay, path / "source")
