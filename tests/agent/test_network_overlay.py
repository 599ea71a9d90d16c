"""Networks over several nodes: frames through real kernels, in namespaces of the test's own."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.agent.network import frames, speak
from novacron.agent.network.names import bridge_name, gateway_mac, overlay_tap, tunnel_name
from novacron.agent.network.subnets import address
from novacron.errors import InvalidInput, NotFound, StateConflict, Unsupported
from novacron.lab.namespaces import Namespace
from novacron.model.machine import Nic
from novacron.model.network import NetworkMode
from novacron.wire.network import NetworkForget, NetworkPing
from tests.agent.overlay_nodes import NETWORK, Guest, Node, Site, nic, place, site, spec, tool, udp
from tests.agent.test_network_filter import arrives, machine, tell

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]

OTHER = "01890000-0000-7000-8000-00000000aa02"


@pytest.fixture
def two() -> Iterator[Site]:
    with site(2) as made:
        yield made


@pytest.fixture
def three() -> Iterator[Site]:
    with site(3) as made:
        yield made


def endpoint_of(node: Node, card: Nic) -> str:
    """Where a node's tunnel sends what is for a card."""
    shown = node.run("bridge", "fdb", "show", "dev", tunnel_name(NETWORK))
    found = re.search(rf"{card.mac} dst (\S+) self", shown)
    return found[1] if found else ""


def port_of(node: Node, card: Nic) -> str:
    """Where a node's bridge sends what is for a card."""
    shown = node.run("bridge", "fdb", "show", "br", bridge_name(NETWORK))
    found = re.search(rf"{card.mac} dev (\S+) .*master", shown)
    return found[1] if found else ""


def ping(node: Node, to: str, deadline_ms: int = 5000) -> float | None:
    asked = NetworkPing(network_id=NETWORK, address=to, deadline_ms=deadline_ms)
    return node.do(node.overlay.ping(asked)).answered_after_ms


def test_tunnels_over_ipv6() -> None:
    with site(2, "2001:db8::") as two:
        a, b = two.nodes
        one, other = nic(2), nic(3)
        narrow = spec(mtu=1430)
        left, right = two.plug(a, one, narrow), two.plug(b, other, narrow)
        for revision in (1, 2):
            two.apply(two.state(revision, place(one, a), place(other, b), of=narrow))
        assert arrives(left, right, udp(one, tell(other), (1, 2)))
        assert arrives(right, left, udp(other, tell(one), (1, 2)))
        with pytest.raises(Unsupported):
            a.apply(two.state(3, of=spec(mtu=1431)))


def test_guests_on_two_nodes_reach_each_other_and_their_gateway(two: Site) -> None:
    a, b = two.nodes
    one, other = nic(2), nic(3)
    left, right = two.plug(a, one, spec()), two.plug(b, other, spec())
    two.apply(two.state(1, place(one, a), place(other, b)))
    left.with_kernel("10.5.0.2/24", "fd05::2/64")
    right.with_kernel("10.5.0.3/24", "fd05::3/64")
    assert left.pings("10.5.0.3")
    assert right.pings("fd05::2")
    for guest in (left, right):
        assert guest.pings("10.5.0.1")
        assert guest.pings("fd05::1")
        assert gateway_mac(NETWORK) in guest.run("ip", "neigh", "show", "10.5.0.1"), "the same at every node"


def test_a_machine_that_moved_is_found_at_once_and_nothing_stale_takes_it_back(three: Site) -> None:
    a, b, c = three.nodes
    card, peer = nic(2), nic(3)
    talker = three.plug(c, peer, spec())
    source = three.plug(a, card, spec())
    first = three.state(1, place(card, a, 1), place(peer, c))
    three.apply(first)
    assert arrives(talker, source, udp(peer, tell(card), (1, 2)))
    target = three.plug(b, card, spec())
    three.apply(three.state(2, place(card, a, 1), place(peer, c)))
    assert port_of(b, card) == tunnel_name(NETWORK), "it has not arrived yet"
    assert endpoint_of(b, card) == a.address

    b.do(b.movements.arriving(machine(card, 2), ()))
    assert port_of(b, card) == overlay_tap(card.id)
    b.apply(three.state(3, place(card, a, 1), place(peer, c)))
    assert port_of(b, card) == overlay_tap(card.id), "said before it came"
    b.do(b.movements.arrived(machine(card, 2)))
    b.start()
    b.do(b.overlay.adopt())
    b.apply(three.state(4, place(card, a, 1), place(peer, c)))
    assert port_of(b, card) == overlay_tap(card.id), "known before the server said so, and after a restart"
    three.apply(three.state(5, place(card, b, 2), place(peer, c)))
    assert (endpoint_of(a, card), endpoint_of(c, card)) == (b.address, b.address)
    assert port_of(a, card) == tunnel_name(NETWORK), "though its tap still stands there"
    assert arrives(talker, target, udp(peer, tell(card), (1, 3)))

    for late in (first, three.state(6, place(card, a, 1), place(peer, c))):
        three.apply(late)
        assert (endpoint_of(a, card), endpoint_of(c, card), endpoint_of(b, card)) == (b.address, b.address, "")
    for node in three.nodes:
        node.start()
        node.do(node.overlay.adopt())
        node.apply(three.state(7, place(card, a, 1), place(peer, c)))
    assert endpoint_of(c, card) == b.address, "after a restart, too"
    assert arrives(talker, target, udp(peer, tell(card), (1, 4)))


def test_a_move_that_fails_leaves_everything_as_it_was(two: Site) -> None:
    a, b = two.nodes
    card = nic(2)
    two.plug(a, card, spec())
    two.plug(b, card, spec())
    two.apply(two.state(1, place(card, a)))
    b.do(b.movements.arriving(machine(card, 2), ()))
    b.do(b.movements.not_arrived(machine(card, 1)))
    assert port_of(b, card) == tunnel_name(NETWORK)
    assert endpoint_of(b, card) == a.address


def test_who_arrives_is_announced_to_everybody_at_once_and_again(two: Site) -> None:
    a, b = two.nodes
    card, peer, near = nic(2), nic(3), nic(4)
    far, close = two.plug(a, peer, spec()), two.plug(b, near, spec())
    arrival = two.plug(b, card, spec())
    two.apply(two.state(1, place(peer, a), place(near, b), place(card, a)))
    assert arrives(close, far, udp(near, tell(peer), (1, 2)))
    begun = time.monotonic()
    b.do(b.movements.arrived(machine(card, 2)))
    assert time.monotonic() - begun < speak.ANNOUNCE_AT_S[-1], "the verb does not wait"
    said = frames.announcements(card.mac, [address(one, "") for one in card.addresses])
    for listener in (far, close):
        heard = [listener.hears(lambda frame: frame in said) for _ in range(2 * len(said))]
        assert set(heard) == set(said)
    assert arrival.hears(lambda frame: frame in said, within_s=0.1) is None, "not to itself"


def test_the_node_asks_who_has_an_address(two: Site) -> None:
    a, b = two.nodes
    one, other = nic(2), nic(3)
    left, right = two.plug(a, one, spec()), two.plug(b, other, spec())
    two.apply(two.state(1, place(one, a), place(other, b)))
    left.with_kernel("10.5.0.2/24", "fd05::2/64")
    right.with_kernel("10.5.0.3/24", "fd05::3/64")
    for node in (a, b):
        for target in ("10.5.0.2", "10.5.0.3", "fd05::2", "fd05::3"):
            assert ping(node, target) is not None, (node.address, target)
    assert ping(a, "10.5.0.9", 100) is None
    with pytest.raises(InvalidInput):
        ping(a, "10.5.0.999")
    with pytest.raises(NotFound):
        a.do(a.overlay.ping(NetworkPing(network_id=OTHER, address="10.5.0.2", deadline_ms=10)))


def test_an_agents_restart_is_not_noticed(two: Site) -> None:
    """Frames go on through the whole of it: interfaces keep their numbers, and no frame is lost."""
    a, b = two.nodes
    one, other = nic(2), nic(3)
    left, right = two.plug(a, one, spec()), two.plug(b, other, spec())
    state = two.state(1, place(one, a), place(other, b))
    two.apply(state)
    assert arrives(left, right, udp(one, tell(other), (1, 2)))
    links = re.findall(r"^\d+: \S+", a.run("ip", "-o", "link"), re.MULTILINE)
    stop, sent = threading.Event(), [0]

    def talk() -> None:
        while not stop.is_set():
            left.send(udp(one, tell(other), (7, 7), struct.pack("!I", sent[0])))
            sent[0] += 1
            time.sleep(0.0005)

    heard: set[int] = set()

    def listen() -> None:
        while (frame := right.hears(lambda got: got[34:38] == b"\0\7\0\7", within_s=1.0)) is not None:
            heard.add(struct.unpack("!I", frame[42:46])[0])

    threads = [threading.Thread(target=talk), threading.Thread(target=listen)]
    for thread in threads:
        thread.start()
    a.start()
    a.do(a.overlay.adopt())
    a.apply(state)
    stop.set()
    for thread in threads:
        thread.join()
    assert re.findall(r"^\d+: \S+", a.run("ip", "-o", "link"), re.MULTILINE) == links
    assert sent[0] > 50
    assert heard == set(range(sent[0]))


def test_a_new_agent_mends_what_others_broke(two: Site) -> None:
    a, b = two.nodes
    one, other = nic(2), nic(3)
    left, right = two.plug(a, one, spec()), two.plug(b, other, spec())
    two.apply(two.state(1, place(one, a), place(other, b)))
    assert arrives(left, right, udp(one, tell(other), (1, 2)))
    a.run("nft", "flush", "ruleset")
    a.run("ip", "link", "del", bridge_name(NETWORK))
    a.start()
    a.do(a.overlay.adopt())
    assert arrives(left, right, udp(one, tell(other), (1, 3)))
    assert not arrives(left, right, udp(one, tell(other), (1, 3), sender="10.5.0.9"))
    a.do(a.overlay.plug(one, None))
    assert arrives(left, right, udp(one, tell(other), (1, 4))), "plugged in again while its machine has it open"
    a.run("ip", "link", "del", overlay_tap(one.id))
    a.start()
    a.do(a.overlay.adopt())
    known = a.overlay.known(NETWORK)
    assert known is not None
    assert known.ports == {}, "a host that was restarted has no taps"


def test_a_network_goes_wholly_and_not_with_a_card_in_it(two: Site) -> None:
    a, _ = two.nodes
    card = nic(2)
    two.plug(a, card, spec())
    with pytest.raises(StateConflict):
        a.do(a.overlay.forget(NetworkForget(network_id=NETWORK)))
    for _ in range(2):
        a.do(a.overlay.unplug(card))
    assert overlay_tap(card.id) not in a.run("nft", "list", "ruleset")
    for _ in range(2):
        a.do(a.overlay.forget(NetworkForget(network_id=NETWORK)))
    assert not re.search("nc[bxt]-", a.run("ip", "link") + a.run("nft", "list", "ruleset"))
    assert a.overlay._servers.pid(NETWORK) is None
    assert list((a.root / "networks").iterdir()) == list((a.root / "run").iterdir()) == []


def test_a_node_that_cannot_says_what_is_missing_and_keeps_nothing(two: Site) -> None:
    a, b = two.nodes
    with pytest.raises(Unsupported) as unknown:
        a.do(a.overlay.plug(nic(2), None))
    assert unknown.value.reasons[0].code == "network.unknown"
    with pytest.raises(Unsupported) as narrow:
        a.do(a.overlay.plug(nic(2), None, [spec(mtu=1500)]))
    assert narrow.value.reasons[0].remedy.startswith("ip link set up0 mtu 1550")
    b.overlay.here = "192.0.2.99"
    with pytest.raises(Unsupported) as homeless:
        b.do(b.overlay.plug(nic(2), None, [spec()]))
    assert homeless.value.reasons[0].code == "tunnel.missing"
    for node in two.nodes:
        assert overlay_tap(nic(2).id) not in node.run("ip", "link") + node.run("nft", "list", "ruleset")


# -- other networks, and the outside --------------------------------------------------------------------------


class Outside:
    """A host beyond the first node, which it knows as its router for what is routed."""

    def __init__(self, node: Node) -> None:
        self.namespace = Namespace()
        fabric = f"/proc/{os.getpid()}/fd/{self.namespace.fd}"
        node.run("ip", "link", "add", "out0", "index", "1100", "type", "veth", "peer", "name", "eth0", "netns", fabric)
        node.run("ip", "addr", "add", "198.51.100.1/24", "dev", "out0")
        node.run("ip", "link", "set", "out0", "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "addr", "add", "198.51.100.2/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        self.run("ip", "route", "add", "10.0.0.0/8", "via", "198.51.100.1")

    def run(self, *words: str) -> str:
        return self.namespace.run(lambda: tool(*words))


def answered(guest: Guest, to: str) -> str:
    """Who a UDP server outside thinks it was asked by; empty: it never was."""
    assert guest.namespace is not None

    def ask() -> str:
        with socket.socket(type=socket.SOCK_DGRAM) as line:
            line.settimeout(0.3)
            for _ in range(10):
                line.sendto(b"?", (to, 9))
                try:
                    return line.recv(100).decode()
                except (TimeoutError, ConnectionRefusedError):
                    continue
        return ""

    return guest.namespace.run(ask)


def serve(line: socket.socket) -> None:
    while True:
        data, asker = line.recvfrom(100)
        if data == b"end":
            return
        line.sendto(asker[0].encode(), asker)


@pytest.mark.parametrize(
    ("mode", "seen_as"),
    [(NetworkMode.NAT, "198.51.100.1"), (NetworkMode.ROUTED, "10.5.0.2"), (NetworkMode.ISOLATED, "")],
)
def test_the_ways_out(mode: NetworkMode, seen_as: str) -> None:
    with site(1) as one:
        (node,) = one.nodes
        outside = Outside(node)
        try:
            guest = one.plug(node, nic(2), spec(mode=mode))
            guest.with_kernel("10.5.0.2/24")
            guest.run("ip", "route", "add", "default", "via", "10.5.0.1")
            assert guest.pings("10.5.0.1")
            line = outside.namespace.run(lambda: socket.socket(type=socket.SOCK_DGRAM))
            line.bind(("", 9))
            server = threading.Thread(target=serve, args=(line,))
            server.start()
            try:
                assert answered(guest, "198.51.100.2") == seen_as
            finally:
                ender = outside.namespace.run(lambda: socket.socket(type=socket.SOCK_DGRAM))
                ender.sendto(b"end", ("127.0.0.1", 9))
                server.join()
                ender.close()
                line.close()
            reached = outside.namespace.run(
                lambda: os.waitstatus_to_exitcode(
                    os.spawnlp(os.P_WAIT, "busybox", "busybox", "ping", "-q", "-c", "2", "-W", "1", "10.5.0.2") << 8
                )
            )
            assert (reached == 0) is (mode is NetworkMode.ROUTED), "from outside only what is routed is reached"
        finally:
            outside.namespace.close()


@pytest.mark.parametrize("mode", [NetworkMode.NAT, NetworkMode.ROUTED])
def test_networks_reach_each_other_only_when_routed(mode: NetworkMode) -> None:
    with site(1) as one:
        (node,) = one.nodes
        other = spec(id=OTHER, vni=78, ipv4="10.6.0.0/24", ipv6="", mode=mode)
        left = one.plug(node, nic(2), spec(mode=mode))
        right = one.plug(node, nic(3, OTHER, addresses=("10.6.0.3",)), other)
        left.with_kernel("10.5.0.2/24")
        right.with_kernel("10.6.0.3/24")
        for guest, gateway in ((left, "10.5.0.1"), (right, "10.6.0.1")):
            guest.run("ip", "route", "add", "default", "via", gateway)
            assert guest.pings(gateway)
        assert left.pings("10.6.0.3", 1.5) is (mode is NetworkMode.ROUTED)


def test_a_guest_gets_nothing_of_its_node_but_what_a_network_needs(two: Site) -> None:
    a, _ = two.nodes
    guest = two.plug(a, nic(2), spec())
    guest.with_kernel("10.5.0.2/24")
    assert guest.pings("10.5.0.1")

    def dial() -> socket.socket:
        return socket.create_connection(("10.5.0.1", 2222), timeout=0.5)

    listening = a.call(lambda: socket.create_server(("0.0.0.0", 2222)))
    try:
        assert guest.namespace is not None
        with pytest.raises(TimeoutError):
            guest.namespace.run(dial)
    finally:
        listening.close()


def test_what_comes_to_the_tunnel_from_a_stranger_is_dropped(three: Site) -> None:
    a, b, c = three.nodes
    one, other = nic(2), nic(3)
    left, right = three.plug(a, one, spec()), three.plug(b, other, spec())
    known = three.state(1, place(one, a), place(other, b))
    three.apply(known)
    assert arrives(left, right, udp(one, tell(other), (1, 2)))
    for node in (a, b):
        node.apply(type(known)(spec=spec(), revision=2, endpoints=(a.address, b.address), locations=known.locations))
    forged = b"\x08\0\0\0" + (77).to_bytes(3, "big") + b"\0" + udp(one, tell(other), (6, 6))
    for node, passes in ((c, False), (a, True)):
        with node.call(lambda: socket.socket(type=socket.SOCK_DGRAM)) as line:
            line.sendto(forged, (b.address, 4789))
        heard = right.hears(lambda frame: frame[34:38] == b"\0\6\0\6", within_s=0.5 if not passes else 5)
        assert (heard is not None) is passes


def test_the_file_of_a_network_is_private(two: Site) -> None:
    a, _ = two.nodes
    two.plug(a, nic(2), spec())
    file = Path(a.root / "networks" / f"{NETWORK}.json")
    assert file.stat().st_mode & 0o077 == 0
