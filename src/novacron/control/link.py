"""The line to each agent: calls with deadlines and cancellation, reports coming in."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, NodeUnreachable, NovaCronError, TooLarge, from_data
from novacron.model.migration import Progress
from novacron.model.node import NodeUsage
from novacron.wire.agent import (
    MAX_FRAME_BYTES,
    NAME_OF,
    PROTOCOL,
    Call,
    Cancel,
    FromAgent,
    Hello,
    MigrationProgress,
    Reply,
    Report,
    Welcome,
)

Answer = TypeVar("Answer")
ProgressListener = Callable[[Progress], None]
HelloListener = Callable[[Hello], Awaitable[None] | None]
ReportListener = Callable[[str, Report], Awaitable[None] | None]
LostListener = Callable[[str], Awaitable[None] | None]


class Agents(Protocol):
    """What workers know of agents; the simulator has another implementation."""

    def is_connected(self, node_id: str) -> bool:
        """Whether a line to the node is open now."""
        ...

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float) -> Answer:
        """Have the node do the verb that `args` (a struct of wire.agent.VERBS) stands for.

        Cancelling the call cancels the agent's work on it.

        :raise NodeUnreachable: no line, or it broke; the verb may or may not have been done.
        :raise DeadlineExceeded: no answer in time; likewise.
        :raise NovaCronError: the agent's own refusal or failure, rebuilt with its code.
        """
        ...

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        """Have `listener` called with each progress report of the migration; None: stop."""
        ...


HELLO_WITHIN_S = 10.0
MAX_BACKLOG = 1024
"""Reports waiting for their listeners before the line is dropped; the agent then dials again and tells everything."""

CLOSE_NORMAL, CLOSE_GARBAGE, CLOSE_TOO_BIG, CLOSE_BUSY = 1000, 1007, 1009, 1013
CLOSE_SECRET, CLOSE_REPLACED, CLOSE_PROTOCOL = 4401, 4409, 4426

_encode = msgspec.json.Encoder().encode
_from_agent: msgspec.json.Decoder[FromAgent] = msgspec.json.Decoder(FromAgent)


class LineListeners:
    """Who wants to hear of nodes coming, reporting and going. A listener that raises is logged, the others are told."""

    def __init__(self) -> None:
        self._hello: list[HelloListener] = []
        self._report: list[ReportListener] = []
        self._lost: list[LostListener] = []
        self._progress: dict[str, ProgressListener] = {}
        self._log = structlog.get_logger("link")

    def on_hello(self, listener: HelloListener) -> None:
        """Call `listener(Hello)` when a node's line opens. Per node, hello, reports and lost come in order."""
        self._hello.append(listener)

    def on_report(self, listener: ReportListener) -> None:
        """Call `listener(node_id, Report)` with each heartbeat."""
        self._report.append(listener)

    def on_lost(self, listener: LostListener) -> None:
        """Call `listener(node_id)` when a node's line has broken and no newer one has replaced it."""
        self._lost.append(listener)

    def on_progress(self, migration_id: str, listener: ProgressListener | None) -> None:
        """See Agents.on_progress."""
        if listener is None:
            self._progress.pop(migration_id, None)
        else:
            self._progress[migration_id] = listener

    async def tell_hello(self, hello: Hello) -> None:
        for listener in tuple(self._hello):
            await self._tell("hello", listener, hello)

    async def tell_report(self, node_id: str, report: Report) -> None:
        for listener in tuple(self._report):
            await self._tell("report", listener, node_id, report)

    async def tell_lost(self, node_id: str) -> None:
        for listener in tuple(self._lost):
            await self._tell("lost", listener, node_id)

    def tell_progress(self, frame: MigrationProgress) -> None:
        listener = self._progress.get(frame.migration_id)
        if listener is None:
            return
        try:
            listener(frame.progress)
        except Exception:  # noqa: BLE001  (one listener's trouble is not the line's)
            self._log.exception("a progress listener broke", migration_id=frame.migration_id)

    async def _tell(self, what: str, listener: Callable[..., Awaitable[None] | None], *args: Any) -> None:
        try:
            answer = listener(*args)
            if inspect.isawaitable(answer):
                await answer
        except Exception:  # noqa: BLE001  (one listener's trouble is not the line's)
            self._log.exception("a listener broke", what=what)
