"""The demo, whole, as root and without: what it prints, and that it leaves nothing behind, killed or not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.lab.guest.build import build
from tests.system import networks
from tests.system.test_lab_network import alive

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NOBODY = 65534
DEADLINE_S = 240
FIELDS = {
    "boot_s",
    "provision_ms",
    "migration_total_ms",
    "bytes_transferred",
    "downtime_qemu_ms",
    "downtime_guest_ms",
    "downtime_client_ms",
    "accelerator",
}


@pytest.fixture
def lab() -> Iterator[Path]:
    """A short path below /tmp, for the sockets in it, and open to whoever the test runs as."""
    path = Path("/tmp") / f"nc-test-{os.getpid()}"
    yield path / "lab"
    subprocess.run(command(path / "lab", "--clean"), check=False, capture_output=True)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(autouse=True)
def guest() -> None:
    """Built before the clock of any test runs."""
    build()


def command(lab: Path, *options: str) -> list[str]:
    lab.parent.mkdir(exist_ok=True)
    lab.parent.chmod(0o777)
    return [sys.executable, "-m", "novacron.lab.demo", "--dir", str(lab), *options]


def as_nobody(argv: list[str]) -> list[str]:
    """Without root, but able to read wherever this Python was installed."""
    keep = "+dac_read_search"
    # fmt: off
    return [
        "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", f"--inh-caps={keep}",
        f"--ambient-caps={keep}", f"--bounding-set=-all,{keep}", *argv,
    ]
    # fmt: on


def check_show(output: str, connection: str) -> None:
    figures = json.loads(output.splitlines()[-1])
    assert figures.keys() == FIELDS
    assert figures["accelerator"] in ("kvm", "tcg")
    assert 0 < figures["provision_ms"] < figures["boot_s"] * 1000
    assert figures["bytes_transferred"] > 1 << 20
    assert figures["migration_total_ms"] > figures["downtime_qemu_ms"] >= 0
    assert figures["downtime_client_ms"] > 0
    assert figures["downtime_guest_ms"] > 0
    assert connection in output
    assert "migration: transferring" in output
    assert re.search(r"token +\S{20}", output)


ENDING_S = 5.0


def check_nothing_left(lab: Path) -> None:
    """Its network namespaces have no names: without processes and mounts there are none."""
    assert not lab.exists()
    end = time.monotonic() + ENDING_S
    while left := working_in(lab):  # who was told to end may be a moment from it
        assert time.monotonic() < end, left
        time.sleep(0.05)
    mounts = Path("/proc/mounts").read_text()
    assert str(lab) not in mounts
    assert "/dev/net " not in mounts


def check_nobody_in(inside: set[int]) -> None:
    """Those network namespaces have ended, or do in a moment, as who was in them does."""
    end = time.monotonic() + ENDING_S
    while left := inside & networks.there_are():
        assert time.monotonic() < end, left
        time.sleep(0.05)


def working_in(lab: Path) -> list[int]:
    """Living processes whose directory lies or lay in the lab, or that were told of it."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            told = str(lab).encode() in (process / "cmdline").read_bytes()
            inside = str((process / "cwd").readlink()).startswith(str(lab))
        except OSError:
            continue
        if process.name.isdigit() and (told or inside) and alive(int(process.name)):
            found.append(int(process.name))
    return found


@pytest.mark.root
@needs_root
def test_as_root_the_client_keeps_its_connection_and_nothing_is_left(lab: Path) -> None:
    shown = subprocess.run(command(lab, "--once"), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert not shown.stderr
    check_show(shown.stdout, "kept its connection")
    if shutil.which("nft") and shutil.which("dnsmasq"):
        assert "network demo spans the nodes" in shown.stdout
    check_nothing_left(lab)


def test_without_root_the_client_reconnects_and_the_demo_says_so(lab: Path) -> None:
    argv = command(lab, "--once")
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv to give root away")
        argv = as_nobody(argv)
    built = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")  # by root perhaps, and found there
    environment = {**os.environ, "XDG_RUNTIME_DIR": "", "HOME": "/nonexistent", "XDG_CACHE_HOME": built}
    shown = subprocess.run(
        argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False, env=environment, cwd="/"
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "without root" in shown.stdout
    check_show(shown.stdout, "the client reconnected 1 time")
    check_nothing_left(lab)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_cut_off_while_it_stays_up_it_leaves_nothing(lab: Path, how: signal.Signals) -> None:
    with subprocess.Popen(command(lab), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        for line in demo.stdout:
            if "stays up until Ctrl-C" in line:
                break
        running = working_in(lab)
        assert any("qemu" in Path(f"/proc/{pid}/cmdline").read_text() for pid in running)
        inside = networks.of_processes(running)
        assert len(inside) == 3
        demo.send_signal(how)
        demo.stdout.read()
    if how is signal.SIGKILL:
        assert demo.returncode == -signal.SIGKILL
        assert working_in(lab)
        cleaned = subprocess.run(command(lab, "--clean"), capture_output=True, text=True, timeout=60, check=True)
        assert re.search(r"ended [1-9]\d* processes", cleaned.stdout)
    else:
        assert demo.returncode == 0
    check_nothing_left(lab)
    check_nobody_in(inside)
