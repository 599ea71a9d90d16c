"""`novacron image`: import, upload again, tag and protect, build."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from novacron.cli import debian
from novacron.errors import InvalidInput, Unavailable
from tests.cli.conftest import Run
from tests.client.control_room import IMAGE_ID, NOW, ControlRoom, image, refused, said

FETCHING = {
    "role": "disk", "phase": "fetching", "url": "https://x.example/d", "done_bytes": 1 << 20, "size_bytes": 4 << 20,
    "requested_at": NOW, "problem": None,
}  # fmt: skip


def asked(room: ControlRoom) -> list[tuple[str, str]]:
    return [(one.method, one.url.path.removeprefix("/api/v1")) for one in room.asked]


def test_an_image_is_imported_and_waited_for(room: ControlRoom, run: Run) -> None:
    pending = image(state="pending", files=[], tasks=[FETCHING])
    room.on("POST", "/images", said(image(state="pending", files=[]), 201))
    room.on("POST", f"/images/{IMAGE_ID}/files/disk/import", said(pending, 202))
    room.on("GET", f"/images/{IMAGE_ID}", said(pending))
    room.happen("image.updated", image(state="pending", revision=31))
    room.on("GET", f"/images/{IMAGE_ID}", said(pending), said(image(state="pending", revision=31)))
    room.on("GET", f"/images/{IMAGE_ID}", said(image(state="pending", revision=31)))
    room.on("POST", f"/images/{IMAGE_ID}/seal", said(image()))
    room.on("PATCH", f"/images/{IMAGE_ID}", said(image(tags=["debian:latest"])))
    result = run("image import debian-12 https://x.example/d --sha256 " + "ab" * 32 + " --tag debian:latest")
    assert result.stdout == "debian-12: ready, 300 MiB\n"
    assert json.loads(room.bodies[1]) == {"url": "https://x.example/d", "sha256": "ab" * 32}
    assert ("PATCH", f"/images/{IMAGE_ID}") in asked(room)


def test_an_import_that_fails_says_why_and_is_taken_back(room: ControlRoom, run: Run) -> None:
    problem = {"code": "url.address", "message": "url: leads to 10.0.0.1", "at": NOW, "remedy": "give another"}
    failed = image(state="pending", files=[], tasks=[FETCHING | {"phase": "failed", "problem": problem}])
    room.on("POST", "/images", said(image(state="pending", files=[]), 201))
    room.on("POST", f"/images/{IMAGE_ID}/files/disk/import", said(failed, 202))
    room.on("DELETE", f"/images/{IMAGE_ID}", Response(status_code=204))
    result = run("image import debian-12 https://x.example/d")
    assert result.exit_code != 0
    assert "leads to 10.0.0.1" in result.stderr
    assert asked(room)[-1] == ("DELETE", f"/images/{IMAGE_ID}")


def test_when_the_server_is_lost_the_image_stays_and_how_to_go_on_is_said(
    room: ControlRoom, run: Run, tmp_path: Path
) -> None:
    room.on("POST", "/images", said(image(state="pending", files=[]), 201))
    room.on("PUT", f"/images/{IMAGE_ID}/files/disk", refused(Unavailable("gone")))
    (tmp_path / "disk").write_bytes(b"x")
    result = run(f"image create debian-12 --disk {tmp_path}/disk")
    assert result.exit_code == 6
    assert "go on: image upload debian-12" in result.stderr
    assert "DELETE" not in {method for method, _ in asked(room)}


def test_it_is_gone_on_with(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    async def keep(request: Request) -> Response:
        digest = hashlib.sha256(await request.body()).hexdigest()
        return said(image(state="pending", files=[{"role": "disk", "digest": digest, "size_bytes": 1}]))

    room.on("GET", "/images/debian-12", said(image(state="pending", files=[])))
    room.on("PUT", f"/images/{IMAGE_ID}/files/disk", keep)
    room.on("POST", f"/images/{IMAGE_ID}/seal", said(image()))
    (tmp_path / "disk").write_bytes(b"x")
    assert run(f"image upload debian-12 --disk {tmp_path}/disk").stdout == "debian-12: ready, 300 MiB\n"


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("--tag debian:12", {"tags": ["debian:latest", "debian:12"]}),
        ("--untag debian:latest", {"tags": []}),
        ("--protect", {"protected": True}),
        ("--unprotect --name other", {"protected": False, "name": "other"}),
    ],
)
def test_update(room: ControlRoom, run: Run, words: str, sent: dict[str, Any]) -> None:
    room.on("GET", "/images/debian:latest", said(image(tags=["debian:latest"])))
    room.on("PATCH", f"/images/{IMAGE_ID}", said(image()))
    assert run(f"image update debian:latest {words}").stdout == "debian-12: updated\n"
    assert json.loads(room.bodies[-1]) == sent
    assert room.asked[-1].headers["if-match"] == '"30"'


def test_what_is_under_way_is_shown(room: ControlRoom, run: Run) -> None:
    problem = {"code": "x", "message": "nobody answers", "at": NOW, "remedy": ""}
    tasks = [FETCHING, FETCHING | {"role": "initrd", "phase": "failed", "problem": problem}]
    shown = image(
        state="pending", files=[], tasks=tasks, tags=["a:b"], hints={"vcpus": 2, "memory_mib": 512}, protected=True
    )
    room.on("GET", "/images/debian-12", said(shown))
    told = run("image show debian-12").stdout
    for words in ("fetching https://x.example/d", "failed: nobody answers", "2 CPUs, 512 MiB", "a:b"):
        assert words in told


def test_a_debian_is_built_and_sent(
    room: ControlRoom, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes: list[debian.Wish] = []

    @contextlib.contextmanager
    def built(wish: debian.Wish, say: debian.Say) -> Iterator[debian.Built]:
        wishes.append(wish)
        say("fetching")
        for name in ("disk", "kernel", "initrd"):
            (tmp_path / name).write_bytes(name.encode())
        yield debian.Built(disk=tmp_path / "disk", kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")

    async def keep(request: Request) -> Response:
        role = request.url.path.rsplit("/", 1)[1]
        digest = hashlib.sha256(await request.body()).hexdigest()
        return said(image(state="pending", files=[{"role": role, "digest": digest, "size_bytes": 1}]))

    monkeypatch.setattr(debian, "built", built)
    room.on("GET", "/images", said({"items": [], "next_cursor": None}))
    room.on("POST", "/images", said(image(state="pending", files=[]), 201))
    for role in ("disk", "kernel", "initrd"):
        room.on("PUT", f"/images/{IMAGE_ID}/files/{role}", keep)
    room.on("POST", f"/images/{IMAGE_ID}/seal", said(image(name="debian-trixie")))
    result = run("image build debian --suite trixie --package nginx --size 3GiB --mirror http://mirror.example/debian")
    assert result.stdout == "debian-trixie: ready\n"
    mirror = "http://mirror.example/debian"
    assert wishes == [debian.Wish(suite="trixie", mirror=mirror, packages=("nginx",), size_bytes=3 << 30)]
    created = json.loads(room.bodies[1])
    assert (created["name"], created["cmdline"]) == ("debian-trixie", debian.CMDLINE)


def test_what_cannot_be_built_is_said_before_anything_is_recorded(
    room: ControlRoom, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(wish: debian.Wish, say: debian.Say) -> Any:
        raise InvalidInput.field("mirror", "apt on this machine knows no mirror of warty", "give --mirror URL")

    monkeypatch.setattr(debian, "built", built)
    room.on("GET", "/images", said({"items": [], "next_cursor": None}))
    result = run("image build debian --suite warty")
    assert result.exit_code == 5
    assert "knows no mirror of warty" in result.stderr
    assert asked(room) == [("GET", "/images")]
