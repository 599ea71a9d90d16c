"""The source's end of a stream: QEMU connects here and believes it speaks to its target."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from novacron.agent.stream import messages
from novacron.agent.stream.batch import ZEROS, Batch, Haste, body_of
from novacron.agent.stream.channel import TOKEN_BYTES
from novacron.agent.stream.dialler import Dialler
from novacron.agent.stream.ending import one_of
from novacron.agent.stream.figures import Figures, Settings
from novacron.agent.stream.identity import End, context
from novacron.agent.stream.lanes import CONTROL
from novacron.agent.stream.line import Line
from novacron.agent.stream.messages import Kind, Message
from novacron.agent.stream.pack import Press
from novacron.agent.stream.parse import Splitter
from novacron.agent.stream.table import Hash, hasher, key_of
from novacron.agent.stream.window import Window, piece_bytes
from novacron.errors import InvalidInput, Malformed, MigrationFailed

HOLD_S = 0.003
"""So long a page that is not whole waits for its rest; then what there is of it goes."""
UNASKED_BYTES = 2 << 20
"""So much of a guest that stands still is sent without asking: about what 100 Mbit/s carry, packed, in a round trip."""
MAX_UNREAD_BACK_BYTES = 16 << 20

Answer = asyncio.Future[list[bool]]
Result = TypeVar("Result")
P = ParamSpec("P")


class Sender:
    """One stream. `async with` closes it whatever happens; afterwards no socket, task or thread of it is left."""

    def __init__(
        self, *, secret: bytes, target: tuple[str, int], socket_path: Path, owner: tuple[int, int] | None = None,
        settings: Settings | None = None, link_bytes_per_s: float | None = None, cap_bytes_per_s: int | None = None,
        local_host: str | None = None,
    ) -> None:  # fmt: skip
        """secret: of this migration, known to both ends. target: what `Receiver.start` gave. socket_path: where
        QEMU will connect, to be made here for the user `owner`; nobody else may write in its directory.
        link_bytes_per_s: what an earlier stream measured. local_host: the address of this node the target expects.

        :raise InvalidInput: settings out of bounds, or no secret.
        """
        self._settings = (settings or Settings()).check()
        self._context = context(secret, End.SOURCE)
        self._target, self._local_host, self._path, self._owner = target, local_host, socket_path, owner
        self._cap = cap_bytes_per_s
        self._splitter = Splitter()
        self._known_bytes_per_s = min((rate for rate in (link_bytes_per_s, cap_bytes_per_s) if rate), default=None)
        self._press = Press(self._known_bytes_per_s)
        self._raw_bytes = self._pages = self._zero_pages = self._held_pages = 0
        self._answers: dict[int, tuple[int, Answer]] = {}
        self._offers: asyncio.Queue[tuple[int, Batch, Answer | None] | None] = asyncio.Queue()
        self._unasked_bytes = 0
        self._back_ended = asyncio.Event()
        self._threads = ThreadPoolExecutor(2, "stream")
        self._run: asyncio.Task[None] | None = None
        self._closed = False
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> str:
        """Dial the target and listen for QEMU; the address for its `migrate`. :raise InvalidInput: no such path."""
        self._line = Line(self._settings, self._cap)
        self._window = Window(self._settings.window_bytes, self._known_bytes_per_s)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._dialler = Dialler(self._line, self._context, self._target, token, self._local_host)
        self._met: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
        try:
            piece = piece_bytes(self._known_bytes_per_s)  # twice its limit a reader may hold
            self._door = await asyncio.start_unix_server(self._meet, self._path, limit=piece // 2, backlog=1)
            self._path.chmod(0o600)
            if self._owner is not None:
                os.chown(self._path, *self._owner)
        except OSError as wrong:
            raise InvalidInput.field("socket_path", f"cannot listen at {self._path}: {wrong.strerror}") from wrong
        self._run = asyncio.create_task(self._stream(), name="stream-sender")
        return f"unix:{self._path}"

    async def wait(self) -> Figures:
        """Until both QEMUs have closed the stream and all of it has arrived.

        :raise NovaCronError: it failed; QEMU has been told by closing its connection.
        """
        if self._run is None:
            raise MigrationFailed("the stream was never begun")
        await asyncio.wait({self._run})
        if self._run.cancelled():
            raise MigrationFailed("the stream was closed")
        self._run.result()
        return self.figures()

    def set_cap(self, bytes_per_s: int | None) -> None:
        """Send no faster from now on; None: as fast as it goes. 0 stops contents until the next call."""
        self._cap = bytes_per_s
        if self._run is not None:
            self._line.set_cap(bytes_per_s)

    @property
    def ended(self) -> bool:
        """Whether it was begun and is over, well or not."""
        return self._run is not None and self._run.done()

    def figures(self) -> Figures:
        """What it has come to so far."""
        begun = self._run is not None
        return Figures(
            raw_bytes=self._raw_bytes,
            wire_bytes=self._line.wire_bytes if begun else 0,
            pages=self._pages,
            zero_pages=self._zero_pages,
            held_pages=self._held_pages,
            reconnects=self._dialler.reconnects if begun else 0,
            link_bytes_per_s=self._line.link_bytes_per_s if begun else None,
            level=self._press.level,
        )

    async def close(self) -> None:
        """End it, at once if it has not ended. QEMU's connection is closed."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
            self._press.release()

    # -- its parts -----------------------------------------------------------------------------------------------

    def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._writer is not None:
            writer.transport.abort()  # one connection: multifd and pre-emption have no place here
            return
        self._writer = writer
        self._met.set_result(reader)

    async def _stream(self) -> None:
        dialling = asyncio.create_task(self._dialler.run(self._settings))
        reason = "the source ended the stream"
        try:
            async with asyncio.TaskGroup() as group:
                around = [group.create_task(part) for part in (self._line.watch(), self._heed())]
                await asyncio.wait([group.create_task(part) for part in (self._take(), self._send())])
                await self._back_ended.wait()
                await self._line.drained()
                for task in around:
                    task.cancel()
            reason = ""
        except BaseExceptionGroup as wrong:
            ours = one_of(wrong)
            reason = ours.message
            raise ours from None
        finally:
            self._shut()
            await self._line.part(reason)
            dialling.cancel()
            await asyncio.wait({dialling})

    def _shut(self) -> None:
        self._door.close()
        self._path.unlink(missing_ok=True)
        if self._writer is not None:
            self._writer.close()

    async def _take(self) -> None:
        """QEMU's stream, cut into batches that are offered to the target."""
        reader = await self._met
        fresh = hasher((await self._dialler.welcome).secret)
        number = 0
        while (batch := await self._next(reader)) is not None:
            self._window.enter(number, len(batch.raw), asyncio.get_running_loop().time())
            self._count(batch)
            await self._offer(number, batch, fresh)
            number += 1
            await self._window.room()
        self._offers.put_nowait(None)

    async def _next(self, reader: asyncio.StreamReader) -> Batch | None:
        """The next batch; None: QEMU has closed the stream."""
        most = piece_bytes(self._line.expected_bytes_per_s or self._known_bytes_per_s)
        while True:
            try:
                async with asyncio.timeout(HOLD_S if self._splitter.holds else None):
                    data = await reader.read(most)
            except TimeoutError:
                return self._splitter.release()
            except ConnectionError:
                data = b""  # a QEMU that gives up closes less politely
            if not data:
                return self._splitter.release() if self._splitter.holds else None
            batch = await self._in_thread(self._splitter.feed, data)
            if batch is not None:
                return batch

    async def _offer(self, number: int, batch: Batch, fresh: Hash) -> None:
        """Tell the target what pages there are, and go on."""
        answer: Answer | None = None
        if batch.pages and self._may_ask(batch) and (await self._dialler.welcome).offers:
            keys = await self._in_thread(lambda: [key_of(fresh, page) for page in batch.contents()])
            answer = asyncio.get_running_loop().create_future()
            self._answers[number] = (len(keys), answer)
            self._line.post(messages.offer(number, keys))
        self._offers.put_nowait((number, batch, answer))

    def _may_ask(self, batch: Batch) -> bool:
        """Whether its pages may wait for an answer. For a guest that stands still the link is filled first."""
        if batch.haste is Haste.STANDS:
            self._unasked_bytes += len(batch.raw)
            return self._unasked_bytes > UNASKED_BYTES
        return batch.haste is Haste.NONE

    async def _send(self) -> None:
        """Batches in order, each without the pages the target holds, as soon as it has said which."""
        while (offered := await self._offers.get()) is not None:
            number, batch, answer = offered
            held = [False] * len(batch.pages) if answer is None else await answer
            self._held_pages += sum(held)
            await self._line.send(await self._in_thread(self._pack, number, batch, held))
        await self._line.send(messages.message(Kind.END))

    def _pack(self, number: int, batch: Batch, held: list[bool]) -> bytes:
        body = body_of(batch, held)
        fresh, packed = self._press.pack(body, self._line.expected_bytes_per_s)
        return messages.Data(number, len(body), fresh, batch.digest(), packed).pack()

    async def _heed(self) -> None:
        """What the target says. Runs until cancelled: it may still fail when its QEMU has closed the return path."""
        while True:
            said = messages.read(await self._line.receive(CONTROL))
            match said.kind:
                case Kind.ANSWER:
                    self._answered(said)
                case Kind.DONE:
                    self._window.leave(said.number, asyncio.get_running_loop().time())
                case Kind.BACK:
                    self._give_back(said.rest)
                case Kind.BACK_END:
                    if self._writer is not None and self._writer.can_write_eof() and not self._writer.is_closing():
                        self._writer.write_eof()
                    self._back_ended.set()
                case Kind.FAIL:
                    raise MigrationFailed(said.rest.decode(errors="replace"))
                case _:
                    raise Malformed("the target speaks as a source does")

    def _answered(self, said: Message) -> None:
        count, answer = self._answers.pop(said.number, (0, None))
        if answer is None:
            raise Malformed("the target answers what was not asked")
        if not answer.done():
            answer.set_result(messages.held_of(said.rest, count))

    def _give_back(self, data: bytes) -> None:
        """Bytes of the return path, at once. They are few: QEMU answers each of its sections with some."""
        if self._writer is None or self._writer.is_closing():
            return
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BACK_BYTES:
            raise MigrationFailed("the source's QEMU does not read its return path")

    def _count(self, batch: Batch) -> None:
        self._raw_bytes += len(batch.raw)
        self._pages += len(batch.pages)
        self._zero_pages += sum(count for kind, count, _ in batch.ops if kind == ZEROS)

    async def _in_thread(self, call: Callable[P, Result], *arguments: P.args, **named: P.kwargs) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **named))
