"""Uploads: streamed, counted, compared; what goes wrong on either side is said."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.client.upload import PIECE_BYTES
from novacron.errors import ImageRefused, InvalidInput, NovaCronError, TooLarge
from novacron.model.image import FileRole
from tests.client.conftest import Face
from tests.client.control_room import ControlRoom, image, refused, said

Stored = Callable[[Request], object]


def keeps(room: ControlRoom, spoil: bytes = b"") -> None:
    """Have the room keep what is sent, and say its digest."""

    async def keep(request: Request) -> Response:
        digest = hashlib.sha256(await request.body() + spoil).hexdigest()
        return said(image(state="pending", files=[{"role": "disk", "digest": digest, "size_bytes": 1}]))

    room.on("PUT", "/images/debian-12/files/disk", keep)


def test_a_file_arrives_whole(room: ControlRoom, client: Face, tmp_path: Path) -> None:
    keeps(room)
    content = os.urandom(PIECE_BYTES * 2 + 17)
    file = tmp_path / "disk.qcow2"
    file.write_bytes(content)
    steps: list[tuple[int, int]] = []

    answered = client.upload("debian-12", FileRole.DISK, file, lambda sent, of: steps.append((sent, of)))

    assert room.bodies == [content]
    assert room.asked[0].headers["content-length"] == str(len(content))
    assert "transfer-encoding" not in room.asked[0].headers
    assert answered.files[0].digest == hashlib.sha256(content).hexdigest()
    assert steps == [(PIECE_BYTES, len(content)), (2 * PIECE_BYTES, len(content)), (len(content), len(content))]


def test_an_empty_file_is_sent_as_one(room: ControlRoom, client: Face, tmp_path: Path) -> None:
    keeps(room)
    (tmp_path / "empty").touch()
    client.upload("debian-12", FileRole.DISK, tmp_path / "empty")
    assert room.bodies == [b""]


def test_what_arrived_otherwise_is_noticed(room: ControlRoom, client: Face, tmp_path: Path) -> None:
    keeps(room, spoil=b"!")
    (tmp_path / "disk").write_bytes(b"disk")
    with pytest.raises(ImageRefused, match="did not arrive whole"):
        client.upload("debian-12", FileRole.DISK, tmp_path / "disk")


def test_a_file_that_grows_meanwhile_is_not_sent_as_if_it_had_not(
    room: ControlRoom, client: Face, tmp_path: Path
) -> None:
    keeps(room)
    file = tmp_path / "disk"
    file.write_bytes(b"x" * (PIECE_BYTES + 1))

    def grow(sent: int, _of: int) -> None:
        if sent == PIECE_BYTES:
            with file.open("ab") as more:
                more.write(b"y")

    with pytest.raises(InvalidInput, match="changed while it was read"):
        client.upload("debian-12", FileRole.DISK, file, grow)


def test_a_file_that_shrinks_meanwhile(room: ControlRoom, client: Face, tmp_path: Path) -> None:
    keeps(room)
    file = tmp_path / "disk"
    file.write_bytes(b"x" * (PIECE_BYTES * 2))
    with pytest.raises(InvalidInput, match="changed while it was read"):
        client.upload("debian-12", FileRole.DISK, file, lambda _sent, _of: os.truncate(file, PIECE_BYTES))


@pytest.mark.parametrize("name", ["missing", ".", "pipe"])
def test_only_regular_files(client: Face, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "pipe":
        os.mkfifo(file)
    with pytest.raises(InvalidInput, match="disk: "):
        client.upload("debian-12", FileRole.DISK, file)


@pytest.mark.parametrize("error", [TooLarge("over 1 MiB"), ImageRefused("not a qcow2")])
def test_a_refusal_before_the_end_is_heard(
    room: ControlRoom, client: Face, tmp_path: Path, error: NovaCronError
) -> None:
    async def refuse(request: Request) -> Response:
        return refused(error)

    room.on("PUT", "/images/debian-12/files/disk", refuse)
    room.reads_bodies = False
    (tmp_path / "disk").write_bytes(b"x" * PIECE_BYTES * 16)
    with pytest.raises(type(error), match=error.message):
        client.upload("debian-12", FileRole.DISK, tmp_path / "disk")
