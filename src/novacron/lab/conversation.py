"""The demo's and the bench's end of a talker: starts the process, gives it orders, takes its answers."""

from __future__ import annotations

import asyncio
import sys
from typing import Self, TypeVar

import msgspec

from novacron.lab.failure import LabFailed
from novacron.lab.guest.line import Status
from novacron.lab.measure import Window
from novacron.lab.namespaces import Namespace

DEADLINE_S = 30.0
MAX_MESSAGE_BYTES = 65536

Answer = TypeVar("Answer")


class _Reply(msgspec.Struct, frozen=True):
    answer: str = ""
    error: str = ""


class _Answered(msgspec.Struct, frozen=True, tag_field="event", tag="answered"):
    move: int
    at_ns: int


class Talker:
    """A client inside `namespace` (None: this machine's own network) that keeps talking to one guest."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._answered: asyncio.Queue[_Answered] = asyncio.Queue()
        self._moves = 0
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, namespace: Namespace | None) -> Self:
        arguments = ["--namespace-fd", str(namespace.fd)] if namespace else []
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "novacron.lab.talker", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(namespace.fd,) if namespace else (),
            start_new_session=True,  # Ctrl-C is for us: we end it when we are done
            limit=MAX_MESSAGE_BYTES,
        )
        return cls(process)

    def move(self, host: str, port: int) -> None:
        """Talk to this address from now on; `answered` tells when the first answer came."""
        self._order(f"move {host} {port}")
        self._moves += 1

    def leave(self) -> None:
        """Hang up, and talk to nobody until `move`."""
        self._order("leave")

    async def answered(self, deadline_s: float = 60.0) -> int:
        """When the first answer since the last `move` came: time.monotonic_ns. :raise LabFailed: not in time."""
        while True:
            heard = await self._next(self._answered, deadline_s, "the guest did not answer on the network")
            if heard.move == self._moves:  # else a connection of before
                return heard.at_ns

    async def ask(self, line: str) -> str:
        """What the guest answers. :raise LabFailed: it refused, or does not answer."""
        self._order(f"ask {line}")
        reply = await self._reply(_Reply)
        if reply.error or reply.answer.startswith("error "):
            raise LabFailed.because(f"asking the guest for {line!r}: {reply.error or reply.answer[6:]}")
        return reply.answer

    async def status(self) -> Status:
        """The guest's own account of itself. :raise LabFailed: as `ask`."""
        return msgspec.json.decode(await self.ask("status"), type=Status)

    async def begin(self) -> None:
        """A window begins."""
        self._order("begin")
        await self._reply(_Reply)

    async def end(self) -> Window:
        """The window since `begin`; takes a quarter of a second of further answers."""
        self._order("end")
        return await self._reply(Window)

    async def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()

    def _order(self, order: str) -> None:
        if self._process.stdin is None or self._process.returncode is not None:
            raise LabFailed.because("the talker has ended")
        self._process.stdin.write(order.encode() + b"\n")

    async def _reply(self, kind: type[Answer]) -> Answer:
        data = await self._next(self._replies, DEADLINE_S, "the guest does not answer any more")
        return msgspec.json.decode(data, type=kind)

    async def _next(self, queue: asyncio.Queue[Answer], deadline_s: float, otherwise: str) -> Answer:
        """:raise LabFailed: nothing in time, or the talker has ended."""
        waiting = asyncio.create_task(queue.get())
        try:
            await asyncio.wait({waiting, self._reader}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not waiting.done():
                waiting.cancel()
        if not waiting.done():
            raise LabFailed.because("the talker has ended" if self._reader.done() else otherwise)
        return waiting.result()

    async def _read(self) -> None:
        while self._process.stdout and (line := await self._process.stdout.readline()):
            if line.startswith(b'{"event"'):
                self._answered.put_nowait(msgspec.json.decode(line, type=_Answered))
            else:
                self._replies.put_nowait(line)
