"""What passes a card: real frames through a real kernel's bridge, with the filters of NovaCron in between."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.network import frames, nft
from novacron.agent.network.conversations import set_name
from novacron.agent.network.firewall import TABLE
from novacron.agent.network.names import overlay_tap
from novacron.agent.network.subnets import address
from novacron.errors import NovaCronError
from novacron.model.machine import MachineSpec, Nic
from novacron.model.network import Direction, Flow, PortFilter, Protocol, Rule
from tests.agent.overlay_nodes import VM, Guest, Site, ipv4, nic, octets, place, site, spec, udp

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]

FREE = nic(2)
STRANGER = "52:54:00:00:00:77"
MARKS = (f"{number >> 8 & 255}.{number & 255}" for number in itertools.count(1))
OUT_ANY = Rule(direction=Direction.OUT)


def guarded(*rules: Rule, revision: int = 1, number: int = 3) -> Nic:
    card = nic(number)
    return nic(
        number, filter=PortFilter(revision=revision, addresses=card.addresses, stateful=True, rules=tuple(rules))
    )


@pytest.fixture
def one() -> Iterator[Site]:
    with site(1) as made:
        yield made


def tell(to: Nic) -> tuple[str, str]:
    return to.mac, to.addresses[0]


def tcp(card: Nic, peer: Nic, ports: tuple[int, int], flags: str) -> bytes:
    bits = sum({"F": 1, "S": 2, "R": 4, "A": 16}[flag] for flag in flags)
    return ipv4(card, tell(peer), 6, struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, bits, 1024, 0, 0))


def arrives(sender: Guest, receiver: Guest, frame: bytes) -> bool:
    """Whether a frame comes through. ARP always does: what is sent after the frame says when to wait no more."""
    meet(sender, receiver)
    sender.send(frame)
    return meet(sender, receiver, frame)


def meet(sender: Guest, receiver: Guest, frame: bytes = b"") -> bool:
    """Speak until it is heard. Whether `frame` was heard before, or right after."""
    came = False
    for _ in range(50):
        mark = frames._arp(0x0806, 1, sender.card.mac, address(sender.card.addresses[0], ""), "00:00:00:00:00:00",
            address(f"198.18.{next(MARKS)}", ""))  # fmt: skip
        sender.send(mark)
        while (got := receiver.hears(lambda got: True, within_s=0.2)) is not None:
            came = came or (bool(frame) and got[12:] == frame[12:])
            if got == mark:
                return came or bool(frame and receiver.hears(lambda got: got[12:] == frame[12:], within_s=0.02))
    raise AssertionError("not even ARP is heard")


# -- who speaks ----------------------------------------------------------------------------------------------


def test_a_card_speaks_in_its_own_name_alone(one: Site) -> None:
    node = one.nodes[0]
    a, b = one.plug(node, FREE, spec()), one.plug(node, nic(3), spec())
    to = tell(b.card)
    honest = udp(FREE, to, (1000, 2000))
    assert arrives(a, b, honest)
    advert6 = frames._neighbour(134, FREE.mac, *(address("fe80::5054:ff:fe00:2", ""),) * 2, address("ff02::1", ""), 0)
    theirs6 = frames.announcements(FREE.mac, [address("fd05::9", "")])[1]
    own_address, everybody = address(FREE.addresses[1], ""), address("ff02::1", "")
    claim6 = frames._neighbour(136, FREE.mac, address("fd05::9", ""), own_address, everybody, 0)
    lies = {
        "another's MAC": udp(FREE, to, (1000, 2000), mac=STRANGER),
        "another's address": udp(FREE, to, (1000, 2000), sender="10.5.0.9"),
        "no address, no DHCP": udp(FREE, to, (1000, 2000), sender="0.0.0.0"),
        "a DHCP server": udp(FREE, to, (67, 68)),
        "a DHCPv6 server": udp(FREE, to, (547, 546)),
        "another's address by ARP": frames.announcements(FREE.mac, [address("10.5.0.9", "")])[1],
        "another's MAC by ARP": octets(b.card.mac) + octets(FREE.mac) + frames.announcements(STRANGER, [
            address(FREE.addresses[0], "")])[1][12:],
        "a router": advert6,
        "another's IPv6 address": theirs6,
        "another's address by neighbour discovery": claim6,
        "RARP": frames.announcements(FREE.mac, [])[0],
        "a VLAN": honest[:12] + b"\x81\x00\x00\x05" + honest[12:],
        "an unknown protocol": honest[:12] + b"\x88\xb5" + honest[14:],
    }  # fmt: skip
    came = [name for name, frame in lies.items() if arrives(a, b, frame)]
    assert came == []
    own6 = frames.announcements(FREE.mac, [address(FREE.addresses[1], "")])
    for truth in (frames.announcements(FREE.mac, [address(FREE.addresses[0], "")])[1], own6[1], own6[2]):
        assert arrives(a, b, truth)
    assert arrives(a, b, honest)


def test_without_anti_spoofing_a_card_may_route_for_others(one: Site) -> None:
    node = one.nodes[0]
    router = nic(2, filter=PortFilter(anti_spoofing=False))
    a, b = one.plug(node, router, spec()), one.plug(node, nic(3), spec())
    assert arrives(a, b, udp(FREE, tell(b.card), (1000, 2000), sender="198.51.100.7"))


def test_a_card_does_not_overhear_others(one: Site) -> None:
    node = one.nodes[0]
    a, b = one.plug(node, FREE, spec()), one.plug(node, nic(3), spec())
    assert not arrives(a, b, udp(FREE, (STRANGER, "10.5.0.4"), (1, 2))), "flooded, for the bridge knows no such MAC"


def test_a_tap_is_cut_off_until_its_filter_is_there(one: Site) -> None:
    node = one.nodes[0]
    a, b = one.plug(node, FREE, spec()), one.plug(node, nic(3), spec())
    node.do(nft.apply([TABLE.unsend("from", overlay_tap(FREE.id))]))
    a.send(udp(FREE, tell(b.card), (1000, 2000)))
    assert b.hears(lambda got: got[12:14] == b"\x08\x00", within_s=0.3) is None
    node.do(nft.apply([TABLE.send("from", overlay_tap(FREE.id), f"from-{overlay_tap(FREE.id)}")]))
    assert arrives(a, b, udp(FREE, tell(b.card), (1000, 2000)))


# -- what may begin ------------------------------------------------------------------------------------------


def test_what_no_rule_lets_begin_is_dropped_and_answers_pass(one: Site) -> None:
    node = one.nodes[0]
    web = Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=80, port_last=81, cidr="10.5.0.0/28")
    out = Rule(direction=Direction.OUT, protocol=Protocol.UDP, port_first=53)
    card = guarded(web, out)
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())
    assert arrives(a, b, tcp(FREE, card, (5000, 80), "S"))
    assert arrives(b, a, tcp(card, FREE, (80, 5000), "SA"))
    assert arrives(a, b, tcp(FREE, card, (5000, 81), "S"))
    for port in (79, 82):
        assert not arrives(a, b, tcp(FREE, card, (5000, port), "S"))
    assert not arrives(b, a, tcp(card, FREE, (80, 5001), "SA")), "nobody asked from that port"
    assert not arrives(a, b, udp(FREE, tell(card), (53, 4000))), "an answer to nothing"
    assert arrives(b, a, udp(card, tell(FREE), (4000, 53)))
    assert arrives(a, b, udp(FREE, tell(card), (53, 4000)))
    assert not arrives(a, b, udp(FREE, tell(card), (53, 4001)))
    assert not arrives(b, a, udp(card, tell(FREE), (4000, 54)))
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    assert not arrives(a, b, ipv4(FREE, tell(card), 1, echo))
    assert arrives(a, b, frames.announcements(FREE.mac, [address(FREE.addresses[0], "")])[1]), "ARP is free"


def test_a_peer_outside_of_the_rules_subnet_may_not_begin(one: Site) -> None:
    node = one.nodes[0]
    far = nic(4, addresses=("10.5.0.200", "fd05::c8"))
    card = guarded(Rule(direction=Direction.IN, cidr="10.5.0.0/28"))
    a, b = one.plug(node, far, spec()), one.plug(node, card, spec())
    assert not arrives(a, b, tcp(far, card, (5000, 80), "S"))
    echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    assert not arrives(a, b, ipv4(far, tell(card), 1, echo))
    near = one.plug(node, FREE, spec())
    assert arrives(near, b, ipv4(FREE, tell(card), 1, echo))
    assert arrives(b, near, ipv4(card, tell(FREE), 1, b"\0" + echo[1:]))
    assert arrives(near, b, ipv4(FREE, tell(card), 47, b"gre-like"))


def test_real_conversations_of_two_kernels(one: Site) -> None:
    """TCP and IPv6 with everything a kernel does around them: ARP, neighbour discovery, FIN, RST."""
    node = one.nodes[0]
    card = guarded(Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=80), OUT_ANY)
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())
    left, right = a.with_kernel("10.5.0.2/24", "fd05::2/64"), b.with_kernel("10.5.0.3/24", "fd05::3/64")
    for family, to in ((socket.AF_INET, "10.5.0.3"), (socket.AF_INET6, "fd05::3")):

        def listen(port: int, family: int = family) -> socket.socket:
            made = socket.socket(family)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("", port))
            made.listen()
            made.settimeout(5)
            return made

        def dial(port: int, family: int = family, to: str = to) -> socket.socket:
            made = socket.socket(family)
            made.settimeout(3 if port == 80 else 0.3)
            made.connect((to, port))
            return made

        with right.run(lambda: listen(80)) as open_door, right.run(lambda: listen(81)):
            with left.run(lambda: dial(80)) as ours, open_door.accept()[0] as theirs:
                ours.sendall(b"x" * 100_000)
                got = 0
                theirs.settimeout(5)
                while got < 100_000:
                    got += len(theirs.recv(1 << 16))
                theirs.sendall(b"thanks")
                assert ours.recv(10) == b"thanks"
            with pytest.raises(TimeoutError):
                left.run(lambda: dial(81))
    assert b.pings("10.5.0.2")
    assert b.pings("fd05::2")
    assert not a.pings("10.5.0.3", 0.5)


def test_a_changed_rule_keeps_conversations_and_a_full_change_is_atomic(one: Site) -> None:
    node = one.nodes[0]
    card = guarded(Rule(direction=Direction.IN, protocol=Protocol.UDP, port_first=7))
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())
    assert arrives(a, b, udp(FREE, tell(card), (1000, 7)))
    closed = guarded(revision=2).filter
    assert closed is not None
    where = place(FREE, node), place(card, node)
    node.apply(one.state(1, *where, filters={card.mac: closed}))
    assert arrives(a, b, udp(FREE, tell(card), (1000, 7))), "it had begun before"
    assert not arrives(a, b, udp(FREE, tell(card), (1001, 7)))
    before = node.run("nft", "-s", "list", "table", "bridge", "novacron")
    with pytest.raises(NovaCronError):
        node.do(nft.apply([*TABLE.chain(f"in-{overlay_tap(card.id)}"), TABLE.drop_set("no-such")]))
    assert node.run("nft", "-s", "list", "table", "bridge", "novacron") == before
    older = msgspec.structs.replace(card.filter, revision=1) if card.filter else None
    assert older is not None
    node.apply(one.state(2, *where, filters={card.mac: older}))
    assert not arrives(a, b, udp(FREE, tell(card), (1002, 7))), "an older filter changes nothing"


# -- what belongs to a conversation -----------------------------------------------------------------------------


def test_later_fragments_follow_a_first_one_that_passed(one: Site) -> None:
    node = one.nodes[0]
    for reassembles in Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"):
        node.call(lambda reassembles=reassembles: reassembles.write_text("0"))
    card = guarded(Rule(direction=Direction.IN, protocol=Protocol.UDP, port_first=7))
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())
    later = ipv4(FREE, tell(card), 17, b"z" * 64, part=172)
    assert not arrives(a, b, later)
    head = struct.pack("!HHHH", 1000, 7, 1440, 0) + b"y" * 1368
    assert arrives(a, b, ipv4(FREE, tell(card), 17, head, part=0x2000))
    assert arrives(a, b, later)


def test_an_error_about_ones_own_packet_passes_and_a_made_up_one_does_not(one: Site) -> None:
    node = one.nodes[0]
    card = guarded(Rule(direction=Direction.OUT, protocol=Protocol.TCP))
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())
    sent = tcp(card, FREE, (4000, 80), "A")
    too_big = struct.pack("!BBHHH", 3, 4, 0, 0, 1280)
    assert arrives(a, b, ipv4(FREE, tell(card), 1, too_big + sent[14:42]))
    foreign = tcp(nic(4), FREE, (4000, 80), "A")
    assert not arrives(a, b, ipv4(FREE, tell(card), 1, too_big + foreign[14:42]))
    redirect = struct.pack("!BBHI", 5, 1, 0, 1)
    assert not arrives(a, b, ipv4(FREE, tell(card), 1, redirect + sent[14:42]))
    quoted = struct.pack("!IHBB", 6 << 28, 20, 6, 64) + b"".join(
        socket.inet_pton(socket.AF_INET6, one) for one in (card.addresses[1], FREE.addresses[1])
    )
    for source, passes in ((quoted, True), (quoted[:23] + b"\x99" + quoted[24:], False)):
        body = struct.pack("!BBHI", 2, 0, 0, 1280) + source + bytes(20)
        header = struct.pack("!IHBB", 6 << 28, len(body), 58, 64) + b"".join(
            socket.inet_pton(socket.AF_INET6, one) for one in (FREE.addresses[1], card.addresses[1])
        )
        frame = octets(card.mac) + octets(FREE.mac) + b"\x86\xdd" + header + body
        assert arrives(a, b, frame) is passes


def test_a_conversation_that_ends_is_soon_forgotten(one: Site) -> None:
    node = one.nodes[0]
    card = guarded(Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=80))
    a, b = one.plug(node, FREE, spec()), one.plug(node, card, spec())

    def left_s() -> int:
        name = set_name("open", 4, overlay_tap(card.id))
        (held,) = node.do(nft.elements(TABLE, [name]))[name]
        left: int = held["elem"]["expires"]
        return left

    assert arrives(a, b, tcp(FREE, card, (5000, 80), "S"))
    assert left_s() <= 60
    assert arrives(b, a, tcp(card, FREE, (80, 5000), "SA"))
    assert left_s() <= 60, "a flood of beginnings passes away soon"
    assert arrives(a, b, tcp(FREE, card, (5000, 80), "A"))
    assert left_s() > 7000
    assert arrives(a, b, tcp(FREE, card, (5000, 80), "FA"))
    assert arrives(b, a, tcp(card, FREE, (80, 5000), "A"))
    assert left_s() <= 120
    assert arrives(a, b, tcp(FREE, card, (5000, 80), "S"))
    assert arrives(a, b, tcp(FREE, card, (5000, 80), "A"))
    assert left_s() > 7000, "the same ports, a new conversation"


# -- moving along ------------------------------------------------------------------------------------------------


def machine(card: Nic, generation: int = 1) -> MachineSpec:
    return MachineSpec(vm_id=VM % 1, generation=generation, vcpus=1, memory_mib=64, nics=(card,), networks=(spec(),))


def test_conversations_go_on_at_another_node() -> None:
    with site(2) as two:
        a, b = two.nodes
        card = guarded(
            Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=80),
            Rule(direction=Direction.IN, protocol=Protocol.ICMP),
            Rule(direction=Direction.OUT, protocol=Protocol.UDP, port_first=53),
        )
        peer, source = two.plug(a, FREE, spec()), two.plug(a, card, spec())
        echo = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
        for frame in (
            tcp(FREE, card, (5000, 80), "S"),
            tcp(FREE, card, (5000, 80), "A"),
            ipv4(FREE, tell(card), 1, echo),
        ):
            assert arrives(peer, source, frame)
        assert arrives(source, peer, udp(card, tell(FREE), (4000, 53)))
        luggage = a.do(a.movements.leaving(machine(card)))
        assert {(flow.protocol, flow.port, flow.peer_port) for flow in luggage.flows} == {
            (Protocol.TCP, 80, 5000),
            (Protocol.ICMP, 0, 0),
            (Protocol.UDP, 4000, 53),
        }
        ours = [flow for flow in luggage.flows if not flow.peer_address.startswith("fe80:")]  # the gateway's own MLD
        assert {(flow.mac, flow.address, flow.peer_address) for flow in ours} == {(card.mac, "10.5.0.3", "10.5.0.2")}
        travelled = msgspec.json.decode(msgspec.json.encode(luggage.flows), type=tuple[Flow, ...])
        strict = guarded(revision=2)  # nothing may begin there: only what is brought along passes
        target = two.plug(b, strict, spec())
        two.apply(two.state(1, place(FREE, a), place(card, a)))
        more = [msgspec.structs.replace(travelled[0], peer_port=port, left_s=50) for port in range(10_000, 12_000)]
        b.do(b.movements.arriving(machine(strict, 2), (*travelled, *more)))
        b.do(b.movements.arrived(machine(strict, 2)))
        two.apply(two.state(2, place(FREE, a), place(strict, b, 2)))
        assert arrives(peer, target, tcp(FREE, card, (5000, 80), "A"))
        assert arrives(target, peer, tcp(card, FREE, (80, 5000), "A"))
        assert arrives(peer, target, udp(FREE, tell(card), (53, 4000)))
        assert not arrives(peer, target, tcp(FREE, card, (5001, 80), "S"))
        b.do(b.movements.close())
        assert len(b.do(b.movements.leaving(machine(strict, 2))).flows) == len(travelled) + len(more), "the rest, too"
