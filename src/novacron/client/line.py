"""What both transports share: limits, headers, and the libraries' failures said in our own errors."""

from __future__ import annotations

import logging
import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec

from novacron import __version__
from novacron.client.endpoint import Endpoint, Endpoints, endpoints_of
from novacron.client.flow import Means
from novacron.client.problem import broken, late, not_ours, problem_of, unreachable, untrusted
from novacron.errors import InvalidInput
from novacron.wire.stream import MAX_FRAME_BYTES, Subscribe, ToClient

CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 30.0
CLOSE_WITHIN_S = 1.0
KEEP_IDLE_S = 2.0
MAX_ANSWER_BYTES = 64 << 20
PIECE_BYTES = 256 << 10  # of a file that comes: handed on as soon as so much is there
MAX_HEARD_BYTES = 16 * MAX_FRAME_BYTES  # a newer server may send larger objects

_frames: msgspec.json.Decoder[ToClient] = msgspec.json.Decoder(ToClient)
_log = logging.getLogger(__name__)
_encode = msgspec.json.Encoder().encode


class Line(msgspec.Struct, frozen=True):
    """Where the servers are, what is shown to them, and what flows are handed."""

    endpoints: Endpoints
    token: str
    answer_within_s: float
    means: Means

    def __repr__(self) -> str:
        """Without the token: reprs end up in logs and tracebacks."""
        return f"Line({self.endpoints.text})"

    @property
    def endpoint(self) -> Endpoint:
        """The server in use."""
        return self.endpoints.now

    @property
    def headers(self) -> dict[str, str]:
        """What every request and the WebSocket's first one carry."""
        shown = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"User-Agent": f"novacron/{__version__}", **shown}


def open_line(
    server: str,
    token: str,
    ca_file: Path | None,
    answer_within_s: float,
    on_notice: Callable[[str], None] | None,
    tries: int,
    consistent: bool = False,
) -> Line:
    """A line to `server`, or to several separated by commas; nothing is dialled yet.

    Without `on_notice`, trouble that is dealt with goes to the log.

    :raise InvalidInput: the address is none, or the token cannot travel in a header (it is not repeated then).
    """
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InvalidInput.field("token", "holds characters no token has", "give the token alone, on one line")
    means = Means(random.Random(), on_notice or _log.warning, tries, consistent)  # noqa: S311 (spreads retries, no secret)
    return Line(endpoints_of(server, ca_file), token, answer_within_s, means)


def http_options(line: Line) -> dict[str, Any]:
    """Arguments of httpx2's clients but the transport. Nothing is taken from the environment."""
    return {
        "base_url": line.endpoint.base_url,
        "headers": {**line.headers, "Accept": "application/json", "Accept-Encoding": "identity"},
        "timeout": httpx2.Timeout(line.answer_within_s, connect=CONNECT_WITHIN_S),
        "trust_env": False,
        "follow_redirects": False,
    }


def transport_options(endpoint: Endpoint) -> dict[str, Any]:
    """Arguments of httpx2's transport to a server."""
    # Without TLS: a context that trusts nobody, which costs no reading of the system's certificates.
    verify = endpoint.tls() or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Servers let go of a connection that is idle for some seconds; using one just then would lose a request.
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEEP_IDLE_S)
    return {"verify": verify, "uds": endpoint.socket or None, "trust_env": False, "limits": limits}


def websocket_options(line: Line, within_s: float | None) -> dict[str, Any]:
    """Arguments of websockets' connect functions."""
    secure = line.endpoint.tls()
    return {
        "uri": line.endpoint.events_url,
        "additional_headers": line.headers,
        "user_agent_header": None,
        "proxy": None,
        "compression": None,
        "max_size": MAX_HEARD_BYTES,
        "open_timeout": CONNECT_WITHIN_S if within_s is None else min(CONNECT_WITHIN_S, max(within_s, 0.001)),
        "close_timeout": CLOSE_WITHIN_S,
        **({"ssl": secure} if secure else {}),
    }


def subscription(subscribe: Subscribe) -> str:
    """The first frame of the stream."""
    return _encode(subscribe).decode()


def frame_of(data: str | bytes) -> ToClient:
    """:raise Unavailable: it is no frame of ours."""
    try:
        return _frames.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as wrong:
        raise not_ours(f"an event frame cannot be read: {wrong}") from wrong


class Body:
    """An answer's body as it arrives, bounded."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, part: bytes) -> None:
        """:raise Unavailable: there is more than any answer of ours holds."""
        self._size += len(part)
        if self._size > MAX_ANSWER_BYTES:
            raise not_ours(f"its answer is longer than {MAX_ANSWER_BYTES >> 20} MiB")
        self._parts.append(part)

    def whole(self) -> bytes:
        return b"".join(self._parts)


@contextmanager
def http_failures(line: Line) -> Iterator[None]:
    """httpx2's failures as Unavailable or DeadlineExceeded. After one, the next server is in use."""
    tried = line.endpoint
    address = tried.text
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as wrong:
        address = line.endpoints.text  # all of them were tried
        if "CERTIFICATE_VERIFY_FAILED" in str(wrong):
            raise untrusted(address, _words(wrong)) from wrong
        raise unreachable(address, _words(wrong)) from wrong
    except httpx2.TimeoutException as wrong:
        line.endpoints.move_on(tried)
        raise late(address, line.answer_within_s) from wrong
    except (httpx2.TransportError, httpx2.StreamError) as wrong:
        line.endpoints.move_on(tried)
        raise broken(address, _words(wrong)) from wrong


@contextmanager
def websocket_failures(line: Line) -> Iterator[None]:
    """websockets' failures as Unavailable, or as what the server said when it refused. As `http_failures`."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus  # here: only events need it

    tried = line.endpoint
    address = tried.text
    try:
        yield
    except InvalidStatus as wrong:
        raise problem_of(wrong.response.status_code, bytes(wrong.response.body or b"")) from wrong
    except InvalidHandshake as wrong:
        raise not_ours(f"it does not speak WebSocket: {_words(wrong)}") from wrong
    except ConnectionClosed as wrong:
        line.endpoints.move_on(tried)
        raise broken(address, _words(wrong)) from wrong
    except ssl.SSLCertVerificationError as wrong:
        raise untrusted(address, _words(wrong)) from wrong
    except (OSError, EOFError) as wrong:
        line.endpoints.move_on(tried)
        raise unreachable(address, _words(wrong)) from wrong


def _words(wrong: BaseException) -> str:
    return str(wrong).strip() or type(wrong).__name__
