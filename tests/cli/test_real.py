"""The command line's whole life against the real thing: a control plane, two agents and QEMU under TCG."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from novacron.lab.lab import Lab, open_lab
from novacron.lab.rom import rom

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed: no guest can be built"),
]

Nova = Callable[..., "subprocess.CompletedProcess[str]"]
GUEST = "--memory 32M --no-nic"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nc-cli-", dir="/tmp") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    """A lab without a bridge; gone afterwards with everything in it."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        yield stack.enter_context(portal.wrap_async_context_manager(open_lab(folder / "lab", nodes=2, bridged=False)))


@pytest.fixture(scope="module")
def nova(lab: Lab, folder: Path) -> Nova:
    """Runs one command line as people do: another process; asserts its exit code."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "NOVACRON_SERVER": lab.server,
        "NOVACRON_TOKEN_FILE": str(lab.token_file),
        **{key: value for key, value in os.environ.items() if key == "PYTHONPATH"},  # the code these tests are beside
    }

    def run(line: str, expect: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "novacron.cli.main", *line.split()],
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="module")
def image(nova: Nova, folder: Path) -> str:
    guest = rom(folder / "cache")
    done = nova(f"image create ticker --firmware {guest} --label kind=test")
    assert done.stdout == "ticker: ready, 64 KiB\n"
    assert "ticker: sending firmware 64 KiB of 64 KiB" in done.stderr
    return "ticker"


def test_a_vm_from_birth_to_end(nova: Nova, image: str, lab: Lab) -> None:
    assert sorted(nova("node list -o name").stdout.split()) == ["node-1", "node-2"]

    made = nova(f"vm create web-1 --image {image} {GUEST} --node node-1 --label tier=web --wait")
    assert made.stdout == "web-1: running on node-1\n"
    assert "web-1: creating" in made.stderr

    assert nova("vm list -l tier=web --state running --node node-1 -o name").stdout == "web-1\n"
    assert nova("vm list -l tier!=web -o name").stdout == ""
    assert "running" in nova("vm show web-1").stdout
    assert nova("vm console web-1").stdout.startswith("T 0")

    assert nova("vm pause web-1 --wait").stdout == "web-1: paused on node-1\n"
    assert nova("vm resume web-1 --wait").stdout == "web-1: running on node-1\n"

    plan = json.loads(nova("vm migrate web-1 --dry-run -o json").stdout)
    assert plan["target_node"] == "node-2"
    moved = nova("vm migrate web-1 --to node-2 --wait")
    assert moved.stdout.startswith("web-1: moved from node-1 to node-2; total ")
    assert "by QEMU's count" in moved.stdout
    migration = json.loads(nova("migration list --vm web-1 -o json").stdout)[0]
    assert migration["state"] == "completed"
    assert migration["predicted"] == next(one["predicted"] for one in plan["nodes"] if one["chosen"])
    assert migration["prediction_error"]["total_percent"] is not None
    assert "release" in nova(f"migration show {migration['id']}").stdout
    nova(f"migration cancel {migration['id']}", expect=4)
    assert nova(f"migration watch {migration['id']}").stdout == moved.stdout

    assert nova("vm update web-1 --label stage=test --memory 64M").stdout == "web-1: changed\n"
    assert nova("vm restart web-1 --force --wait").stdout == "web-1: running on node-2\n"
    after = json.loads(nova("vm show web-1 -o json").stdout)
    assert (after["node"], after["memory_mib"], after["labels"]) == ("node-2", 64, {"tier": "web", "stage": "test"})

    assert "it is running" in nova("vm delete web-1", expect=4).stderr
    assert nova("vm stop web-1 --force --wait").stdout == "web-1: stopped on node-2\n"
    assert nova("vm start web-1 --wait").stdout == "web-1: running on node-2\n"
    assert nova("vm delete web-1 --force --wait").stdout == "web-1: deleted\n"
    nova("vm show web-1", expect=3)

    told = [json.loads(line) for line in nova("events --type vm -o json").stdout.splitlines()]
    assert (told[0]["type"], told[-1]["type"]) == ("vm.created", "vm.deleted")
    assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})


def test_refusals_say_why(nova: Nova, image: str, folder: Path) -> None:
    too_large = nova(f"vm create huge --image {image} --memory 4000G", expect=5).stderr
    assert too_large.count("node-1") >= 1
    assert too_large.count("node-2") >= 1
    nova("vm create x --image nothing", expect=5)
    nova("vm show nothing", expect=3)
    nova("vm list", expect=5, NOVACRON_TOKEN="wrong")
    nova("vm list", expect=6, NOVACRON_SERVER="http://127.0.0.1:1")
    (folder / "evil.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 4096)
    nova(f"image create evil --disk {folder / 'evil.qcow2'}", expect=5)
    nova("image show evil", expect=3)
    nova(f"image create {image} --firmware {folder / 'evil.qcow2'}", expect=4)


def test_nodes_are_looked_after(nova: Nova, lab: Lab) -> None:
    assert nova("node label node-2 rack=a").stdout == "node-2: rack=a\n"
    assert nova("node list -l rack=a -o name").stdout == "node-2\n"
    assert nova("node cordon node-2").stdout == "node-2: cordoned\n"
    assert "cordoned" in nova("node list").stdout
    nova("node uncordon node-2")
    nova("node delete node-2 --yes", expect=4)
    assert "Accelerator" in nova("node show node-1").stdout


def test_by_unix_socket_and_context(nova: Nova, lab: Lab) -> None:
    nova(f"context set local --server unix:{lab.path}/server.sock --token-file {lab.token_file}")
    found = nova("node list -o name --context local", NOVACRON_SERVER="", NOVACRON_TOKEN_FILE="")
    assert sorted(found.stdout.split()) == ["node-1", "node-2"]
