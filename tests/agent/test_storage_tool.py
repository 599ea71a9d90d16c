"""Storage tools run under limits, as somebody else, on what they were given; and only in one place."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, IscsiAt
from novacron.agent.storage import keys
from novacron.agent.storage.tool import MAX_ANSWER_BYTES, Limits, Tools, at, trouble
from novacron.errors import DeadlineExceeded, DriverError, NoRoom, NovaCronError, StateConflict, Unavailable

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2] / "src" / "novacron"
UID = 0x4E43_0000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory every user may enter."""
    with tempfile.TemporaryDirectory(prefix="novacron-tool-") as place:
        Path(place).chmod(0o755)
        yield Path(place)


def program(directory: Path, *lines: str) -> str:
    path = directory / "tool"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_nothing_but_one_file_runs_qemu_img() -> None:
    """A qemu-img without limits, or with a format it may guess, is how hosts are read by images."""
    named = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py") if re.search(r'"qemu-img"', path.read_text())}
    assert {name for name in named if name.startswith("agent/")} == {
        "agent/storage/directory.py",  # whose name for it is handed to qemu_img.py
        "agent/storage/kinds.py",  # asks whether it is installed
        "agent/storage/qemu_img.py",
    }


def test_only_the_tool_runner_starts_processes_for_storage() -> None:
    starting = [path.name for path in (ROOT / "agent/storage").glob("*.py") if "subprocess" in path.read_text()]
    assert starting == ["tool.py"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("qemu-img: error while writing: No space left on device", NoRoom),
        ("qemu-img: Disk quota exceeded", NoRoom),
        ('qemu-img: Could not open x: Failed to get "write" lock\nIs another process using it?', StateConflict),
        ('qemu-img: Could not open x: Failed to get shared "write" lock', StateConflict),
        (
            "iSCSI: Failed to connect to LUN : Failed to log in to target. Status: Authentication failure(513)",
            Unavailable,
        ),
        ("Failed to connect to '/x.sock': Connection refused", Unavailable),
        ("rbd: couldn't connect to the cluster!", Unavailable),
        ("prlimit: failed to execute rbd: No such file or directory", DriverError),
        ("Segmentation fault", DriverError),
    ],
)
def test_what_a_tool_says_becomes_an_error_a_person_can_act_on(said: str, kind: type[NovaCronError]) -> None:
    found = trouble("/usr/bin/qemu-img", 1, said)
    assert type(found) is kind
    assert said.splitlines()[0] in str(found) + "".join(one.message for one in getattr(found, "reasons", ()))


async def test_a_tool_that_is_not_installed() -> None:
    with pytest.raises(Unavailable, match="no-such-tool is not installed"):
        await Tools().run("no-such-tool")


async def test_answers_are_bounded(open_dir: Path) -> None:
    with pytest.raises(DriverError, match="answered with more"):
        await Tools().run(program(open_dir, f"head -c {MAX_ANSWER_BYTES + 1} /dev/zero"))
    assert await Tools().run(program(open_dir, "echo well; yes hurt | head -c 10000000 >&2")) == b"well\n"


async def test_one_that_takes_too_long_is_ended(open_dir: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        await Tools().run(program(open_dir, "exec sleep 1000"), limits=Limits(deadline_s=0.05))


async def test_limits_and_environment(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary")
    said = await Tools().run(
        program(open_dir, "cat /proc/self/limits; env; pwd"), limits=Limits(memory_bytes=1 << 29, cpu_s=7)
    )
    assert re.search(rb"Max address space +536870912 +536870912", said)
    assert re.search(rb"Max cpu time +7 +7", said)
    assert b"canary" not in said
    assert said.endswith(b"/\n")


@as_root
async def test_it_runs_as_the_tools_user_or_as_the_volumes_owner(open_dir: Path) -> None:
    shown = program(open_dir, "id -u; id -g; id -G; grep CapEff /proc/self/status")
    for uid, expected in ((None, UID), (UID + 7, UID + 7)):
        said = (await Tools(UID).run(shown, uid=uid)).decode().split()
        assert said == [str(expected)] * 3 + ["CapEff:", "0000000000000000"]
    assert (await Tools().run(shown, uid=UID)).startswith(b"0\n")  # an agent without such a user runs them itself


async def test_it_inherits_what_it_is_given_and_nothing_else(open_dir: Path) -> None:
    (open_dir / "given").write_text("given")
    given, other = (os.open(open_dir / "given", os.O_RDONLY) for _ in range(2))
    os.set_inheritable(other, True)
    try:
        said = await Tools().run(program(open_dir, f"cat {at(given)}; ls /proc/$$/fd"), descriptors=(given,))
        assert said.startswith(b"given")
        assert str(other).encode() not in said.split()
    finally:
        os.close(given)
        os.close(other)


async def test_given_up_its_process_ends(open_dir: Path) -> None:
    fifo = open_dir / "started"
    os.mkfifo(fifo)
    work = asyncio.create_task(Tools().run(program(open_dir, f"echo $$ > {fifo}", "exec sleep 1000")))
    pid = int(await asyncio.to_thread(fifo.read_text))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- secrets ----------------------------------------------------------------------------------------------------


def test_a_secret_is_all_of_a_file_or_the_key_of_a_keyring(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("  plain \n")
    assert keys.read(file) == b"plain"
    file.write_text('[client.vms]\n\tkey = AQBB+/==\n\tcaps mon = "profile rbd"\n')
    assert keys.read(file) == b"AQBB+/=="
    for content in ("", "[client.vms]\n", " \n"):
        file.write_text(content)
        with pytest.raises(Unavailable, match="no secret"):
            keys.read(file)
    with pytest.raises(Unavailable, match="cannot be read"):
        keys.read(tmp_path / "absent")


async def test_a_lent_secret_is_in_no_command_and_on_no_disk(open_dir: Path) -> None:
    secret = open_dir / "secret"
    secret.write_text("canary")
    secret.chmod(0o600)
    tools = Tools(UID)
    with keys.lent(secret, tools.uid) as descriptor:
        assert os.fstat(descriptor).st_mode & 0o777 == 0o400
        shown = program(open_dir, f"tr '\\0' ' ' < /proc/$$/cmdline; env; echo; cat {at(descriptor)}")
        said = (await tools.run(shown, descriptors=(descriptor,))).decode()
    told, _, read = said.rpartition("\n")
    assert read == "canary"
    assert "canary" not in told


def test_a_source_is_told_with_the_file_of_its_secret(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary\n")
    source = IscsiAt(portal="192.0.2.7:3260", target="iqn.2026-01.x:y", lun=1, user="u", password_file=secret)
    with keys.opened(source, None, "qcow2") as opened:
        (key,) = opened.objects
        assert key["file"] == at(opened.descriptors[0])
        assert opened.node["file"]["password-secret"] == key["id"]  # type: ignore[index]
        assert "canary" not in opened.name + str(key)
    disk = DiskFile(volume_id="v", source=FileAt(Path("/x")), format="raw")
    assert keys.place(disk, tmp_path, None) is disk
