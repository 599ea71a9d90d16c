"""The one door to QEMU: a monitor with typed answers, a deadline on every command, and stamped events.

Out-of-band execution is always switched on: in a stalled migration a monitor answers nothing else. A command that
missed its deadline stays in QEMU's queue, so the next one waits for it and is not sent behind it: a full queue
would shut out the out-of-band commands too.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from qemu.qmp import EventListener, ExecInterruptedError, Message, QMPClient, QMPError
from qemu.qmp.protocol import Runstate, StateError
from qemu.qmp.qmp_client import ExecuteError

from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, MonitorFailed, Reason

DEADLINE_S = 10.0
MAX_MESSAGE_BYTES = 8 << 20
MAX_EVENT_LAG_S = 5.0

# The library logs what it also raises, and whole messages when it debugs; our errors carry all that matters.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

Answer = TypeVar("Answer")


class Event(msgspec.Struct, frozen=True):
    """Something QEMU said unasked. at_s: when it happened, on the agent's monotonic clock."""

    name: str
    data: dict[str, Any]
    at_s: float


class Monitor:
    """One connection to one QMP socket. Lost once, it stays lost: make another."""

    def __init__(self, clock: Clock, on_event: Callable[[Event], None], on_lost: Callable[[], None]) -> None:
        self._clock = clock
        self._on_lost = on_lost
        self._client = QMPClient(readbuflen=MAX_MESSAGE_BYTES)
        self._client.events.event_filter = lambda _: False  # it would keep every event of the machine's life
        self._client.register_listener(_Forwarder(clock, on_event))
        self._late: set[asyncio.Task[object]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._lost = False

    async def connect(self, to: socket.socket, deadline_s: float = DEADLINE_S) -> None:
        """Greet and negotiate over a connected socket, which the monitor owns from now on.

        :raise DeadlineExceeded: QEMU does not greet, or holds its main loop: another client has this monitor.
        :raise MonitorFailed: it hung up or does not speak QMP. In both cases the socket is closed.
        """
        try:
            async with asyncio.timeout(deadline_s):
                await self._client.connect(to)
        except TimeoutError:
            raise DeadlineExceeded(f"the monitor did not greet within {deadline_s:g} s") from None
        except QMPError as wrong:
            raise MonitorFailed(f"the monitor could not be opened: {wrong}") from wrong
        finally:
            if self._client.runstate is not Runstate.RUNNING:
                to.close()
        self._watch = asyncio.create_task(self._until_lost())

    @property
    def connected(self) -> bool:
        return self._client.runstate is Runstate.RUNNING

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, deadline_s: float = DEADLINE_S
    ) -> Any:
        """The answer to one command.

        :raise MonitorFailed: QEMU refused (its words are the message), or the monitor is lost.
        :raise DeadlineExceeded: no answer in time; whether it is done is unknown.
        """
        if self._late and (await asyncio.wait(set(self._late), timeout=deadline_s))[1]:
            raise DeadlineExceeded(f"the monitor still owes an earlier answer: {command} was not sent")
        return await self._send(command, arguments, deadline_s, oob=False)

    async def execute_oob(
        self, command: str, arguments: Mapping[str, object] | None = None, *, deadline_s: float = DEADLINE_S
    ) -> Any:
        """As `execute`, answered even while QEMU's main loop is held. Few commands allow it (yank, query-yank…)."""
        return await self._send(command, arguments, deadline_s, oob=True)

    async def hand(self, name: str, descriptor: int) -> None:
        """Give QEMU a copy of an open descriptor, known to it by that name. :raise MonitorFailed"""
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as wrong:
            raise MonitorFailed(f"a descriptor could not be handed to QEMU: {wrong}") from wrong
        await self.execute("getfd", {"fdname": name})

    async def ask(
        self,
        answer: type[Answer],
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = DEADLINE_S,
    ) -> Answer:
        """The answer as a struct; fields we do not know are ignored. :raise MonitorFailed: it does not fit."""
        try:
            return msgspec.convert(await self.execute(command, arguments, deadline_s=deadline_s), answer)
        except msgspec.ValidationError as wrong:
            raise MonitorFailed(f"{command} answered something unexpected: {wrong}") from wrong

    async def close(self) -> None:
        """Hang up. QEMU runs on."""
        watch = self._watch
        if watch is not None and self._lost:
            await asyncio.wait({watch})  # it is hanging up already, and the library's farewell is for one alone
            return
        if watch is not None:
            watch.cancel()
            await asyncio.wait({watch})
        await self._hang_up()

    async def _send(self, command: str, arguments: Mapping[str, object] | None, deadline_s: float, *, oob: bool) -> Any:
        # A task of its own: a caller that leaves must not leave an unclaimed answer behind in the library.
        sent = asyncio.create_task(self._client.execute(command, arguments, oob=oob))
        sent.add_done_callback(self._forget)
        try:
            await asyncio.wait({sent}, timeout=deadline_s)
        finally:
            if not sent.done():
                self._late.add(sent)
        if not sent.done():
            raise DeadlineExceeded(f"the monitor did not answer {command} within {deadline_s:g} s")
        try:
            return sent.result()
        except ExecuteError as refused:
            reason = Reason("qemu.refused", str(refused), subject=command)
            raise MonitorFailed(f"QEMU refused {command}: {refused}", [reason]) from refused
        except (ExecInterruptedError, StateError, EOFError, OSError) as lost:
            raise MonitorFailed(f"the monitor was lost during {command}") from lost

    def _forget(self, sent: asyncio.Task[object]) -> None:
        self._late.discard(sent)
        if not sent.cancelled():
            sent.exception()  # seen, also when its caller has left

    async def _until_lost(self) -> None:
        while self.connected:
            await self._client.runstate_changed()
        self._lost = True
        await self._hang_up()
        self._on_lost()

    async def _hang_up(self) -> None:
        try:
            await self._client.disconnect()
        except (QMPError, OSError, EOFError):
            return  # QEMU hung up first, which is what is reported here


class _Forwarder(EventListener):
    """Hands events on at once, in the reader's own turn, and keeps none."""

    def __init__(self, clock: Clock, on_event: Callable[[Event], None]) -> None:
        super().__init__()
        self._clock = clock
        self._on_event = on_event

    async def put(self, event: Message) -> None:
        stamp: Any = event.get("timestamp")
        data: Any = event.get("data", {})
        self._on_event(Event(str(event["event"]), data, self._clock.monotonic_s() - self._lag_s(stamp)))

    def _lag_s(self, stamp: Any) -> float:
        """How old the event is: QEMU stamps it with this host's wall clock, which may have been set meanwhile."""
        try:
            born_s = stamp["seconds"] + stamp["microseconds"] / 1e6
        except (KeyError, TypeError):
            return 0.0
        lag = self._clock.wall().timestamp() - born_s
        return lag if 0 <= lag <= MAX_EVENT_LAG_S else 0.0
