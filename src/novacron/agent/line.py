"""The agent's end of the line: dials the server for ever, says what it has, answers calls, tells progress."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from novacron.agent import enrolment
from novacron.agent.credentials import of_tls
from novacron.agent.dial import Dial
from novacron.agent.heartbeat import Heartbeat
from novacron.agent.member import Member
from novacron.agent.servers import Contact
from novacron.agent.works import Works
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, NodeUnreachable, NovaCronError, TooLarge
from novacron.wire.agent import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    Call,
    Cancel,
    FromServer,
    Hello,
    MigrationProgress,
    Reply,
    Report,
    Welcome,
)
from novacron.wire.membership import Question, Standing, Terms

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
WELCOME_WITHIN_S = 10.0
MAX_UNTOLD_PROGRESS = 64

_encode = msgspec.json.Encoder().encode
_from_server: msgspec.json.Decoder[FromServer] = msgspec.json.Decoder(FromServer)


class Line:
    """The line to one server; `run` until cancelled.

    Calls under way when it breaks go on; a repeat on the next line joins them, or on another server's.
    """

    def __init__(
        self,
        dial: Dial,
        works: Works,
        heartbeat: Heartbeat,
        hello: Callable[[], Awaitable[Hello]],
        clock: Clock,
        rng: random.Random,
        member: Member,
        contact: Contact | None = None,
    ) -> None:
        """contact: who is to hear which server this is, and of which others it tells."""
        self._contact = contact
        self._dial = dial
        self._member = member
        self._asking: dict[int, asyncio.Future[Standing]] = {}
        self._heartbeat = heartbeat
        self._hello = hello
        self._clock = clock
        self._rng = rng
        self._works = works
        self._progress: deque[MigrationProgress] = deque(maxlen=MAX_UNTOLD_PROGRESS)
        self._progressed = asyncio.Event()
        self._log = structlog.get_logger("line")

    def announce(self, frame: MigrationProgress) -> None:
        """Tell the server when it can be told; the oldest is dropped when too many wait."""
        self._progress.append(frame)
        self._progressed.set()

    async def run(self) -> None:
        """Keep a line open; a broken one is dialled again after a jittered, growing delay."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                async with self._dial() as socket:
                    terms = await self._greet(socket)
                    retry_s = FIRST_RETRY_S
                    await self._live(socket, terms)
            except InvalidStatus as refused:
                status = refused.response.status_code
                said = enrolment.refusal(bytes(refused.response.body or b"{}"), status)
                hints = [reason.remedy for reason in said.reasons] or ["is it a NovaCron server?"]
                self._log.error("the server refuses the line", status=status, why=said.message, remedy=hints)
            except NovaCronError as unusable:
                hints = [reason.remedy for reason in unusable.reasons]
                self._log.error("no line can be opened", why=unusable.message, remedy=hints)
            except ConnectionClosed as closed:
                self._log.warning("the line broke", why=str(closed))
            except (OSError, TimeoutError, WebSocketException, _Misunderstood) as failed:
                reason = of_tls(failed)
                why = reason.message if reason else str(failed) or type(failed).__name__
                self._log.warning("no line to the server", why=why, remedy=reason.remedy if reason else "")
            await self._clock.sleep(retry_s * self._rng.uniform(0.5, 1.0))
            retry_s = min(retry_s * 2, LAST_RETRY_S)

    async def _greet(self, socket: ClientConnection) -> Terms | None:
        """Hello and Welcome, and what it says of memberships. :raise _Misunderstood: the server speaks otherwise."""
        await socket.send(_encode(await self._hello()))
        async with asyncio.timeout(WELCOME_WITHIN_S):
            welcome = _decoded(await socket.recv(decode=False))
        if not isinstance(welcome, Welcome) or welcome.protocol != PROTOCOL:
            raise _Misunderstood(f"the server does not speak protocol {PROTOCOL}")
        self._log.info("the line is open", server_version=welcome.server_version)
        return welcome.terms

    async def _live(self, socket: ClientConnection, terms: Terms | None) -> None:
        """Answer calls until the line breaks. :raise ConnectionClosed"""

        async def report(frame: Report) -> None:
            await socket.send(_encode(frame))

        beside = [
            asyncio.create_task(self._quietly(self._heartbeat.run(report)), name="heartbeat"),
            asyncio.create_task(self._quietly(self._tell_progress(socket)), name="progress"),
        ]

        async def ask(question: Question, deadline_s: float) -> Standing:
            return await self._ask(socket, question, deadline_s)

        if terms is not None:
            self._member.met(terms, ask)
        if self._contact is not None:
            self._contact.opened(terms)
        try:
            while True:
                await self._take(socket, _decoded(await socket.recv(decode=False)))
        finally:
            if terms is not None:
                self._member.lost(terms.server_id, ask)
            if self._contact is not None:
                self._contact.closed()
            self._works.abandon(socket)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _take(self, socket: ClientConnection, frame: FromServer) -> None:
        match frame:
            case Call():

                async def respond(reply: Reply) -> None:
                    await self._respond(socket, reply)

                await self._works.take(socket, frame, respond)
            case Cancel():
                self._works.cancel(socket, frame.id)
            case Standing():
                if self._contact is not None:
                    self._contact.told(frame.places)
                waiting = self._asking.get(frame.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
            case Welcome():
                raise _Misunderstood("a second welcome")

    async def _ask(self, socket: ClientConnection, question: Question, deadline_s: float) -> Standing:
        """See agent.member.Ask."""
        waiting: asyncio.Future[Standing] = asyncio.get_running_loop().create_future()
        self._asking[question.id] = waiting
        try:
            async with asyncio.timeout(deadline_s):
                await socket.send(_encode(question))
                return await waiting
        except TimeoutError:
            raise DeadlineExceeded(f"the server did not answer within {deadline_s:g} s") from None
        except ConnectionClosed as broke:
            raise NodeUnreachable("the line to the server broke") from broke
        finally:
            del self._asking[question.id]

    async def _respond(self, socket: ClientConnection, reply: Reply) -> None:
        frame = _encode(reply)
        if len(frame) > MAX_FRAME_BYTES:
            large = TooLarge(f"the answer takes {len(frame)} bytes, over {MAX_FRAME_BYTES}")
            frame = _encode(Reply(id=reply.id, error=large.as_data()))
        try:
            await socket.send(frame)
        except ConnectionClosed:
            self._log.info("an answer found its line broken; the caller will ask again")

    async def _tell_progress(self, socket: ClientConnection) -> None:
        while True:
            await self._progressed.wait()
            self._progressed.clear()
            while self._progress:
                await socket.send(_encode(self._progress.popleft()))

    async def _quietly(self, work: Awaitable[None]) -> None:
        """What runs beside the reader ends with the line; anything else that ends it is a fault of ours."""
        try:
            await work
        except ConnectionClosed:
            pass
        except Exception:  # noqa: BLE001  (reported, and the line is kept for calls)
            self._log.exception("a part of the line broke")


class _Misunderstood(Exception):
    """The server said something that this agent does not understand."""


def _decoded(content: bytes) -> FromServer:
    try:
        return _from_server.decode(content)
    except (msgspec.DecodeError, NovaCronError) as wrong:
        raise _Misunderstood(f"a frame cannot be read: {wrong}") from wrong
