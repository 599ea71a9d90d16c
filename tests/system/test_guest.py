"""The lab guest under a bare QEMU: it answers, dirties, keeps time, and can be switched off both ways."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.lab.guest.line import PORT, GuestLine
from tests.ports import free_port

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here"),
]

TSC_KHZ = "tsc_early_khz=1000000"  # microvm calibrates against nothing; see the guest's README


class Machine:
    """A QEMU of the test's own with one user-mode port forwarded to the guest's service."""

    def __init__(self, directory: Path, files: GuestFiles, kind: str, append: str) -> None:
        self.port = free_port()
        self._monitor = directory / "qmp"
        self.serial = directory / "serial"
        card = "virtio-net-device" if kind == "microvm" else "virtio-net-pci"
        forwards = ",".join(f"hostfwd={protocol}:127.0.0.1:{self.port}-:{PORT}" for protocol in ("tcp", "udp"))
        # fmt: off
        self.process = subprocess.Popen([
            "qemu-system-x86_64", "-machine", kind, "-accel", "tcg", "-cpu", "qemu64", "-m", "256",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-kernel", files.kernel, "-initrd", files.initrd, "-append", f"{files.cmdline} {append}",
            "-serial", f"file:{self.serial}", "-qmp", f"unix:{self._monitor},server=on,wait=off",
            "-netdev", f"user,id=net0,{forwards}", "-device", f"{card},netdev=net0",
        ])
        # fmt: on

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self._monitor))
            words = monitor.makefile("rw")
            words.readline()
            for command in ("qmp_capabilities", "system_powerdown"):
                words.write(json.dumps({"execute": command}) + "\n")
                words.flush()
                words.readline()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


Boot = Callable[..., Machine]


@pytest.fixture(scope="session")
def files() -> GuestFiles:
    return build()


@pytest.fixture
def boot(tmp_path: Path, files: GuestFiles) -> Iterator[Boot]:
    machines: list[Machine] = []

    def start(kind: str = "q35", append: str = "") -> Machine:
        directory = tmp_path / str(len(machines))
        directory.mkdir()
        machines.append(Machine(directory, files, kind, append))
        return machines[-1]

    yield start
    for machine in machines:
        machine.end()


def test_it_answers_several_clients_and_dirties_memory_at_the_rate_asked(boot: Boot) -> None:
    machine = boot(append="novacron.name=web-1")
    with (
        GuestLine.wait("127.0.0.1", machine.port) as one,
        GuestLine("127.0.0.1", machine.port) as two,
        GuestLine("127.0.0.1", machine.port) as three,
    ):
        assert two.ask("echo hello there") == "hello there"
        first = one.status()
        assert (first.name, first.pages_bad, first.wss_mib) == ("web-1", 0, 0)
        assert len(first.boot_id) == 32
        assert one.ask("gaps reset") == "ok"
        assert three.ask("dirty 20 16") == "ok"
        before = two.status()
        while (now := two.status()).monotonic_ns < before.monotonic_ns + 1_500_000_000:
            time.sleep(0.05)
        seconds = (now.monotonic_ns - before.monotonic_ns) / 1e9
        assert (now.pages_written - before.pages_written) / 256 / seconds == pytest.approx(20, rel=0.25)
        assert now.wss_mib == 16
        assert now.ticks - before.ticks > 200  # the ticker runs beside the dirtier
        assert 1000 <= now.max_gap_us < 1_500_000
        assert now.boot_id == first.boot_id
        assert three.ask("dirty 0") == "ok"
        assert (one.ask("check"), one.status().pages_bad) == ("0", 0)


def test_it_refuses_what_it_does_not_know_and_lives_on(boot: Boot) -> None:
    machine = boot()
    with GuestLine.wait("127.0.0.1", machine.port) as line:
        for wrong in ("reboot", "dirty", "dirty x", "dirty 5", "dirty 5 0", "dirty 5 1000000", "dirty 5 5 5", ""):
            with pytest.raises(LabFailed, match="refused"):
                line.ask(wrong)
        with pytest.raises((LabFailed, OSError)):
            line.ask("echo " + "x" * 600)
    with GuestLine("127.0.0.1", machine.port) as line:
        assert line.ask("echo still here") == "still here"


def test_a_datagram_comes_back_with_the_guests_clock(boot: Boot) -> None:
    machine = boot()
    with GuestLine.wait("127.0.0.1", machine.port) as line, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(5)
        early = int(line.ask("clock"))
        datagrams.sendto(b"17", ("127.0.0.1", machine.port))
        sequence, clock = datagrams.recv(100).split()
        assert sequence == b"17"
        assert early < int(clock) < int(line.ask("clock"))


def pressed_until_off(machine: Machine) -> int:
    """Its exit status. Now and then nothing had come of a press after 20 s (seen under TCG; why is not known): whoever
    presses looks, and presses again.
    """
    for _ in range(12):
        machine.press_power_button()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return machine.process.wait(5)
    raise AssertionError("it does not heed its power button")


@pytest.mark.parametrize(("kind", "append"), [("q35", ""), ("microvm", TSC_KHZ)])
def test_the_power_button_and_the_poweroff_line_end_it(boot: Boot, kind: str, append: str) -> None:
    button, asked = boot(kind, append), boot(kind, append)
    GuestLine.wait("127.0.0.1", button.port).close()
    assert "NOVACRON GUEST READY" in button.serial.read_text()
    with GuestLine.wait("127.0.0.1", asked.port) as line:
        assert line.ask("poweroff") == "ok"
    assert asked.process.wait(60) == 0
    assert pressed_until_off(button) == 0
    assert "power button" in button.serial.read_text()
