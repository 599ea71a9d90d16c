"""The sockets the API is served on: one TCP address, and a unix socket for this machine's agents and tools."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from novacron.config import ServerConfig
from novacron.control import peer
from novacron.control.body import Connection
from novacron.errors import InvalidInput
from novacron.wire.agent import MAX_FRAME_BYTES

GRACE_S = 3
MAX_UNIX_PATH = 107
BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn that leaves signals to the process and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    async def is_up(self) -> None:
        """Wait until it serves."""
        await self._up.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_for(app: ASGIApp, config: ServerConfig, *, tls: bool, context: ssl.SSLContext | None = None) -> Server:
    """A server for one listener. GRACE_S after it is told to end, what still runs is cut off.

    context: of its TLS; None: made of the settings' certificate.
    """
    made = uvicorn.Config(
        app,
        http=Connection,
        ws=peer.WebSockets,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=str(config.tls_cert) if tls and config.tls_cert else None,
        ssl_keyfile=str(config.tls_key) if tls and config.tls_key else None,
        ssl_context_factory=(lambda _config, _usual: context) if tls and context else None,
    )
    try:
        made.load()
    except (OSError, ssl.SSLError) as wrong:
        raise InvalidInput.field(
            "tls_cert", f"cannot be used: {wrong}", "give a PEM certificate and its key"
        ) from wrong
    if made.ssl is not None:
        made.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return Server(made)


def tcp(host: str, port: int) -> socket.socket:
    """A socket bound to host and port (0: the system picks). :raise InvalidInput: says why it cannot be."""
    try:
        family = socket.AF_INET6 if host != "localhost" and ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError as wrong:
        raise InvalidInput.field("host", f"{host} is not an IP address", "give an address of this machine") from wrong
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as wrong:
        made.close()
        raise InvalidInput.field(
            "port", f"cannot listen on {host}:{port}: {wrong.strerror}", "stop what listens there, or give another port"
        ) from wrong
    return made


def unix(path: Path) -> socket.socket:
    """A unix socket for its owner alone (0600). What a dead server left there is replaced, a living one is not.

    :raise InvalidInput: says why it cannot be.
    """
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise InvalidInput.field("socket", f"the path has more than {MAX_UNIX_PATH} bytes", "give a shorter one")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        before = os.umask(0o177)
        try:
            made.bind(str(path))
        finally:
            os.umask(before)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as wrong:
        made.close()
        raise InvalidInput.field("socket", f"cannot listen on {path}: {wrong.strerror}", "give another path") from wrong
    return made


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidInput.field("socket", f"{path} is there and is no socket", "give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise InvalidInput.field("socket", f"another server listens on {path}", "stop it, or give another path")


def address_of(made: socket.socket, *, tls: bool) -> str:
    """The listener as a URL."""
    host, port = made.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"
