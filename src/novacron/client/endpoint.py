"""Where servers are and how they are reached: https, http on this machine, or a unix socket."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import msgspec

from novacron.config import is_loopback
from novacron.errors import InvalidInput

DEFAULT_SERVER = "http://127.0.0.1:8470"
FORMS = "give https://host:port, http://127.0.0.1:port or unix:/path"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A server's address, checked. `socket` is empty unless it is a unix socket; `ca_file` goes with https."""

    base_url: str
    socket: str = ""
    ca_file: Path | None = None

    @property
    def text(self) -> str:
        """The address as a person would type it."""
        return f"unix:{self.socket}" if self.socket else self.base_url

    @property
    def events_url(self) -> str:
        """Where the WebSocket of events is dialled."""
        return f"ws{self.base_url.removeprefix('http')}/api/v1/events"

    def tls(self) -> ssl.SSLContext | None:
        """What verifies the server: the given CA alone, else the system's; None without TLS.

        :raise InvalidInput: the CA file cannot be read.
        """
        if not self.base_url.startswith("https://"):
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as wrong:
            raise InvalidInput.field(
                "ca_file", f"cannot use {self.ca_file}: {wrong}", "give a readable PEM file"
            ) from wrong


class Endpoints:
    """The servers of one cluster, any of which answers; `now` is the one in use. Safe to use from several threads."""

    def __init__(self, every: tuple[Endpoint, ...]) -> None:
        self.every = every
        self._place = 0

    @property
    def now(self) -> Endpoint:
        return self.every[self._place]

    @property
    def text(self) -> str:
        """All addresses, as a person would type them."""
        return ",".join(one.text for one in self.every)

    def move_on(self, tried: Endpoint) -> None:
        """That one did not answer: use the one after it, unless somebody has moved on already."""
        if self.now is tried:
            self._place = (self._place + 1) % len(self.every)


def endpoints_of(servers: str, ca_file: Path | None = None) -> Endpoints:
    """The addresses in `servers`, separated by commas. :raise InvalidInput: as `endpoint_of`, of any of them."""
    return Endpoints(tuple(endpoint_of(one, ca_file) for one in servers.split(",")))


def endpoint_of(server: str, ca_file: Path | None = None) -> Endpoint:
    """The address in `server`.

    :raise InvalidInput: it has none of the three forms, or it would carry the token over a network in clear.
    """
    if server.startswith("unix:"):
        path = server.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput.field("server", f"{server!r} names no socket by its whole path", "give unix:/path")
        return Endpoint(base_url="http://localhost", socket=path)
    parts = _split(server)
    host = parts.hostname or ""
    if parts.scheme == "http" and not is_loopback(host):
        raise InvalidInput.field(
            "server", f"{server} is plain http to another machine: the token would travel in clear", "use https://"
        )
    netloc = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port is not None else ""
    return Endpoint(base_url=f"{parts.scheme}://{netloc}{port}", ca_file=ca_file)


def _split(server: str) -> SplitResult:
    try:
        parts = urlsplit(server)
        port_is_legal = parts.port != 0
    except ValueError as wrong:
        raise InvalidInput.field("server", f"{server!r} is not an address: {wrong}", FORMS) from wrong
    if parts.scheme not in ("http", "https") or not parts.hostname or not server.isprintable() or not port_is_legal:
        raise InvalidInput.field("server", f"{server!r} is not an address", FORMS)
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise InvalidInput.field("server", f"{server!r} holds more than host and port", FORMS)
    return parts
