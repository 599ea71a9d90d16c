"""The asyncio client's hands: the effects of a conversation, done over httpx2 and the asyncio side of websockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx2
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from novacron.client.call import Request, Response
from novacron.client.carry import Carrier
from novacron.client.flow import Count, Effect, Flow, Give, Hear, Listen, Outcome, Receive, Rest, Send, SendPart, Sink
from novacron.client.line import (
    PIECE_BYTES,
    Body,
    Line,
    frame_of,
    http_failures,
    subscription,
    websocket_failures,
    websocket_options,
)
from novacron.clock import Clock
from novacron.errors import NovaCronError
from novacron.wire.stream import ToClient


class Stage:
    """Where the effects of one conversation are done; holds its event stream, and its result in the end."""

    def __init__(self, line: Line, http: httpx2.AsyncClient, clock: Clock) -> None:
        self._line = line
        self._http = http
        self._clock = clock
        self._carrier = Carrier(line)
        self._stream: ClientConnection | None = None
        self.result: Any = None

    async def steps(self, conversation: Flow[Any]) -> AsyncGenerator[Any, None]:
        """Do the flow's effects; yields what it gives, leaves what it returns in `result`."""
        outcome: Outcome = None
        wrong: NovaCronError | None = None
        try:
            while True:
                try:
                    effect = conversation.send(outcome) if wrong is None else conversation.throw(wrong)
                except StopIteration as end:
                    self.result = end.value
                    return
                outcome, wrong = None, None
                if isinstance(effect, Give):
                    yield effect.item
                    continue
                try:
                    outcome = await self._do(effect)
                except NovaCronError as failure:
                    wrong = failure
        finally:
            self._carrier.close()
            await self._hang_up()

    async def _do(self, effect: Effect) -> Outcome:
        match effect:
            case Send(request=one):
                with http_failures(self._line):
                    return await exchange(self._http, one.method, one.target, one.headers, one.body or None)
            case SendPart():
                return await _carried(self._carrier, effect)
            case Receive(request=one, sink=sink):
                with http_failures(self._line):
                    return await receive(self._http, one, sink)
            case Count(source=source):
                return await asyncio.to_thread(source.digest)
            case Rest(seconds=seconds):
                await self._clock.sleep(seconds)
            case Listen():
                await self._hang_up()
                with websocket_failures(self._line):
                    await self._dial(effect)
            case Hear(within_s=within_s):
                return await self._hear(within_s)
        return None

    async def _dial(self, listen: Listen) -> None:
        options = websocket_options(self._line, listen.within_s)
        socket = self._line.endpoint.socket
        self._stream = await (unix_connect(socket, **options) if socket else connect(**options))
        await self._stream.send(subscription(listen.subscribe))

    async def _hear(self, within_s: float | None) -> ToClient | None:
        if self._stream is None:
            raise RuntimeError("a flow hears before it listens")
        with websocket_failures(self._line):
            try:
                async with asyncio.timeout(within_s):
                    data = await self._stream.recv()
            except TimeoutError:
                return None
        return frame_of(data)

    async def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        try:
            await stream.close()
        except asyncio.CancelledError:
            stream.transport.abort()  # no time for a farewell, but nothing of it may stay
            raise


async def exchange(
    http: httpx2.AsyncClient,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | AsyncIterator[bytes] | None,
) -> Response:
    """One request and its whole answer, bounded."""
    async with http.stream(method, target, headers=headers, content=body) as response:
        return await _read(response)


async def receive(http: httpx2.AsyncClient, asked: Request, sink: Sink) -> Response:
    """One request; the file it is answered with goes to the sink."""
    async with http.stream(asked.method, asked.target, headers=asked.headers) as response:
        if response.status_code not in (200, 206):
            return await _read(response)
        sink.begin(response.status_code, response.headers)
        async for piece in response.aiter_raw(PIECE_BYTES):
            await asyncio.to_thread(sink.take, piece)
        return Response(status=response.status_code, headers=response.headers, body=b"")


async def _read(response: httpx2.Response) -> Response:
    whole = Body()
    async for part in response.aiter_raw():
        whole.take(part)
    return Response(status=response.status_code, headers=response.headers, body=whole.whole())


async def _carried(carrier: Carrier, part: SendPart) -> Response:
    """Who is cancelled leaves when the thread has: it reads a file that is closed next."""
    sending = asyncio.ensure_future(asyncio.to_thread(carrier.send, part))
    try:
        return await asyncio.shield(sending)
    except asyncio.CancelledError:
        carrier.break_off()
        await asyncio.gather(sending, return_exceptions=True)
        raise
