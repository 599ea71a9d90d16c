"""The lab's links are as late, lossy, slow and silent as they are said to be, and as sound as before when mended."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.errors import InvalidInput
from novacron.lab import silence
from novacron.lab.links import Link, Links, LinkState, Pair
from novacron.lab.network import UPLINK, Fabric, fabric_address, node_address
from novacron.lab.orders import Bend
from novacron.lab.record import LabDir
from novacron.lab.wire import build

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the wire")
needs_nft = pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed")
pytestmark = pytest.mark.system

PORT = 7000
WAIT_S = 2.0
PATIENCE_S = 20.0


class Net:
    """Three nodes' networks, an echo of datagrams in each and in the fabric."""

    def __init__(self, directory: LabDir) -> None:
        self.fabric = Fabric(0)
        self.links = Links(self.fabric, directory, seed=7)
        for number in (1, 2, 3):
            self.links.join(number)
        self.fabric.settle()
        self._doors = [
            place.run(lambda address=address: door(address, PORT))
            for place, address in [
                (self.fabric.fabric, fabric_address()),
                *((self.fabric.nodes[number - 1], node_address(number)) for number in (1, 2, 3)),
            ]
        ]
        self._stop, self._stopped = socket.socketpair()
        self._echo = threading.Thread(target=self._serve)
        self._echo.start()

    def link(self, number: int) -> Link:
        return Link(self.links, number)

    def trips(self, source: int, target: str, count: int = 10) -> list[float]:
        """Round trips in milliseconds, one after the other, of those probes that came back."""
        times = []
        with self.fabric.nodes[source - 1].run(lambda: door(node_address(source), 0)) as mine:
            for number in range(count):
                began = time.monotonic()
                mine.sendto(b"%d" % number, (target, PORT))
                while select.select([mine], [], [], max(0, began + WAIT_S - time.monotonic()))[0]:
                    if mine.recv(100) == b"%d" % number:
                        times.append((time.monotonic() - began) * 1e3)
                        break
        return times

    def hears(self, source: int, target: str) -> bool:
        """Whether a probe comes back, with patience for address resolution."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.trips(source, target, count=1):
                return True
        return False

    def send(self, source: int, target: int, data: bytes) -> tuple[bytes, float]:
        """A stream from node to node: what arrives, and how long that took."""
        got = bytearray()

        def take() -> None:
            far = listener.accept()[0]
            with far:
                while chunk := far.recv(1 << 16):
                    got.extend(chunk)

        address = (node_address(target), PORT)
        with self.fabric.nodes[target - 1].run(lambda: socket.create_server(address)) as listener:
            taking = threading.Thread(target=take)
            taking.start()
            began = time.monotonic()
            with self.fabric.nodes[source - 1].run(lambda: socket.create_connection(address, 5)) as near:
                near.sendall(data)
            taking.join()
        return bytes(got), time.monotonic() - began

    def _serve(self) -> None:
        while True:
            ready = select.select([*self._doors, self._stopped], [], [])[0]
            if self._stopped in ready:
                return
            for mine in ready:
                data, sender = mine.recvfrom(100)
                with contextlib.suppress(OSError):  # unplugged
                    mine.sendto(data, sender)

    def close(self) -> None:
        self._stop.send(b".")
        self._echo.join()
        for opened in (*self._doors, self._stop, self._stopped):
            opened.close()
        self.links.close()
        self.fabric.close()


def door(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    directory = LabDir(tmp_path / "lab")
    directory.take()
    made = Net(directory)
    yield made
    made.close()


def carrier(net: Net, number: int) -> tuple[bool, str]:
    """Whether a node's link has one, and how the kernel calls its state: as every program on the node sees it."""

    def look() -> tuple[bool, str]:
        folder = Path("/sys/class/net") / UPLINK
        return (folder / "carrier").read_text() == "1\n", (folder / "operstate").read_text().strip()

    return net.fabric.nodes[number - 1].run_as_node(look)


@pytest.mark.root
@needs_root
@needs_compiler
def test_a_late_link_is_late_by_so_much_each_way_and_as_quick_as_before_afterwards(net: Net) -> None:
    assert min(net.trips(1, fabric_address())) < 10
    net.link(1).set(latency_ms=20)
    assert net.hears(1, fabric_address())
    assert 40 <= min(net.trips(1, fabric_address())) < 60
    assert min(net.trips(2, fabric_address())) < 10
    net.link(2).set(latency_ms=10)
    assert net.hears(1, node_address(2))
    assert 60 <= min(net.trips(1, node_address(2))) < 80
    net.link(1).set(latency_ms=5)
    assert 10 <= min(net.trips(1, fabric_address())) < 30
    net.link(1).set()
    assert net.hears(1, fabric_address())
    assert min(net.trips(1, fabric_address())) < 10


@pytest.mark.root
@needs_root
@needs_compiler
def test_a_jittery_link_is_late_by_different_lengths(net: Net) -> None:
    net.link(1).set(latency_ms=20, jitter_ms=15)
    assert net.hears(1, fabric_address())
    times = net.trips(1, fabric_address(), count=30)
    assert min(times) >= 10
    assert max(times) - min(times) > 10


@pytest.mark.root
@needs_root
@needs_compiler
def test_a_lossy_link_loses_about_so_much(net: Net) -> None:
    net.link(1).set(loss=0.2)
    assert net.hears(1, node_address(2))
    count = 1000
    address = (node_address(2), PORT + 1)
    with (
        net.fabric.nodes[1].run(lambda: door(*address)) as far,
        net.fabric.nodes[0].run(lambda: door(node_address(1), 0)) as near,
    ):
        got = 0
        for _ in range(count):
            near.sendto(b"x", address)
            got += bool(select.select([far], [], [], 0.002)[0] and far.recv(10))
        while select.select([far], [], [], 0.2)[0]:
            got += bool(far.recv(10))
    assert 0.7 * count < got < 0.9 * count


@pytest.mark.root
@needs_root
def test_a_slow_link_is_slow_in_both_directions(net: Net) -> None:
    data = os.urandom(1 << 20)
    assert net.send(1, 2, data)[1] < 0.8
    net.link(1).set(rate_bit_per_s=8_000_000)  # one second for it
    for source, target in ((1, 2), (2, 1)):
        got, took_s = net.send(source, target, data)
        assert got == data
        assert 0.8 < took_s < 8
    net.link(1).set()
    assert net.send(1, 2, data)[1] < 0.8


@pytest.mark.root
@needs_root
@needs_compiler
def test_what_passes_a_wire_is_what_was_sent(net: Net) -> None:
    data = os.urandom(8 << 20)
    net.link(1).set(latency_ms=1)
    net.link(2).set(latency_ms=1, loss=0.001)
    assert net.hears(1, node_address(2))
    for source, target in ((1, 2), (2, 1)):
        assert hashlib.sha256(net.send(source, target, data)[0]).digest() == hashlib.sha256(data).digest()


@pytest.mark.root
@needs_root
@needs_nft
@pytest.mark.parametrize("latency_ms", [0, pytest.param(5, marks=needs_compiler)])
def test_a_cut_link_is_silent_and_nobody_sees_it_and_mended_it_is_what_it_was(net: Net, latency_ms: int) -> None:
    net.link(1).set(latency_ms=latency_ms)
    assert net.hears(1, fabric_address())
    before = carrier(net, 1)
    assert before == (True, "up")
    net.link(1).cut()
    assert net.trips(1, fabric_address(), count=1) == []
    assert net.trips(2, node_address(1), count=1) == []
    assert net.trips(2, node_address(3), count=1) != []
    assert carrier(net, 1) == before
    net.link(1).mend()
    assert net.hears(1, fabric_address())
    assert net.link(1).state == LinkState(latency_ms=latency_ms)
    assert min(net.trips(1, fabric_address())) >= 2 * latency_ms


@pytest.mark.root
@needs_root
def test_an_unplugged_link_has_no_carrier(net: Net) -> None:
    net.link(1).unplug()
    assert carrier(net, 1)[0] is False
    assert net.trips(2, node_address(1), count=1) == []
    net.link(1).mend()
    assert net.hears(1, fabric_address())
    assert carrier(net, 1)[0] is True


@pytest.mark.root
@needs_root
@needs_nft
def test_two_parted_nodes_hear_everybody_but_each_other(net: Net) -> None:
    pair = Pair(net.links, 1, 2)
    pair.cut()
    assert net.trips(1, node_address(2), count=1) == []
    assert net.trips(2, node_address(1), count=1) == []
    for source, target in ((1, fabric_address()), (2, fabric_address()), (1, node_address(3)), (2, node_address(3))):
        assert net.hears(source, target)
    pair.mend()
    assert net.hears(1, node_address(2))


@pytest.mark.root
@needs_root
@needs_compiler
@needs_nft
def test_a_link_is_what_it_was_when_its_node_comes_back(net: Net) -> None:
    net.link(3).set(latency_ms=20, rate_bit_per_s=50_000_000)
    net.link(2).set(latency_ms=20)
    net.link(2).cut()
    for number in (2, 3):
        net.links.part(number)
        net.links.join(number)
    net.fabric.settle()
    net.link(2).mend()
    for number in (2, 3):
        assert net.hears(number, fabric_address())
        assert min(net.trips(number, fabric_address())) >= 40


@pytest.mark.root
@needs_root
@needs_compiler
def test_a_wire_that_was_killed_is_laid_anew_by_the_next_change(net: Net) -> None:
    net.link(1).set(latency_ms=5)
    assert net.hears(1, fabric_address())
    wire = net.links._wires[1]
    os.kill(wire.pid, 9)
    wire._process.wait()
    assert net.trips(1, fabric_address(), count=1) == []
    net.link(1).set(latency_ms=6)
    assert net.hears(1, fabric_address())


# -- the wire's program, between two sockets: needs no privilege -----------------------------------------------


class Bare:
    """The program alone."""

    def __init__(self, seed: int) -> None:
        self.near, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(
            [build(), str(near.fileno()), str(far.fileno()), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(near.fileno(), far.fileno()),
        )
        near.close()
        far.close()
        self.near.settimeout(PATIENCE_S)
        self.far.settimeout(PATIENCE_S)

    def order(self, line: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"done\n"

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(5) == 0
        self.near.close()
        self.far.close()
        assert self.process.stdout
        self.process.stdout.close()


def lost(seed: int) -> list[int]:
    with Bare(seed) as wire:
        wire.order("0 0 250000")
        got = []
        for number in range(400):
            wire.near.send(b"%d" % number)
            while select.select([wire.far], [], [], 0.0005)[0]:
                got.append(int(wire.far.recv(10)))
        while select.select([wire.far], [], [], 0.3)[0]:
            got.append(int(wire.far.recv(10)))
    return sorted(set(range(400)) - set(got))


@needs_compiler
def test_which_frames_are_lost_hangs_on_the_seed_alone() -> None:
    first = lost(1)
    assert 50 < len(first) < 150
    assert lost(1) == first
    assert lost(2) != first


@needs_compiler
def test_late_frames_come_in_order_and_orders_count_at_once() -> None:
    rng = random.Random(3)
    with Bare(5) as wire:
        wire.order("20000 20000 0")
        for number in range(200):
            wire.near.send(b"%03d" % number + rng.randbytes(rng.randrange(0, 300)))
        assert [int(wire.far.recv(1000)[:3]) for _ in range(200)] == list(range(200))
        wire.order("0 0 1000000")
        wire.far.send(b"gone")
        wire.order("0 0 0")
        wire.far.send(b"here")
        assert wire.near.recv(10) == b"here"


# -- decisions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        LinkState(latency_ms=-1),
        LinkState(latency_ms=20_000),
        LinkState(jitter_ms=5, latency_ms=4),
        LinkState(loss=1.1),
        LinkState(rate_bit_per_s=100),
        LinkState(latency_ms=float("nan")),
        LinkState(loss=float("nan")),
    ],
)
def test_what_no_link_can_be(state: LinkState) -> None:
    with pytest.raises(InvalidInput):
        state.check()


@given(st.floats(0, 100), st.floats(0, 1), st.booleans())
def test_an_order_changes_what_it_names_and_nothing_else(latency_ms: float, loss: float, cut: bool) -> None:
    before = LinkState(latency_ms=latency_ms, loss=loss, rate_bit_per_s=1_000_000)
    assert Bend(node="x").applied(before) == before
    assert Bend(node="x", cut=cut).applied(before) == LinkState(
        latency_ms=latency_ms, loss=loss, rate_bit_per_s=1_000_000, cut=cut
    )
    assert Bend(node="x", rate_bit_per_s=0).applied(before).rate_bit_per_s is None


def test_no_cuts_leave_no_rules() -> None:
    rules = silence.ruleset([], [])["nftables"]
    assert not [command for command in rules if "rule" in command.get("add", {})]


def test_a_pair_is_silent_both_ways() -> None:
    rules = silence.ruleset([], [(("n1",), ("n2",))])["nftables"]
    ends = [
        [match["match"]["right"]["set"][0] for match in command["add"]["rule"]["expr"] if "match" in match]
        for command in rules
        if "rule" in command.get("add", {})
    ]
    assert ends == [["n1", "n2"], ["n2", "n1"]]
