"""The real images' API on a port, with a real store and pool; and a line to it that breaks where it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.control.images_house import ImageHouse, image_house, sha
from tests.control.serving import on_loopback, served_on


class ImageServer:
    """address, token: as a client is given them."""

    def __init__(self, house: ImageHouse, portal: BlockingPortal, address: str) -> None:
        self._portal = portal
        self._house = house
        self.address = address
        self.token = house.token

    def keep(self, name: str, content: bytes) -> None:
        """Have it keep a ready image of that name, whose disk this is."""
        self._portal.call(self._house.filled, name, content)

    def spoil(self, content: bytes) -> None:
        """Have the disk with this content rot in its pool."""
        path = self._house.pool / "images" / sha(content)
        path.chmod(0o600)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@contextlib.contextmanager
def image_server(directory: Path) -> Iterator[ImageServer]:
    """Serving has begun, and has ended afterwards."""
    directory.mkdir()
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_house_on_a_port(directory)) as (house, address),
    ):
        yield ImageServer(house, portal, address)


@contextlib.asynccontextmanager
async def _house_on_a_port(directory: Path) -> AsyncIterator[tuple[ImageHouse, str]]:
    async with (
        image_house(directory, directory / "pool", filling=False) as house,
        served_on(house.app, on_loopback()) as address,
    ):
        yield house, address


class BreakingLine:
    """Stands between client and server: each connection in turn breaks once so many bytes were answered on it."""

    def __init__(self, server: str, breaks_after: list[int]) -> None:
        """breaks_after: one entry a connection; those after the last one hold."""
        host, _, port = server.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._breaks_after = breaks_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked: list[bytes] = []
        """What was sent on each connection."""
        self.answered_bytes = 0

    def serve(self) -> None:
        """Until `close`."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        left = self._breaks_after.pop(0) if self._breaks_after else 1 << 60
        self.asked.append(b"")
        place = len(self.asked) - 1
        with near, socket.create_connection(self._server) as far, contextlib.suppress(OSError):
            threading.Thread(target=self._carry, args=(near, far, place), daemon=True).start()
            while left and (piece := far.recv(min(65536, left))):
                near.sendall(piece)
                left -= len(piece)
                self.answered_bytes += len(piece)
            for one in (near, far):
                one.shutdown(socket.SHUT_RDWR)

    def _carry(self, near: socket.socket, far: socket.socket, place: int) -> None:
        with contextlib.suppress(OSError):
            while piece := near.recv(65536):
                self.asked[place] += piece
                far.sendall(piece)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def breaking_line(server: str, *breaks_after: int) -> Iterator[BreakingLine]:
    """See BreakingLine."""
    line = BreakingLine(server, list(breaks_after))
    thread = threading.Thread(target=line.serve, daemon=True)
    thread.start()
    try:
        yield line
    finally:
        line.close()
        thread.join(10)
