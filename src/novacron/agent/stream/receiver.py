"""The target's end of a stream: gives the QEMU that waits for a guest what the source's QEMU sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from novacron.agent.stream import meeting, messages
from novacron.agent.stream.batch import PAGE_BYTES, Page, digest_of, rebuild
from novacron.agent.stream.cache import Scope
from novacron.agent.stream.door import Door
from novacron.agent.stream.ending import one_of
from novacron.agent.stream.figures import Figures, Settings
from novacron.agent.stream.identity import End, context
from novacron.agent.stream.lanes import BULK, CONTROL
from novacron.agent.stream.line import Line
from novacron.agent.stream.messages import Kind, Message
from novacron.agent.stream.pack import Unpacker
from novacron.errors import Malformed, MigrationFailed, NovaCronError

BACK_BYTES = 64 << 10
MAX_OFFERS = 10_000  # whose batches have not come yet
Result = TypeVar("Result")
P = ParamSpec("P")
Found = tuple[list[bytes], list[bytes | None]]


class Receiver:
    """One stream. `async with` closes it whatever happens; afterwards no socket, task or thread of it is left."""

    def __init__(
        self, *, secret: bytes, host: str, qemu_path: Path, scope: Scope | None = None, port: int = 0,
        peer: str | None = None, settings: Settings | None = None, qemu_uid: int | None = None,
    ) -> None:  # fmt: skip
        """secret: of this migration, known to both ends. host, port: where to listen (0: the system picks).

        qemu_path: the unix socket where the target's QEMU waits for its stream; connected to when the source comes.
        scope: whose pages may be used and kept; None: every page comes over the wire. peer: the one IP address the
        source may come from. qemu_uid: whose the socket has to be; None: anybody's.

        :raise InvalidInput: settings out of bounds, or no secret.
        """
        self._settings = (settings or Settings()).check()
        self._context = context(secret, End.TARGET)
        self._host, self._port, self._peer = host, port, peer
        self._qemu_path, self._qemu_uid, self._scope = qemu_path, qemu_uid, scope
        self._unpacker = Unpacker()
        self._found: dict[int, Found] = {}
        self._raw_bytes = self._pages = self._held_pages = self._found_bytes = 0
        self._threads = ThreadPoolExecutor(2, "stream")
        self._run: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> tuple[str, int]:
        """Listen for the source; (host, port) for its `Sender`. :raise InvalidInput: it cannot listen there."""
        self._line = Line(self._settings)
        secret = self._scope.secret if self._scope else None
        self._door = Door(self._line, self._context, secret, self._peer)
        address = self._door.listen(self._host, self._port)
        self._run = asyncio.create_task(self._stream(), name="stream-receiver")
        return address

    async def wait(self) -> Figures:
        """Until both QEMUs have closed the stream. :raise NovaCronError: it failed; QEMU's connection is closed."""
        if self._run is None:
            raise MigrationFailed("the stream was never begun")
        await asyncio.wait({self._run})
        if self._run.cancelled():
            raise MigrationFailed("the stream was closed")
        self._run.result()
        return self.figures()

    @property
    def ended(self) -> bool:
        """Whether it was begun and is over, well or not."""
        return self._run is not None and self._run.done()

    def figures(self) -> Figures:
        """What it has come to so far, as this end sees it."""
        return Figures(
            raw_bytes=self._raw_bytes,
            wire_bytes=self._line.wire_bytes if self._run is not None else 0,
            pages=self._pages,
            held_pages=self._held_pages,
        )

    async def close(self) -> None:
        """End it, at once if it has not ended. QEMU's connection is closed."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._door.close()  # cancelled before its first step, it has closed nothing
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
            self._unpacker.release()

    # -- its parts -----------------------------------------------------------------------------------------------

    async def _stream(self) -> None:
        opening = asyncio.create_task(self._door.run())
        reason = "the target ended the stream"
        writer: asyncio.StreamWriter | None = None
        try:
            await self._door.visited.wait()
            reader, writer = await self._meet()
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(self._line.watch())
                work = [self._offers(), self._load(writer), self._back(reader)]
                offers, *others = [group.create_task(part) for part in work]
                await asyncio.wait(others)
                with contextlib.suppress(NovaCronError):  # all is done; whether the source knows is its own affair
                    await self._line.drained()
                offers.cancel()
                watching.cancel()
            reason = ""
        except BaseExceptionGroup as wrong:
            ours = one_of(wrong)
            reason = ours.message
            raise ours from None
        except MigrationFailed as wrong:
            reason = wrong.message
            raise
        finally:
            if writer is not None:
                writer.close()
            await self._line.part(reason)
            opening.cancel()
            await asyncio.wait({opening})

    async def _meet(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(sock=meeting.connected(self._qemu_path, self._qemu_uid))
        except OSError as wrong:
            raise MigrationFailed(f"the target's QEMU does not wait at {self._qemu_path}: {wrong.strerror}") from wrong

    async def _offers(self) -> None:
        """Look up what is offered, prove it, hold it for its batch, and say so."""
        while True:
            said = messages.read(await self._line.receive(CONTROL))
            match said.kind:
                case Kind.OFFER if self._scope is not None:
                    await self._look_up(self._scope, said)
                case Kind.FAIL:
                    raise MigrationFailed(said.rest.decode(errors="replace"))
                case _:
                    raise Malformed("the source speaks as a target does")

    async def _look_up(self, scope: Scope, said: Message) -> None:
        keys = messages.keys_of(said.rest)
        pages = await self._in_thread(scope.take, keys)
        self._found_bytes += sum(len(page) for page in pages if page)
        if self._found_bytes > 2 * self._settings.window_bytes or len(self._found) > MAX_OFFERS:
            raise Malformed("the source offers more than it sends")
        self._found[said.number] = (keys, pages)
        self._line.post(messages.answer(said.number, [page is not None for page in pages]))

    async def _load(self, writer: asyncio.StreamWriter) -> None:
        """Give QEMU one batch after the other, each proved to be what the source's QEMU sent."""
        try:
            while (raw := await self._line.receive(BULK))[0] == Kind.DATA:
                data = messages.read_data(raw)
                keys, found = self._found.pop(data.number, ([], []))
                self._found_bytes -= sum(len(page) for page in found if page)
                piece, pages = await self._in_thread(self._unpack, data, found)
                writer.write(piece)
                await writer.drain()
                self._line.post(messages.message(Kind.DONE, data.number))
                self._count(piece, pages, found)
                await self._keep(keys, found, pages)
            if messages.read(raw).kind is not Kind.END:
                raise Malformed("the source sends no such contents")
            writer.write_eof()
        except OSError as wrong:
            raise MigrationFailed(f"the target's QEMU closed its connection: {wrong.strerror or wrong}") from wrong

    def _unpack(self, data: messages.Data, found: list[bytes | None]) -> tuple[bytes, list[Page]]:
        body = self._unpacker.unpack(data.packed, data.body_bytes, fresh=data.fresh)
        piece, pages = rebuild(body, found or [None] * (len(body) // PAGE_BYTES + 1))
        if digest_of(piece) != data.digest:
            raise MigrationFailed("a piece of the stream is not what the source sent; nothing of it was used")
        return piece, pages

    async def _keep(self, keys: list[bytes], found: list[bytes | None], pages: list[Page]) -> None:
        if self._scope is not None and keys:
            came = [(key, page) for key, held, page in zip(keys, found, pages, strict=True) if held is None]
            await self._in_thread(self._scope.keep, came)

    def _count(self, piece: bytes, pages: list[Page], found: list[bytes | None]) -> None:
        self._raw_bytes += len(piece)
        self._pages += len(pages)
        self._held_pages += sum(page is not None for page in found)

    async def _back(self, reader: asyncio.StreamReader) -> None:
        """QEMU's return path, as it comes."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(BACK_BYTES):
                await self._line.tell(messages.message(Kind.BACK, 0, data))
        self._line.post(messages.message(Kind.BACK_END))

    async def _in_thread(self, call: Callable[P, Result], *arguments: P.args, **named: P.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **named))
