"""`novacron image download` against the real images' API: into files, into pipes, never onto terminals."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from novacron.cli.download import default_name
from novacron.cli.image import ROLES
from novacron.cli.main import novacron
from novacron.client.images import Image
from novacron.errors import InvalidInput
from novacron.model.image import FileRole
from tests.client.control_room import NOW
from tests.client.image_server import ImageServer, breaking_line, image_server

MIB = 1 << 20
DISK = b"\xeb\x63" + random.Random(7).randbytes(2 * MIB - 2)
ROTTEN = b"\xeb\x63" + random.Random(8).randbytes(MIB - 2)
DIGEST = hashlib.sha256(DISK).hexdigest()

Fetch = Callable[..., Result]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageServer]:
    """Keeps two images: `golden`, and `rotten`, whose disk is no longer what it was."""
    with image_server(tmp_path_factory.mktemp("house") / "data") as made:
        made.keep("golden", DISK)
        made.keep("rotten", ROTTEN)
        made.spoil(ROTTEN)
        yield made


@pytest.fixture
def surroundings(server: ImageServer, environment: dict[str, str]) -> dict[str, str]:
    return environment | {"NOVACRON_SERVER": server.address, "NOVACRON_TOKEN": server.token}


@pytest.fixture
def fetch(surroundings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Runs `image download` with these words, in an empty folder `here`."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(line: str, **changes: str) -> Result:
        words = ["image", "download", *line.split()]
        return CliRunner(env=surroundings | changes).invoke(novacron, words, catch_exceptions=False)

    return run


def left() -> list[str]:
    return sorted(one.name for one in Path().iterdir())


def test_a_disk_is_kept_under_the_images_name(fetch: Fetch) -> None:
    done = fetch("golden")
    assert done.stdout == f"golden: disk, 2 MiB, in golden.img; sha256 {DIGEST}\n"
    assert "golden: fetching disk 2 MiB of 2 MiB" in done.stderr
    assert Path("golden.img").read_bytes() == DISK
    assert left() == ["golden.img"]


def test_what_is_there_stays_unless_forced(fetch: Fetch) -> None:
    Path("mine").write_bytes(b"mine")
    refused = fetch("golden --output mine")
    assert refused.exit_code == 4
    assert "mine is there already" in refused.stderr
    assert "--force" in refused.stderr
    assert Path("mine").read_bytes() == b"mine"
    assert fetch("golden --output mine --force").exit_code == 0
    assert Path("mine").read_bytes() == DISK
    assert left() == ["mine"]


def test_a_line_that_breaks_is_gone_on_with(fetch: Fetch, server: ImageServer) -> None:
    with breaking_line(server.address, MIB) as line:
        done = fetch("golden --output it", NOVACRON_SERVER=line.address)
    assert done.exit_code == 0, done.stderr
    assert "going on in" in done.stderr
    assert Path("it").read_bytes() == DISK
    assert line.answered_bytes < len(DISK) + MIB


def test_a_wrong_digest_is_refused_and_nothing_is_left(fetch: Fetch) -> None:
    refused = fetch("rotten")
    assert refused.exit_code == 5
    assert "what came is not the disk of image rotten" in refused.stderr
    assert left() == []
    assert fetch("rotten --output -").exit_code == 5


def test_what_is_not_there(fetch: Fetch) -> None:
    missing = fetch("golden --role kernel")
    assert (missing.exit_code, left()) == (3, [])
    assert "image golden has no kernel file" in missing.stderr
    assert fetch("nothing").exit_code == 3


def test_to_a_pipe_go_the_bytes_and_nothing_else(fetch: Fetch) -> None:
    done = fetch("golden --output -")
    assert done.exit_code == 0
    assert done.stdout_bytes == DISK
    assert left() == []


def test_a_reader_that_has_had_enough_ends_it_quietly(surroundings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "novacron.cli.main", "image", "download", "golden", "--output", "-"]
    environment = surroundings | {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(2) == DISK[:2]
        child.stdout.close()
        assert b"Traceback" not in child.stderr.read()
    assert child.returncode == 1


def test_nothing_is_written_to_a_terminal(surroundings: dict[str, str]) -> None:
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "novacron.cli.main", "image", "download", "golden", "--output", "-"],
            env=surroundings | {"PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):
            os.read(master, 1)
    finally:
        os.close(slave)
        os.close(master)
    assert done.returncode == 2
    assert b"stdout is a terminal" in done.stderr


def test_roles_are_those_there_are() -> None:
    assert list(ROLES) == list(FileRole)


def test_a_server_cannot_say_where_a_file_goes() -> None:
    told = {
        "id": "x", "description": "", "labels": {}, "state": "ready", "cmdline": "", "files": [], "created_at": NOW,
        "updated_at": NOW, "revision": 1,
    }  # fmt: skip
    assert default_name(Image(name="tiny", **told), FileRole.KERNEL) == "tiny.kernel"  # type: ignore[arg-type]
    for name in ("../../etc/cron.d/x", "/etc/x", ".bashrc", "", "a/b"):
        with pytest.raises(InvalidInput):
            default_name(Image(name=name, **told), FileRole.DISK)  # type: ignore[arg-type]
