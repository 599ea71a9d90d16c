"""The blocking client's hands: the effects of a conversation, done over httpx2 and the blocking side of websockets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx2

from novacron.client.call import Request, Response
from novacron.client.carry import Carrier
from novacron.client.flow import Count, Effect, Hear, Listen, Outcome, Receive, Rest, Send, SendPart, Sink
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
from novacron.wire.stream import ToClient

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class Stage:
    """Where the effects of one conversation are done; holds its event stream."""

    def __init__(self, line: Line, http: httpx2.Client) -> None:
        self._line = line
        self._http = http
        self._carrier = Carrier(line)
        self._stream: ClientConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        self._carrier.close()
        self._hang_up()

    def do(self, effect: Effect) -> Outcome:
        match effect:
            case Send(request=one):
                with http_failures(self._line):
                    return exchange(self._http, one.method, one.target, one.headers, one.body or None)
            case SendPart():
                return self._carrier.send(effect)
            case Receive(request=one, sink=sink):
                with http_failures(self._line):
                    return receive(self._http, one, sink)
            case Count(source=source):
                return source.digest()
            case Rest(seconds=seconds):
                time.sleep(seconds)
            case Listen():
                self._hang_up()
                with websocket_failures(self._line):
                    self._dial(effect)
            case Hear(within_s=within_s):
                return self._hear(within_s)
        return None

    def _dial(self, listen: Listen) -> None:
        from websockets.sync.client import connect, unix_connect  # here: only events need it

        options = websocket_options(self._line, listen.within_s)
        socket = self._line.endpoint.socket
        stream = unix_connect(socket, **options) if socket else connect(**options)
        self._stream = stream.__enter__()
        self._stream.send(subscription(listen.subscribe))

    def _hear(self, within_s: float | None) -> ToClient | None:
        if self._stream is None:
            raise RuntimeError("a flow hears before it listens")
        with websocket_failures(self._line):
            try:
                data = self._stream.recv(timeout=within_s)
            except TimeoutError:
                return None
        return frame_of(data)

    def _hang_up(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def exchange(
    http: httpx2.Client, method: str, target: str, headers: Mapping[str, str], body: bytes | Iterator[bytes] | None
) -> Response:
    """One request and its whole answer, bounded."""
    with http.stream(method, target, headers=headers, content=body) as response:
        return _read(response)


def receive(http: httpx2.Client, asked: Request, sink: Sink) -> Response:
    """One request; the file it is answered with goes to the sink."""
    with http.stream(asked.method, asked.target, headers=asked.headers) as response:
        if response.status_code not in (200, 206):
            return _read(response)
        sink.begin(response.status_code, response.headers)
        for piece in response.iter_raw(PIECE_BYTES):
            sink.take(piece)
        return Response(status=response.status_code, headers=response.headers, body=b"")


def _read(response: httpx2.Response) -> Response:
    whole = Body()
    for part in response.iter_raw():
        whole.take(part)
    return Response(status=response.status_code, headers=response.headers, body=whole.whole())
