"""Downloads from the real server: whole or not at all, through lines that break, over nothing that is there."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.client import download
from novacron.client.download import Landing
from novacron.client.line import PIECE_BYTES
from novacron.errors import Conflict, ImageRefused, InvalidInput, NotFound, NovaCronError, Unavailable
from novacron.model.image import FileRole
from tests.client.conftest import Connect, Face
from tests.client.control_room import IMAGE_ID, ControlRoom, image, refused, said
from tests.client.image_server import ImageServer, breaking_line, image_server

MIB = 1 << 20
DISK = b"\xeb\x63" + random.Random(7).randbytes(3 * MIB + 510)
ROTTEN = b"\xeb\x63" + random.Random(8).randbytes(MIB - 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    """Keeps two images: `golden`, and `rotten`, whose disk is no longer what it was."""
    with image_server(tmp_path_factory.mktemp("house") / "data") as made:
        made.keep("golden", DISK)
        made.keep("rotten", ROTTEN)
        made.spoil(ROTTEN)
        yield made


@pytest.fixture
def nova(server: ImageServer, connect: Connect) -> Face:
    return connect(server.address, server.token)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where it is to go: a folder of its own, in which nothing else may be left."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "disk.img"


def left(target: Path) -> list[str]:
    return sorted(one.name for one in target.parent.iterdir())


def test_a_file_comes_whole_in_pieces(nova: Face, target: Path) -> None:
    steps: list[int] = []
    before = os.umask(0o027)
    try:
        file = nova.download("golden", FileRole.DISK, target, lambda got, of: steps.append(got))
    finally:
        os.umask(before)
    assert target.read_bytes() == DISK
    assert (file.digest, file.size_bytes) == (hashlib.sha256(DISK).hexdigest(), len(DISK))
    assert target.stat().st_mode & 0o777 == 0o640
    assert left(target) == ["disk.img"]
    assert steps == sorted(steps)
    assert steps[-1] == len(DISK)
    pieces: list[bytes] = []
    nova.download_to("golden", FileRole.DISK, pieces.append)
    assert b"".join(pieces) == DISK
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_through_lines_that_break_only_what_is_missing_is_asked_for(
    server: ImageServer, connect: Connect, target: Path
) -> None:
    notices: list[str] = []
    with breaking_line(server.address, MIB, MIB // 2, 1, MIB) as line:
        connect(line.address, server.token, on_notice=notices.append).download("golden", FileRole.DISK, target)
    assert target.read_bytes() == DISK
    assert left(target) == ["disk.img"]
    assert len(notices) == 4
    assert all("going on in" in notice for notice in notices)
    starts = [int(start) for request in line.asked for start in re.findall(rb"Range: bytes=(\d+)-", request)]
    assert len(starts) == 4
    assert starts == sorted(starts)
    assert MIB // 2 < starts[0] <= MIB
    assert line.answered_bytes < len(DISK) + 4 * PIECE_BYTES


def test_a_server_that_stays_away_leaves_nothing(
    server: ImageServer, connect: Connect, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LEAST_TRIES", 5)
    with breaking_line(server.address, 2 * MIB, *[0] * 50) as line, pytest.raises(Unavailable):
        connect(line.address, server.token).download("golden", FileRole.DISK, target)
    assert left(target) == []
    with breaking_line(server.address, 2 * MIB) as line, pytest.raises(Unavailable):
        connect(line.address, server.token, tries=1).download("golden", FileRole.DISK, target)
    assert left(target) == []


def test_bytes_that_are_not_the_images_are_refused_and_leave_nothing(nova: Face, target: Path) -> None:
    with pytest.raises(ImageRefused, match=f"should be {hashlib.sha256(ROTTEN).hexdigest()}"):
        nova.download("rotten", FileRole.DISK, target)
    assert left(target) == []
    target.write_bytes(b"mine")
    with pytest.raises(ImageRefused):
        nova.download("rotten", FileRole.DISK, target, overwrite=True)
    assert target.read_bytes() == b"mine"
    assert left(target) == ["disk.img"]


def test_what_is_there_is_overwritten_only_when_asked_to(nova: Face, target: Path) -> None:
    target.write_bytes(b"mine")
    with pytest.raises(Conflict, match="is there already"):
        nova.download("golden", FileRole.DISK, target)
    assert target.read_bytes() == b"mine"
    nova.download("golden", FileRole.DISK, target, overwrite=True)
    assert target.read_bytes() == DISK
    assert left(target) == ["disk.img"]


@pytest.mark.parametrize("without_links", [False, True])
def test_what_came_meanwhile_stays(
    nova: Face, target: Path, without_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "this file system has no links")

    if without_links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(Conflict, match="is there already"):
        nova.download("golden", FileRole.DISK, target, lambda _got, _of: target.write_bytes(b"mine"))
    assert target.read_bytes() == b"mine"
    assert left(target) == ["disk.img"]
    target.unlink()
    nova.download("golden", FileRole.DISK, target)
    assert target.read_bytes() == DISK


@pytest.mark.parametrize("kind", ["directory", "link", "pipe", "nowhere"])
def test_only_regular_files_are_written(nova: Face, target: Path, kind: str) -> None:
    if kind == "directory":
        target.mkdir()
    elif kind == "link":
        target.symlink_to("/dev/null")
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target = target / "deeper"
    with pytest.raises(InvalidInput, match="output: "):
        nova.download("golden", FileRole.DISK, target, overwrite=True)
    assert kind == "nowhere" or left(target) == ["disk.img"]


def test_a_disk_that_is_full_is_said_and_nothing_is_left(target: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Landing(target, overwrite=False) as landing:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(InvalidInput, match=f"cannot write {target}"):
                landing.write(bytes(MIB))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(target) == []


def test_what_is_not_there(nova: Face, target: Path) -> None:
    with pytest.raises(NotFound, match="image golden has no kernel file"):
        nova.download("golden", FileRole.KERNEL, target)
    with pytest.raises(NotFound):
        nova.download("nothing", FileRole.DISK, target)
    assert left(target) == []


# -- what a real server does not do --------------------------------------------------------------------------

CONTENT = random.Random(9).randbytes(2 * PIECE_BYTES)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def scripted(room: ControlRoom, *answers: Response) -> None:
    """A room with an image whose disk is CONTENT, and these answers when it is fetched."""
    file = {"role": "disk", "digest": DIGEST, "size_bytes": len(CONTENT), "format": "raw"}
    room.on("GET", "/images/debian-12", said(image(files=[file])))
    room.on("GET", f"/images/{IMAGE_ID}/files/disk", *answers)


def part(content: bytes, status: int = 200, digest: str = DIGEST, **headers: str) -> Response:
    return Response(content, status, {"etag": f'"{digest}"', **headers})


def test_a_server_that_knows_no_parts_sends_the_beginning_again(room: ControlRoom, client: Face, target: Path) -> None:
    scripted(room, part(CONTENT[:PIECE_BYTES]), part(CONTENT))
    client.download("debian-12", FileRole.DISK, target)
    assert target.read_bytes() == CONTENT
    assert room.asked[-1].headers["range"] == f"bytes={PIECE_BYTES}-"


def test_an_empty_file_is_not_asked_for(room: ControlRoom, client: Face, target: Path) -> None:
    empty = {"role": "disk", "digest": hashlib.sha256().hexdigest(), "size_bytes": 0}
    room.on("GET", "/images/debian-12", said(image(files=[empty])))
    client.download("debian-12", FileRole.DISK, target)
    assert target.read_bytes() == b""
    assert len(room.asked) == 1


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        ([part(CONTENT[:PIECE_BYTES]), part(CONTENT, digest="ff" * 32)], Conflict, "not the file it was"),
        ([part(CONTENT + b"!")], ImageRefused, "more than its"),
        ([part(CONTENT[:PIECE_BYTES] + bytes(PIECE_BYTES))], ImageRefused, "do not|not the disk"),
        ([refused(NotFound("another pool holds it"))], NotFound, "another pool"),
    ],
)
def test_what_asking_again_does_not_mend_is_asked_once(
    room: ControlRoom, client: Face, target: Path, answers: list[Response], error: type[NovaCronError], words: str
) -> None:
    scripted(room, *answers)
    with pytest.raises(error, match=words):
        client.download("debian-12", FileRole.DISK, target)
    assert left(target) == []
    assert len(room.asked) == 1 + len(answers)


def test_what_asking_again_may_mend_is_asked_again(
    room: ControlRoom, client: Face, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def asked(request: Request) -> Response:
        return part(CONTENT[:10], 206, **{"content-range": "bytes 3-12/99"})

    scripted(room, refused(Unavailable("starting")), part(CONTENT))
    client.download("debian-12", FileRole.DISK, target)
    assert target.read_bytes() == CONTENT
    monkeypatch.setattr(download, "LEAST_TRIES", 2)
    room.on("GET", f"/images/{IMAGE_ID}/files/disk", asked)
    with pytest.raises(Unavailable, match="from byte 3 on instead of 0"):
        client.download("debian-12", FileRole.DISK, target, overwrite=True)
    assert target.read_bytes() == CONTENT
