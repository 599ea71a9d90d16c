"""The lab's namespaces and its cleanup: all joined, nothing outside, and nothing left after a SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from novacron.lab import processes
from novacron.lab.failure import LabFailed
from novacron.lab.lab import clean
from novacron.lab.network import BRIDGE, Fabric, guest_address, node_address
from novacron.lab.record import LabDir
from tests.ports import free_port
from tests.system import networks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
pytestmark = pytest.mark.system

SLEEPER = "import time\ntime.sleep(600)"

MAKER = f"""
import os, subprocess, sys, time
from pathlib import Path
from novacron.lab.processes import Child
from novacron.lab.record import LabDir
lab = LabDir(Path(sys.argv[1]))
lab.take()
namespace = None
if os.geteuid() == 0:
    from novacron.lab.network import Fabric
    fabric = Fabric(1)
    namespace = fabric.nodes[0]
child = Child("node-1", [sys.executable, "-c", {SLEEPER!r}, "agent"], lab, namespace)
machine = Child("run", [sys.executable, "-c", {SLEEPER!r}, "unknown"], lab, namespace)  # forgotten below
qemu = subprocess.Popen(["qemu-system-x86_64", "-c", {SLEEPER!r}], executable=sys.executable, cwd=child.directory)
print(child.process.pid, machine.process.pid, qemu.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    made = Fabric(2)
    yield made
    made.close()


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody who looks around in the lab's directory."""
    (tmp_path / "lab" / "node-1").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", SLEEPER], cwd=tmp_path / "lab" / "node-1") as process:
        yield process
        process.kill()


@pytest.mark.root
@needs_root
def test_nodes_reach_each_other_and_nothing_is_made_outside(fabric: Fabric) -> None:
    fabric.settle()
    listener = fabric.nodes[1].run(lambda: socket.create_server((node_address(2), 0)))
    port = listener.getsockname()[1]
    with listener:
        for place in (fabric.nodes[0], fabric.fabric):
            with (
                place.run(lambda: socket.create_connection((node_address(2), port), 5)) as near,
                listener.accept()[0] as far,
            ):
                far.sendall(b"hello")
                assert near.recv(5) == b"hello"
    names = {name for _, name in socket.if_nameindex()}
    assert not names & {BRIDGE, "fabric0", "up0", "n1", "n2"}
    assert "10.77." not in Path("/proc/net/fib_trie").read_text()


@pytest.mark.root
@needs_root
def test_namespaces_end_with_their_holder() -> None:
    before = networks.there_are()
    made = Fabric(1)
    inside = {place.run(networks.cookie) for place in (made.fabric, made.nodes[0])}
    assert not inside & before
    ready, leave = threading.Event(), threading.Event()

    def stay() -> None:
        ready.set()
        leave.wait(10)

    somebody = threading.Thread(target=lambda: made.nodes[0].run(stay))
    somebody.start()
    ready.wait(10)
    made.close()
    assert networks.there_are() & inside  # somebody is still in there
    leave.set()
    somebody.join()
    assert not networks.there_are() & inside


@pytest.mark.root
@needs_root
def test_a_node_keeps_its_hardware_address_when_a_tap_with_a_lower_one_joins(fabric: Fabric) -> None:
    def plug() -> tuple[str, str]:
        with IPRoute() as ip:
            bridge = ip.link_lookup(ifname=BRIDGE)[0]
            before = ip.get_links(bridge)[0].get("address")
            ip.link("add", kind="tuntap", mode="tap", ifname="low", address="02:00:00:00:00:01")
            ip.link("set", index=ip.link_lookup(ifname="low")[0], master=bridge, state="up")
            return before, ip.get_links(bridge)[0].get("address")

    before, after = fabric.nodes[0].run(plug)
    assert before == after


def test_addresses_are_distinct() -> None:
    addresses = [node_address(1), node_address(2), *(guest_address(number).partition("/")[0] for number in range(50))]
    assert len(set(addresses)) == len(addresses)


def test_the_usual_port_is_one_labs_also_while_its_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = free_port()
    monkeypatch.setattr(processes, "USUAL_PORT", usual)
    with processes.usual_port() as first:  # nobody listens there, all the while
        assert first == usual
        with processes.usual_port() as second:
            assert second is None
        assert processes.any_port() != usual
    with processes.usual_port() as third, socket.create_server(("127.0.0.1", usual)):
        assert third == usual
    with socket.create_server(("127.0.0.1", usual)), processes.usual_port() as taken:
        assert taken is None


def test_what_a_killed_lab_left_is_ended_and_a_bystander_is_not(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    lab = tmp_path / "lab"
    with subprocess.Popen([sys.executable, "-c", MAKER, str(lab)], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout
        pids = list(map(int, maker.stdout.readline().split()))
        inside = networks.of_processes(pids) if os.geteuid() == 0 else set()
        assert len(inside) == (os.geteuid() == 0)
        with pytest.raises(LabFailed, match="another lab runs"):
            clean(lab)
        maker.send_signal(signal.SIGKILL)
        maker.wait()
        assert all(alive(pid) for pid in pids)
        assert clean(lab) == 3
    assert not any(alive(pid) for pid in pids)
    assert bystander.poll() is None
    assert not lab.exists()
    assert not inside or not inside & networks.there_are()


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    lab.mkdir()
    lab.chmod(0o777)
    with pytest.raises(LabFailed, match="not a directory of ours"):
        LabDir(lab).take()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError):
        LabDir(tmp_path / "link").take()


def test_a_directory_has_one_holder(tmp_path: Path) -> None:
    first, second = LabDir(tmp_path / "lab"), LabDir(tmp_path / "lab")
    first.take()
    with pytest.raises(LabFailed, match="another lab"):
        second.take()
    first.let_go()
    second.take()
    second.let_go()
    assert not (tmp_path / "lab").exists()


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    lab = LabDir(tmp_path / "lab")
    lab.take()
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(flush=True)\ntime.sleep(600)"
    command = [sys.executable, "-c", stubborn]
    lab.note(command)
    lab.let_go()
    with subprocess.Popen(command, cwd=lab.path, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert clean(lab.path) == 1
        assert process.wait(5) == -signal.SIGKILL


def alive(pid: int) -> bool:
    """A zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
