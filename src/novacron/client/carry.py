"""Requests whose body is a part of a file, on a connection of their own; blocking.

The kernel carries the bytes from file to socket (with TLS they pass through once): an HTTP library hands every one of
them through several buffers, which for files of gigabytes is most of the work.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit

from novacron.client.call import Response
from novacron.client.endpoint import Endpoint
from novacron.client.flow import SendPart
from novacron.client.line import CONNECT_WITHIN_S, Body, Line
from novacron.client.problem import broken, late, unreachable, untrusted

READ_BYTES = 64 << 10


class Carrier:
    """A connection for parts: dialled for the first, kept for the next, given up after a failure. A context manager."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._endpoint = line.endpoint
        self._socket: socket.socket | None = None
        self._is_broken_off = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, part: SendPart) -> Response:
        """The whole answer, bounded. :raise Unavailable, DeadlineExceeded: no connection, it broke, or stood still."""
        to = self._socket or self._dial()
        try:
            with _failures(self._line, self._endpoint):
                return self._exchange(to, part)
        except BaseException:
            self.close()
            raise

    @property
    def _address(self) -> SplitResult:
        return urlsplit(self._endpoint.base_url)

    def break_off(self) -> None:
        """From another thread: what `send` waits for ends now, or once the connection stands."""
        self._is_broken_off = True
        if self._socket is not None:
            _shut(self._socket)

    def close(self) -> None:
        to, self._socket = self._socket, None
        if to is not None:
            to.close()

    def _dial(self) -> socket.socket:
        endpoint = self._endpoint = self._line.endpoint
        try:
            if endpoint.socket:
                to = socket.socket(socket.AF_UNIX)
                to.settimeout(CONNECT_WITHIN_S)
                self._socket = to
                to.connect(endpoint.socket)
            else:
                port = self._address.port or (443 if self._address.scheme == "https" else 80)
                to = socket.create_connection((self._address.hostname or "", port), CONNECT_WITHIN_S)
                to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socket = to
            if (context := endpoint.tls()) is not None:
                self._socket = to = context.wrap_socket(to, server_hostname=self._address.hostname)
        except OSError as wrong:
            self.close()
            self._line.endpoints.move_on(endpoint)
            trusts = not isinstance(wrong, ssl.SSLCertVerificationError)
            raise (unreachable if trusts else untrusted)(endpoint.text, str(wrong)) from wrong
        to.settimeout(self._line.answer_within_s)
        if self._is_broken_off:
            _shut(to)
        return to

    def _exchange(self, to: socket.socket, part: SendPart) -> Response:
        http_connection = http.client.HTTPConnection(self._address.netloc)
        http_connection.sock = to
        http_connection.putrequest(part.request.method, part.request.target, skip_accept_encoding=True, skip_host=True)
        headers = {"Host": self._address.netloc, "Accept": "application/json", **self._line.headers}
        for name, value in {**headers, **part.request.headers, "Content-Length": str(part.length)}.items():
            http_connection.putheader(name, value)
        http_connection.endheaders()
        # Who refuses the part may hang up before all of it was sent: the answer says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            part.source.send(part.offset, part.length, to)
        answer = http_connection.getresponse()
        whole = Body()
        while piece := answer.read(READ_BYTES):
            whole.take(piece)
        if answer.will_close:
            self.close()
        return Response(status=answer.status, headers=dict(answer.headers), body=whole.whole())


@contextlib.contextmanager
def _failures(line: Line, tried: Endpoint) -> Iterator[None]:
    try:
        yield
    except TimeoutError as wrong:
        line.endpoints.move_on(tried)
        raise late(tried.text, line.answer_within_s) from wrong
    except (OSError, http.client.HTTPException) as wrong:
        line.endpoints.move_on(tried)
        raise broken(tried.text, str(wrong) or type(wrong).__name__) from wrong


def _shut(to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(to, socket.SHUT_RDWR)  # of the socket itself: TLS would say goodbye first
