"""Each test of the library runs on both clients: the blocking one, and the asyncio one behind the same face."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.types import Receive, Scope, Send

from novacron.client import flow
from novacron.client.asynchronous import AsyncClient
from novacron.client.sync import Client
from novacron.model.image import FileRole
from tests.client.control_room import ControlRoom
from tests.client.served import served


class Face(Protocol):
    """What both clients can do, blocking."""

    def do(self, call: Any, **more: Any) -> Any: ...
    def listed(self, call: Any) -> list[Any]: ...
    def first_events(self, count: int, **wanted: Any) -> list[Any]: ...
    def wait_vm(self, *args: Any, **more: Any) -> Any: ...
    def wait_vm_gone(self, *args: Any, **more: Any) -> Any: ...
    def wait_migration(self, *args: Any, **more: Any) -> Any: ...
    def upload(self, image: str, role: FileRole, path: Path, *more: Any) -> Any: ...
    def download(self, image: str, role: FileRole, target: Path, *more: Any, **most: Any) -> Any: ...
    def download_to(self, image: str, role: FileRole, write: Any, *more: Any) -> Any: ...


class Blocking(Client):
    def listed(self, call: Any) -> list[Any]:
        return list(self.each(call))

    def first_events(self, count: int, **wanted: Any) -> list[Any]:
        stream = self.events(**wanted)
        return [next(stream) for _ in range(count)]


class Awaiting:
    """AsyncClient on a loop of its own."""

    def __init__(self, portal: BlockingPortal, client: AsyncClient) -> None:
        self._portal = portal
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **more: self._portal.call(lambda: method(*args, **more))

    def listed(self, call: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in self._client.each(call)]

        return self._portal.call(collect)

    def first_events(self, count: int, **wanted: Any) -> list[Any]:
        async def collect() -> list[Any]:
            stream = self._client.events(**wanted)
            found = [await anext(stream) for _ in range(count)]
            await stream.aclose()  # type: ignore[attr-defined]
            return found

        return self._portal.call(collect)


Connect = Callable[..., Face]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes a client of either kind; closed afterwards."""
    with ExitStack() as stack:

        def make(server: str, token: str = "secret", **more: Any) -> Face:
            if request.param == "blocking":
                return stack.enter_context(Blocking(server, token, **more))
            portal = stack.enter_context(start_blocking_portal())
            client = portal.call(lambda: _made(server, token, more))
            stack.callback(portal.call, client.close)
            return Awaiting(portal, client)

        yield make


async def _made(server: str, token: str, more: dict[str, Any]) -> AsyncClient:
    return AsyncClient(server, token, **more)


class _Switchboard:
    """One listening server for all tests; each test's room is put through."""

    def __init__(self) -> None:
        self.room = ControlRoom()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.room.app(scope, receive, send)


@pytest.fixture(scope="session")
def switchboard() -> Iterator[tuple[_Switchboard, str]]:
    board = _Switchboard()
    with served(board) as where:
        yield board, where


@pytest.fixture
def room(switchboard: tuple[_Switchboard, str]) -> ControlRoom:
    switchboard[0].room = ControlRoom()
    return switchboard[0].room


@pytest.fixture
def address(room: ControlRoom, switchboard: tuple[_Switchboard, str]) -> str:
    return switchboard[1]


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rest a tenth as long between tries."""
    monkeypatch.setattr(flow, "FIRST_REST_S", 0.01)


@pytest.fixture
def client(connect: Connect, address: str) -> Face:
    return connect(address)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, made by openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key
