"""Bodies that are claimed land whole where they are wanted, and what follows on the connection is the next request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from novacron.control.body import EXTENSION, Body, Connection, claim
from novacron.errors import Malformed
from tests.client.served import served

ROOM_BYTES = 64 << 10
SIZE = (3 << 20) + 77
CONTENT = random.Random(8).randbytes(SIZE)
WITHIN_S = 20.0


class Land:
    """A target that has room for so many bytes at a time."""

    def __init__(self) -> None:
        self.came = bytearray()
        self._buffer = memoryview(bytearray(ROOM_BYTES))
        self._filled = 0

    def room(self) -> memoryview:
        return self._buffer[self._filled :]

    def landed(self, count: int) -> None:
        self._filled += count

    def hand_on(self) -> None:
        self.came += self._buffer[: self._filled]
        self._filled = 0


class App:
    """Answers a request with how many bytes its body had.

    `/refuse` says no first, `/hold` waits until it is let go, `/lose` until the line broke, `/read` reads before it
    claims, `/cancel` gives up when some bytes have landed.
    """

    def __init__(self) -> None:
        self.lands: list[bytes] = []
        self.claimed: list[bool] = []
        self.broken = threading.Event()
        self.holding = threading.Event()
        self.let_go = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path == "/hold":
            self.holding.set()
            while not self.let_go.is_set():
                await asyncio.sleep(0.001)
        elif request.url.path == "/lose":
            self.holding.set()
            while not scope["extensions"][EXTENSION].__self__.cycle.disconnected:
                await asyncio.sleep(0.001)
        early = (await receive())["body"] if request.url.path == "/read" else b""
        body = claim(request)
        self.claimed.append(body is not None)
        try:
            status = await self._take(request, body, early)
        finally:
            if body is not None:
                body.discard()
        await Response(str(len(self.lands[-1])) if self.lands else "0", status)(scope, receive, send)

    async def _take(self, request: Request, body: Body | None, early: bytes) -> int:
        if request.url.path == "/refuse":
            return 409
        land = Land()
        if request.url.path == "/cancel" and body is not None:
            filling = asyncio.ensure_future(body.fill(land))
            while len(land.room()) == ROOM_BYTES:
                await asyncio.sleep(0.001)
            filling.cancel()
            await asyncio.wait([filling])
            self._keep(land)
            return 200
        try:
            if body is None:
                land.came += early + await request.body()
            else:
                while await body.fill(land):
                    land.hand_on()
        except (Malformed, ClientDisconnect):
            self._keep(land)
            self.broken.set()
        else:
            self._keep(land)
        return 200

    def _keep(self, land: Land) -> None:
        land.hand_on()
        self.lands.append(bytes(land.came))


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture(params=["uvloop", "asyncio"])
def address(request: pytest.FixtureRequest, app: App) -> Iterator[str]:
    with served(app, http=Connection, loop=request.param) as where:
        yield where


class Peer:
    """A client that sends what it likes."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), WITHIN_S)
        self._heard = b""

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        while (at := self._heard.find(b"\r\n\r\n")) < 0:
            self._hear()
        head, rest = self._heard[:at].lower(), at + 4
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self._heard) < rest + length:
            self._hear()
        body, self._heard = self._heard[rest : rest + length], self._heard[rest + length :]
        return int(head.split()[1]), body

    def _hear(self) -> None:
        more = self.socket.recv(65536)
        assert more, "the server hung up"
        self._heard += more


@pytest.fixture
def peer(address: str) -> Iterator[Peer]:
    made = Peer(address)
    with contextlib.closing(made.socket):
        yield made


def head(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"PATCH {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def request(path: str, content: bytes = CONTENT) -> bytes:
    return head(path, f"Content-Length: {len(content)}") + content


def test_one_after_the_other_on_one_connection(app: App, peer: Peer) -> None:
    for content in (CONTENT, b"", b"x", CONTENT[:ROOM_BYTES], CONTENT[: ROOM_BYTES + 1], CONTENT):
        peer.socket.sendall(request("/", content))
        assert peer.answer() == (200, str(len(content)).encode())
        assert app.lands[-1] == content
    assert app.claimed[0]
    assert app.claimed[-1]


@pytest.mark.parametrize("step", [1, 100, ROOM_BYTES - 1, ROOM_BYTES, 300000])
def test_however_it_is_cut(app: App, peer: Peer, step: int) -> None:
    content = CONTENT[: min(SIZE, 4000 * step)]
    whole = request("/", content)
    for at in range(0, len(whole), step):
        peer.socket.sendall(whole[at : at + step])
    assert peer.answer() == (200, str(len(content)).encode())
    assert app.lands == [content]


def test_what_comes_behind_a_body_is_the_next_request(app: App, peer: Peer) -> None:
    """However it looks inside: not a byte of the body is taken for a request, nor the other way round."""
    inner = request("/", b"not a request") * 20000
    sending = threading.Thread(target=peer.socket.sendall, args=(request("/", inner) + request("/", b"next") * 3,))
    sending.start()
    assert [peer.answer()[1] for _ in range(4)] == [str(len(inner)).encode(), b"4", b"4", b"4"]
    sending.join(WITHIN_S)
    assert app.lands == [inner, b"next", b"next", b"next"]


def test_a_refusal_is_heard_by_who_sends_all_first(app: App, peer: Peer) -> None:
    peer.socket.sendall(request("/refuse"))
    assert peer.answer()[0] == 409
    peer.socket.sendall(request("/"))
    assert peer.answer() == (200, str(SIZE).encode())


def test_what_came_before_the_line_broke_is_kept(app: App, peer: Peer) -> None:
    peer.socket.sendall(request("/")[: 1 << 20])
    peer.socket.close()
    assert app.broken.wait(WITHIN_S)
    head_bytes = len(request("/")) - SIZE
    assert app.lands == [CONTENT[: (1 << 20) - head_bytes]]


def test_a_line_that_broke_before_it_was_claimed(app: App, peer: Peer) -> None:
    peer.socket.sendall(request("/lose")[:1000])
    assert app.holding.wait(WITHIN_S)
    peer.socket.close()
    assert app.broken.wait(WITHIN_S)
    assert app.claimed == [False]


def test_a_body_that_somebody_reads_is_not_claimed(app: App, peer: Peer) -> None:
    whole = request("/read")
    peer.socket.sendall(whole[:1000])
    peer.socket.sendall(whole[1000:])
    assert peer.answer() == (200, str(SIZE).encode())
    assert (app.claimed, app.lands) == ([False], [CONTENT])


def test_nobody_claims_the_next_request_s_body(app: App, peer: Peer) -> None:
    """The head of the second is there before the first is answered."""
    sending = threading.Thread(target=peer.socket.sendall, args=(request("/", b"first") + request("/"),))
    sending.start()
    assert [peer.answer()[1] for _ in range(2)] == [b"5", str(SIZE).encode()]
    sending.join(WITHIN_S)
    assert app.lands == [b"first", CONTENT]


def test_what_was_parsed_already_is_not_lost(app: App, peer: Peer) -> None:
    sending = threading.Thread(target=peer.socket.sendall, args=(request("/hold"),))
    sending.start()
    assert app.holding.wait(WITHIN_S)
    app.let_go.set()
    assert peer.answer() == (200, str(SIZE).encode())
    sending.join(WITHIN_S)
    assert app.lands == [CONTENT]


def test_without_a_length_nothing_is_claimed(app: App, peer: Peer) -> None:
    piece = CONTENT[:1000]
    peer.socket.sendall(head("/", "Transfer-Encoding: chunked"))
    for _ in range(100):
        peer.socket.sendall(b"3e8\r\n" + piece + b"\r\n")
    peer.socket.sendall(b"0\r\n\r\n")
    assert peer.answer() == (200, b"100000")
    assert (app.claimed, app.lands) == ([False], [piece * 100])


def test_who_waits_to_be_told_to_go_on_is_told(app: App, peer: Peer) -> None:
    peer.socket.sendall(head("/", f"Content-Length: {SIZE}", "Expect: 100-continue"))
    assert peer.socket.recv(100).startswith(b"HTTP/1.1 100 ")
    peer.socket.sendall(CONTENT)
    assert peer.answer() == (200, str(SIZE).encode())
    assert app.claimed == [False]


def test_who_gives_up_has_what_landed(app: App, peer: Peer) -> None:
    first = request("/cancel")
    peer.socket.sendall(first[: len(first) - SIZE + 1000])
    assert peer.answer() == (200, b"1000")
    peer.socket.sendall(first[len(first) - SIZE + 1000 :] + request("/"))
    assert peer.answer() == (200, str(SIZE).encode())
    assert app.lands == [CONTENT[:1000], CONTENT]


def test_by_unix_socket(app: App, tmp_path: Path) -> None:
    with served(app, unix=tmp_path / "api.sock", http=Connection), socket.socket(socket.AF_UNIX) as line:
        line.connect(str(tmp_path / "api.sock"))
        line.settimeout(WITHIN_S)
        line.sendall(request("/"))
        assert line.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert (app.claimed, app.lands) == ([True], [CONTENT])
