"""A real web server in the test's own loop, on loopback or a unix socket, with a Link at its place or what is given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp

from novacron.control import peer
from novacron.control.link import Link
from novacron.wire.agent import MAX_FRAME_BYTES, PATH

SECRET = "correct horse battery staple"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the test keeps its own signal handlers


@contextlib.asynccontextmanager
async def serving(link: Link, listen: socket.socket, max_size: int = MAX_FRAME_BYTES) -> AsyncIterator[str]:
    """The server's address as AgentConfig.server wants it; it has ended when this is left."""
    app = Starlette(routes=[WebSocketRoute(PATH, link.serve)])
    async with served_on(app, listen, max_size) as address:
        yield address


@contextlib.asynccontextmanager
async def served_on(app: ASGIApp, listen: socket.socket, max_size: int = MAX_FRAME_BYTES) -> AsyncIterator[str]:
    """The same with any application at its place."""
    config = uvicorn.Config(
        app,
        ws=peer.WebSockets,  # as control.listen does
        lifespan="off",
        log_level="warning",
        access_log=False,
        ws_max_size=max_size,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    running = asyncio.create_task(server.serve(sockets=[listen]))
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.005)
        name = listen.getsockname()
        yield f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"
    finally:
        server.should_exit = True
        await running


def on_loopback(port: int = 0) -> socket.socket:
    listen = socket.socket()
    listen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listen.bind(("127.0.0.1", port))
    return listen


def on_unix_socket(directory: Path) -> socket.socket:
    listen = socket.socket(socket.AF_UNIX)
    listen.bind(str(directory / "s"))
    return listen
