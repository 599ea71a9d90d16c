"""Volumes on real agents and QEMU: made, given to a machine that runs, grown under it, copied, kept and deleted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from novacron.lab.lab import Lab, open_lab
from novacron.lab.rom import rom

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed: no guest can be built"),
]

MIB = 1 << 20
Nova = Callable[..., Any]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nc-vol-", dir="/tmp") as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        yield stack.enter_context(portal.wrap_async_context_manager(open_lab(folder / "lab", nodes=2, bridged=False)))


@pytest.fixture(scope="module")
def nova(lab: Lab, folder: Path) -> Nova:
    """Runs one command as people do; its answer as data when it is asked for with `-o json`."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "NOVACRON_SERVER": lab.server,
        "NOVACRON_TOKEN_FILE": str(lab.token_file),
    }

    def run(line: str, expect: int = 0) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "novacron.cli.main", *line.split()],
            env=environment, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == expect, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout) if line.endswith("-o json") and expect == 0 else done.stdout + done.stderr

    return run


def virtual_size(file: Path) -> int:
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(file)], check=True, capture_output=True, timeout=30
    )
    size: int = json.loads(told.stdout)["virtual-size"]
    return size


def is_open(file: Path) -> bool:
    """Whether a QEMU has it open: it holds a lock then."""
    return subprocess.run(["qemu-img", "info", str(file)], capture_output=True, check=False, timeout=30).returncode != 0


def until_asked(nova: Nova, pool: str) -> None:
    """Both nodes have said whether they reach it."""
    give_up = time.monotonic() + 30
    while len(nova(f"pool show {pool} -o json")["reach"]) < 2:
        assert time.monotonic() < give_up, f"nobody said whether they reach {pool}"


def test_a_volume_and_its_machines(nova: Nova, folder: Path) -> None:
    place = folder / "fast"
    place.mkdir(mode=0o711)
    nova(f"image create ticker --firmware {rom(folder / 'cache')}")
    nova(f"pool create fast --driver directory -O path={place} --shared")
    nova("pool create nowhere --driver directory -O path=/does/not/exist")
    for pool in ("fast", "nowhere"):
        until_asked(nova, pool)
    made = nova("volume create data --size 16M --pool fast --wait -o json")
    assert (made["state"], made["pool"]) == ("available", "fast")
    (file,) = place.glob(f"**/{made['id']}*")
    assert virtual_size(file) == 16 * MIB

    refused = nova("vm create t --image ticker --memory 32M --no-nic --disk 8M,pool=nowhere", expect=5)
    assert "does not reach storage pool nowhere" in refused
    disks = "--disk volume=data,iops=100 --disk 8M,pool=fast"
    vm = nova(f"vm create t --image ticker --memory 128M --no-nic {disks} --wait -o json")
    own = vm["disks"][1]["volume_id"]
    assert list(place.glob(f"**/{own}*"))
    assert "belongs to VM t" in nova("volume delete data --yes", expect=4)
    assert "must be stopped" in nova("volume create copy --from data", expect=4)

    extra = nova("volume create extra --size 8M --pool fast --wait -o json")["id"]
    attached = nova("volume attach extra t --wait -o json")
    assert (len(attached["disks"]), attached["pending"]) == (3, [])
    assert is_open(next(place.glob(f"**/{extra}*")))
    assert nova("volume detach extra --wait").startswith("extra: detached\n")
    assert not is_open(next(place.glob(f"**/{extra}*")))
    nova("volume delete extra --yes --wait")

    nova("volume grow data 32M --wait")
    assert virtual_size(file) == 32 * MIB
    nova("vm stop t --force --wait")
    nova("volume grow data 48M --wait")
    assert virtual_size(file) == 48 * MIB
    copy = nova("volume create copy --from data --wait -o json")
    assert virtual_size(next(place.glob(f"**/{copy['id']}*"))) == 48 * MIB
    nova("vm start t --wait")

    nova("vm delete t --force --yes --wait")
    assert not list(place.glob(f"**/{own}*"))
    assert {one["name"]: one["state"] for one in nova("volume list -o json")} == {
        "data": "available",
        "copy": "available",
    }
    for name in ("data", "copy"):
        nova(f"volume delete {name} --yes --wait")
    assert [path for path in place.glob("**/*.qcow2") if path.is_file()] == []
    nova("pool delete fast --yes")
    assert place.exists()
