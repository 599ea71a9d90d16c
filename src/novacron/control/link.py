"""The line to each agent: calls with deadlines and cancellation, reports coming in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from novacron.clock import Clock
from novacron.control import peer
from novacron.control.doorman import BySecret, Doorman
from novacron.control.line_listeners import LineListeners, Picture, ProgressListener
from novacron.errors import DeadlineExceeded, NodeUnreachable, NovaCronError, TooLarge, from_data
from novacron.model.identity import is_id
from novacron.model.node import NodeUsage
from novacron.model.node_identity import Shown
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
from novacron.wire.membership import Beat, Join, Leave, Plea, Question

Answer = TypeVar("Answer")


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

MAX_ASKED = 8
"""Questions of one node that are answered at once, of those that wait for the store and of pleas, which do not: while
the store is away heartbeats pile up, and just then time must be given. What it asks beyond is dropped.
"""

_AT_ONCE = "migration."
"""Replies to these verbs are handed on at once, past waiting reports: a guest may be standing still."""

CLOSE_NORMAL, CLOSE_GARBAGE, CLOSE_TOO_BIG, CLOSE_BUSY = 1000, 1007, 1009, 1013
CLOSE_SHOWN_OUT, CLOSE_OTHER_NODE, CLOSE_REPLACED, CLOSE_PROTOCOL = 4401, 4403, 4409, 4426

_encode = msgspec.json.Encoder().encode
_from_agent: msgspec.json.Decoder[FromAgent] = msgspec.json.Decoder(FromAgent)


class _Line:
    """One open WebSocket of one node: the calls that wait on it, the reports not yet told."""

    def __init__(self, websocket: WebSocket, hello: Hello, shown: Shown | None) -> None:
        self.websocket = websocket
        self.shown = shown
        self.node_id = hello.node_id
        self.name = hello.node_name
        self.picture = Picture(hello)
        self.pending: dict[int, asyncio.Future[Reply]] = {}
        self.in_order: set[int] = set()  # calls whose replies wait for the reports that came before them
        self.backlog: asyncio.Queue[Hello | Report | Reply] = asyncio.Queue(MAX_BACKLOG)
        self.backlog.put_nowait(hello)
        self.told = asyncio.Event()  # nothing of this line will be told any more
        self.asked: set[asyncio.Task[None]] = set()  # its questions that are being answered, but its pleas
        self.pleas: set[asyncio.Task[None]] = set()
        self.reading: asyncio.Task[tuple[int, str]] | None = None
        self.closing: tuple[int, str] | None = None

    def resolve(self, reply: Reply) -> None:
        """Hand a reply to its caller, if one still waits."""
        waiting = self.pending.get(reply.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    async def send(self, frame: bytes) -> None:
        """:raise NodeUnreachable: the line has broken."""
        try:
            await peer.send_bytes(self.websocket, frame)
        except (WebSocketDisconnect, RuntimeError, OSError) as broken:
            raise self.broke() from broken

    def broke(self) -> NodeUnreachable:
        return NodeUnreachable(f"the line to node {self.name} broke; what was asked may or may not have been done")

    def end(self, code: int, reason: str) -> None:
        """Have it closed, now: nothing that still arrives on it counts."""
        self.closing = self.closing or (code, reason)
        if self.reading is not None:
            self.reading.cancel()
        for waiting in self.pending.values():
            if not waiting.done():
                waiting.set_exception(self.broke())


class Link(LineListeners):
    """Lines dialled by agents, and the calls over them. Implements Agents.

    Mount `serve` as a WebSocket route at wire.agent.PATH. Have the web server bound its frames too
    (uvicorn: ws_max_size=MAX_FRAME_BYTES, ws_per_message_deflate=False) and ping (ws_ping_interval).
    """

    def __init__(self, clock: Clock, secret: str, server_version: str, doorman: Doorman | None = None) -> None:
        """doorman: who lets agents in; None: all who show the secret."""
        super().__init__()
        self._clock = clock
        self._doorman = doorman or BySecret(secret)
        self._version = server_version
        self._lines: dict[str, _Line] = {}
        self._latest: dict[str, _Line] = {}  # the last line of each node, open or not
        self._heard_s: dict[str, float] = {}
        self._usage: dict[str, NodeUsage] = {}
        self._ids = itertools.count(1)
        self._sending: set[asyncio.Task[None]] = set()

    # -- for workers ---------------------------------------------------------------------------------------

    def is_connected(self, node_id: str) -> bool:
        return node_id in self._lines

    def heard_ago_s(self, node_id: str) -> float | None:
        """Seconds since anything came from the node; None: never, since this server started."""
        heard_s = self._heard_s.get(node_id)
        return None if heard_s is None else self._clock.monotonic_s() - heard_s

    def usage(self, node_id: str) -> NodeUsage | None:
        """What the node last said it uses."""
        return self._usage.get(node_id)

    def certified(self) -> Mapping[str, Shown]:
        """By node id, the certificate that its open line was opened with."""
        return {node_id: line.shown for node_id, line in self._lines.items() if line.shown is not None}

    def cut(self, node_id: str, reason: str) -> None:
        """End the node's line now. None there: fine."""
        if (line := self._lines.get(node_id)) is not None:
            line.end(CLOSE_SHOWN_OUT, reason)

    async def call(
        self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float, term: int = 0
    ) -> Answer:
        """See Agents.call. term: see wire.agent.Call. :raise TooLarge: the arguments do not fit into a frame."""
        line = self._lines.get(node_id)
        if line is None:
            raise NodeUnreachable(f"node {node_id} has no line to this server")
        call_id = next(self._ids)
        verb = NAME_OF[type(args)]
        raw = msgspec.Raw(_encode(args))
        deadline_ms = max(0, int(deadline_s * 1e3))
        frame = _encode(Call(id=call_id, verb=verb, args=raw, deadline_ms=deadline_ms, term=term))
        if len(frame) > MAX_FRAME_BYTES:
            raise TooLarge(f"the arguments of {verb} take {len(frame)} bytes, over {MAX_FRAME_BYTES}")
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        line.pending[call_id] = waiting
        if not verb.startswith(_AT_ONCE):
            line.in_order.add(call_id)
        try:
            async with asyncio.timeout(deadline_s):
                await line.send(frame)
                reply = await waiting
        except TimeoutError:
            self._cancel(line, call_id)
            raise DeadlineExceeded(f"node {line.name} did not answer {verb} within {deadline_s:g} s") from None
        except asyncio.CancelledError:
            self._cancel(line, call_id)
            raise
        finally:
            del line.pending[call_id]
            line.in_order.discard(call_id)
            if waiting.done() and not waiting.cancelled():
                waiting.exception()  # looked at, also when a timeout came first
        if reply.error is not None:
            raise _rebuilt(reply.error)
        try:
            return msgspec.json.decode(reply.result, type=answer)
        except msgspec.DecodeError as wrong:
            raise NovaCronError(f"the answer of node {line.name} to {verb} cannot be read: {wrong}") from wrong

    def _cancel(self, line: _Line, call_id: int) -> None:
        """Tell the agent that nobody waits; in a task of its own, for our caller is leaving."""
        if self._lines.get(line.node_id) is not line:
            return
        telling = asyncio.create_task(self._send_cancel(line, call_id))
        self._sending.add(telling)
        telling.add_done_callback(self._sending.discard)

    async def _send_cancel(self, line: _Line, call_id: int) -> None:
        with contextlib.suppress(NodeUnreachable):  # then there is nobody to tell
            await line.send(_encode(Cancel(id=call_id)))

    def greet(self) -> None:
        """Tell listeners of every open line as if it opened now, with all that its node has said since it did."""
        for line in self._lines.values():
            if line.backlog.full():
                line.end(CLOSE_BUSY, "reports come faster than they are taken in")
            else:
                line.backlog.put_nowait(line.picture.hello())

    # -- the route -----------------------------------------------------------------------------------------

    async def serve(self, websocket: WebSocket) -> None:
        """One agent's line, from its handshake to its end."""
        try:
            shown = self._doorman.at_door(websocket)
        except NovaCronError as refused:
            answer = Response(_encode(refused.as_data()), refused.status, media_type="application/json")
            await websocket.send_denial_response(answer)
            return
        await websocket.accept()
        greeting = await self._greet(websocket, shown)
        if isinstance(greeting, Hello):
            await self._keep(_Line(websocket, greeting, shown))
        else:
            await _close(websocket, *greeting)

    async def _greet(self, websocket: WebSocket, shown: Shown | None) -> Hello | tuple[int, str]:
        """The agent's Hello, or why the line is closed."""
        try:
            async with asyncio.timeout(HELLO_WITHIN_S):
                frame = _decoded(await websocket.receive())
        except TimeoutError:
            return CLOSE_PROTOCOL, "no hello"
        if isinstance(frame, tuple):
            return frame
        if not isinstance(frame, Hello) or not is_id(frame.node_id):
            return CLOSE_PROTOCOL, "the first frame must be a hello with a node id"
        if frame.protocol != PROTOCOL:
            self._log.warning("an agent speaks another protocol", node=frame.node_name, theirs=frame.protocol)
            return CLOSE_PROTOCOL, f"this server speaks protocol {PROTOCOL}, not {frame.protocol}"
        try:
            self._doorman.at_hello(shown, frame)
        except NovaCronError as refused:
            return CLOSE_OTHER_NODE, refused.message
        return frame

    async def _keep(self, line: _Line) -> None:
        older = self._latest.get(line.node_id)
        self._lines[line.node_id] = self._latest[line.node_id] = line
        self._hear(line)
        if older is not None and not older.told.is_set():
            self._log.warning("a newer line replaces that of the node", node=line.name, node_id=line.node_id)
            older.end(CLOSE_REPLACED, "replaced by a newer line")
        telling = asyncio.create_task(self._tell_all(line, older), name=f"tell-{line.name}")
        line.reading = asyncio.create_task(self._read(line), name=f"read-{line.name}")
        try:
            await asyncio.wait({line.reading})
        finally:
            await self._drop(line, telling)

    async def _drop(self, line: _Line, telling: asyncio.Task[None]) -> None:
        """The line is over: fail its calls, tell what came before its end, then that it is lost."""
        reading = line.reading
        if reading is not None and reading.done() and not reading.cancelled():
            if (failure := reading.exception()) is None:
                line.closing = line.closing or reading.result()
            elif not isinstance(failure, NodeUnreachable):
                self._log.error("reading a line broke", node=line.name, exc_info=failure)
        line.end(CLOSE_NORMAL, "")
        if self._lines.get(line.node_id) is line:
            del self._lines[line.node_id]
        try:
            await _close(line.websocket, *(line.closing or (CLOSE_NORMAL, "")))
            await line.backlog.join()
            if self._latest.get(line.node_id) is line:
                self._log.info("a node's line is lost", node=line.name, why=line.closing)
                await self.tell_lost(line.node_id)
        finally:
            telling.cancel()
            line.told.set()

    async def _read(self, line: _Line) -> tuple[int, str]:
        """Take frames until the line ends; returns how to close it."""
        await line.send(_encode(Welcome(protocol=PROTOCOL, server_version=self._version, terms=self.terms())))
        receive = line.websocket.receive
        while True:
            frame = _decoded(await receive())
            self._hear(line)
            match frame:
                case Reply() if frame.id not in line.in_order:
                    line.resolve(frame)
                case MigrationProgress():
                    self.tell_progress(frame)
                case Report() | Reply():
                    if isinstance(frame, Report):
                        self._usage[line.node_id] = frame.usage
                        line.picture.take(frame)
                    if line.backlog.full():
                        return CLOSE_BUSY, "reports come faster than they are taken in"
                    line.backlog.put_nowait(frame)
                case Beat() | Join() | Plea() | Leave():
                    self._begin_answer(line, frame)
                case Hello():
                    return CLOSE_PROTOCOL, "a second hello"
                case _:
                    return frame

    def _begin_answer(self, line: _Line, question: Question) -> None:
        asked = line.pleas if isinstance(question, Plea) else line.asked
        if len(asked) >= MAX_ASKED:
            return
        answering = asyncio.create_task(self._answer(line, question), name=f"answer-{line.name}")
        asked.add(answering)
        answering.add_done_callback(asked.discard)

    async def _answer(self, line: _Line, question: Question) -> None:
        """In a task of its own: what is being written must not hold up what else the node says."""
        standing = await self.answer(line.node_id, question)
        if standing is not None:
            with contextlib.suppress(NodeUnreachable):  # it asks again
                await line.send(_encode(standing))

    async def _tell_all(self, line: _Line, older: _Line | None) -> None:
        """Tell listeners in order, apart from reading: a slow listener must not delay a migration's replies.

        Other replies take their turn here: who acts on one has seen every report that the node made before it.
        """
        if older is not None:
            await older.told.wait()
        while True:
            frame = await line.backlog.get()
            if isinstance(frame, Hello):
                await self.tell_hello(frame)
            elif isinstance(frame, Reply):
                line.resolve(frame)
            else:
                await self.tell_report(line.node_id, frame)
            line.backlog.task_done()

    def _hear(self, line: _Line) -> None:
        self._heard_s[line.node_id] = self._clock.monotonic_s()


def _decoded(message: MutableMapping[str, Any]) -> FromAgent | tuple[int, str]:
    """The frame in an ASGI message, or how to close the line."""
    if message["type"] == "websocket.disconnect":
        return CLOSE_NORMAL, ""
    content: bytes | str = message.get("bytes") or message.get("text") or b""
    if len(content) > MAX_FRAME_BYTES:
        return CLOSE_TOO_BIG, f"a frame of {len(content)} bytes"
    try:
        return _from_agent.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return CLOSE_GARBAGE, "a frame that cannot be read"


def _rebuilt(data: dict[str, Any]) -> NovaCronError:
    try:
        return from_data(data)
    except msgspec.ValidationError:
        return NovaCronError(f"the node failed, and its error cannot be read: {data.get('message', '')}")


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    connected = WebSocketState.CONNECTED
    if websocket.client_state is not connected or websocket.application_state is not connected:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):  # it went first
        await websocket.close(code, reason[:100])
