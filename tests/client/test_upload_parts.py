"""Large files go in parts: over every kind of connection, past refusals and silence, and never past a change."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.client import upload
from novacron.client.asynchronous import AsyncClient
from novacron.client.call import Request as Asked
from novacron.client.call import Response as Answer
from novacron.client.carry import Carrier
from novacron.client.flow import SendPart
from novacron.client.line import open_line
from novacron.client.upload import PIECE_BYTES, OnProgress, Upload
from novacron.errors import Conflict, DeadlineExceeded, ImageRefused, InvalidInput, NotFound, Reason, Unavailable
from novacron.model.image import FileRole
from tests.client.conftest import Connect, Face
from tests.client.control_room import IMAGE_ID, NOW, VM_ID, ControlRoom, image, refused, said
from tests.client.served import served

PART_BYTES = 2 * PIECE_BYTES
CONTENT = random.Random(7).randbytes(2 * PART_BYTES + PIECE_BYTES + 17)
UPLOADS = f"/images/{IMAGE_ID}/uploads/{VM_ID}"
WITHIN_S = 20.0


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "SMALL_BYTES", PIECE_BYTES)
    monkeypatch.setattr(upload, "PART_BYTES", PART_BYTES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


class Taker:
    """The room's end of an upload. Keeps the parts, and from which connection each came."""

    def __init__(self, room: ControlRoom, size_bytes: int = len(CONTENT)) -> None:
        self.came = bytearray()
        self.ports: list[int] = []
        self._size_bytes = size_bytes
        room.on("POST", "/images/debian-12/files/disk/upload", self._state)
        room.on("GET", UPLOADS, self._state)
        room.on("PATCH", UPLOADS, self.take)
        room.on("POST", f"{UPLOADS}/finish", self._finish)

    async def take(self, request: Request) -> Response:
        assert int(request.headers["upload-offset"]) == len(self.came)
        assert request.headers["authorization"] == "Bearer secret"
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        self.came += body
        self.ports.append(request.client.port if request.client else 0)
        return Response(None, 204)

    async def _state(self, _: Request) -> Response:
        return said({
            "id": VM_ID, "image_id": IMAGE_ID, "role": "disk", "size_bytes": self._size_bytes,
            "offset_bytes": len(self.came), "sha256": "", "created_at": NOW,
        })  # fmt: skip

    async def _finish(self, request: Request) -> Response:
        sha256 = (await request.json())["sha256"]
        if sha256 != hashlib.sha256(self.came).hexdigest():
            return refused(ImageRefused("the file did not arrive as it was sent"))
        return said(image(state="pending", files=[{"role": "disk", "digest": sha256, "size_bytes": len(self.came)}]))


def test_every_part_arrives_over_one_connection(room: ControlRoom, client: Face, file: Path) -> None:
    taker = Taker(room)
    steps: list[tuple[int, int]] = []
    client.upload("debian-12", FileRole.DISK, file, lambda sent, of: steps.append((sent, of)))
    assert taker.came == CONTENT
    assert len(taker.ports) == 3
    assert len(set(taker.ports)) == 1
    assert sorted(steps) == steps
    assert steps[-1] == (len(CONTENT), len(CONTENT))


def test_by_unix_socket(room: ControlRoom, connect: Connect, file: Path, tmp_path: Path) -> None:
    taker = Taker(room)
    with served(room.app, unix=tmp_path / "api.sock") as address:
        connect(address).upload("debian-12", FileRole.DISK, file)
    assert taker.came == CONTENT


def test_by_tls(room: ControlRoom, connect: Connect, file: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    taker = Taker(room)
    with served(room.app, ssl_certfile=str(cert), ssl_keyfile=str(key)) as address:
        connect(address, ca_file=cert).upload("debian-12", FileRole.DISK, file)
    assert taker.came == CONTENT


def test_a_part_at_another_offset_goes_on_from_there(room: ControlRoom, client: Face, file: Path) -> None:
    taker = Taker(room)
    moved = Conflict("the upload is elsewhere", [Reason("upload.offset", "it is at offset 0", subject="0")])
    room.on("PATCH", UPLOADS, refused(moved), taker.take)
    client.upload("debian-12", FileRole.DISK, file)
    assert taker.came == CONTENT


def test_a_refusal_before_the_end_is_heard(room: ControlRoom, client: Face, file: Path) -> None:
    Taker(room)
    room.reads_bodies = False
    room.on("PATCH", UPLOADS, refused(NotFound("no such upload")))
    with pytest.raises(NotFound, match="no such upload"):
        client.upload("debian-12", FileRole.DISK, file)


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, PART_BYTES + 5), lambda file: file.write_bytes(b"")])
def test_a_file_that_shrinks_meanwhile(
    room: ControlRoom, client: Face, file: Path, change: Callable[[Path], object]
) -> None:
    Taker(room)
    with pytest.raises(InvalidInput, match="changed while it was read"):
        client.upload("debian-12", FileRole.DISK, file, lambda _sent, _of: change(file))


def test_other_bytes_than_were_counted_are_refused(room: ControlRoom, client: Face, file: Path) -> None:
    """The sha256 is counted beside the sending: a change between the two must not pass."""
    taker = Taker(room)

    def change(sent: int, _of: int) -> None:
        if sent > PIECE_BYTES:
            return
        for counting in [thread for thread in threading.enumerate() if thread.name == "sha256"]:
            counting.join(WITHIN_S)
        with file.open("r+b") as opened:
            opened.seek(len(CONTENT) - 1)
            opened.write(bytes([CONTENT[-1] ^ 1]))

    with pytest.raises(ImageRefused, match="did not arrive"):
        client.upload("debian-12", FileRole.DISK, file, change)
    assert taker.came != CONTENT


# -- a connection by itself -----------------------------------------------------------------------------------


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does this with its first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WITHIN_S)

        def once() -> None:
            with listener.accept()[0] as peer:
                peer.settimeout(WITHIN_S)
                serve(peer)

        thread = threading.Thread(target=once)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(WITHIN_S)


def send(
    address: str, file: Path, ca_file: Path | None = None, on_progress: OnProgress = lambda _sent, _of: None
) -> Answer:
    """The answer to the file as one part."""
    line = open_line(address, "secret", ca_file, 0.5, None, 1)
    with Upload(file, FileRole.DISK, on_progress) as source, Carrier(line) as carrier:
        asked = Asked(method="PATCH", target=f"/api/v1{UPLOADS}", headers={})
        return carrier.send(SendPart(asked, source, 0, source.size_bytes))


def test_silence_is_told(file: Path) -> None:
    done = threading.Event()
    with listening(lambda _: done.wait(WITHIN_S) and None) as address:
        with pytest.raises(DeadlineExceeded):
            send(address, file)
        done.set()


def test_a_hang_up_is_told(file: Path) -> None:
    with listening(lambda peer: peer.recv(100) and None) as address, pytest.raises(Unavailable, match="ended before"):
        send(address, file)


def test_nobody_there_is_told(file: Path) -> None:
    with listening(lambda _: None) as address:
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    with pytest.raises(Unavailable, match="cannot reach"):
        send(address, file)


def test_what_was_said_before_a_hang_up_is_heard(file: Path) -> None:
    def refuse(peer: socket.socket) -> None:
        peer.recv(100)
        peer.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1 << 20):
            pass

    with listening(refuse) as address:
        answer = send(address, file)
    assert (answer.status, answer.body) == (413, b"no")


def test_no_byte_goes_to_a_server_nobody_trusts(room: ControlRoom, file: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with served(room.app, ssl_certfile=str(cert), ssl_keyfile=str(key)) as address:
        with pytest.raises(Unavailable, match="trust"):
            send(address, file)
        assert room.asked == []
        send(address, file, cert)
    assert room.bodies == [CONTENT]


@pytest.mark.anyio
async def test_who_is_cancelled_is_gone_at_once(room: ControlRoom, address: str, file: Path) -> None:
    """Although the server takes nothing and the file stands open in a thread."""
    Taker(room)
    begun, over = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    async def never(_: Request) -> Response:
        loop.call_soon_threadsafe(begun.set)
        while not over.is_set():
            await asyncio.sleep(0.01)
        return Response(None, 204)

    room.reads_bodies = False
    room.on("PATCH", UPLOADS, never)
    try:
        async with AsyncClient(address, "secret", answer_within_s=600) as client:
            sending = asyncio.create_task(client.upload("debian-12", FileRole.DISK, file))
            await begun.wait()
            sending.cancel()
            await asyncio.wait([sending], timeout=WITHIN_S)
            assert sending.cancelled()
    finally:
        over.set()
