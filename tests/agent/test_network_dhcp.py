"""A real dnsmasq for each network and node, asked by real clients."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novacron.agent.network import dhcp, overlay
from novacron.agent.network.names import bridge_name
from novacron.model.machine import Nic
from novacron.model.network import Addressing, NetworkMode, PortFilter
from tests.agent.overlay_nodes import NETWORK, Guest, Node, Site, nic, octets, place, site, spec, udp

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: makes network namespaces")
pytestmark = [pytest.mark.system, pytest.mark.root, needs_root]

MANAGED = spec(mode=NetworkMode.NAT, dns=("192.0.2.53", "2001:db8::53"), mtu=1400)


@pytest.fixture
def one() -> Iterator[Site]:
    with site(1) as made:
        yield made


def discover(card: Nic) -> bytes:
    body = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 0x1234, 0, 0x8000) + octets(card.mac) + bytes(10 + 64 + 128)
    body += b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\x37\x04\x01\x03\x06\x1a" + b"\xff"
    return udp(card, ("ff:ff:ff:ff:ff:ff", "255.255.255.255"), (68, 67), body, sender="0.0.0.0")


def offered(guest: Guest, within_s: float = 5.0) -> dict[int, bytes] | None:
    """The options of the offer a card gets, with its address as 0; None: none."""
    end = time.monotonic() + within_s
    for _ in guest.frames(0.05):
        pass  # an offer of before
    while time.monotonic() < end:
        guest.send(discover(guest.card))
        got = guest.hears(lambda frame: frame[12:14] == b"\x08\x00" and frame[34:36] == b"\x00\x43", within_s=0.5)
        if got is not None:
            reply = got[42:]
            options, at = {0: reply[16:20]}, 240
            while reply[at] != 255:
                options[reply[at]] = reply[at + 2 : at + 2 + reply[at + 1]]
                at += 2 + reply[at + 1]
            return options
    return None


def address(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def test_a_card_is_offered_its_own_address_and_all_it_needs(one: Site) -> None:
    guest = one.plug(one.nodes[0], nic(2), MANAGED)
    got = offered(guest)
    assert got is not None
    assert got[0] == address("10.5.0.2")
    assert got[1] == address("255.255.255.0")
    assert got[3] == address("10.5.0.1")
    assert got[6] == address("192.0.2.53")
    assert struct.unpack("!H", got[26]) == (1400,)
    pid = one.nodes[0].overlay._servers.pid(NETWORK)
    assert pid is not None
    assert "Uid:\t65534" in Path(f"/proc/{pid}/status").read_text()


def test_an_isolated_network_has_no_router(one: Site) -> None:
    guest = one.plug(one.nodes[0], nic(2), spec())
    got = offered(guest)
    assert got is not None
    assert 3 not in got


def test_strange_cards_get_no_answer(one: Site) -> None:
    node = one.nodes[0]
    known = one.plug(node, nic(2), MANAGED)
    strange = one.plug(node, nic(3, addresses=(), filter=PortFilter()), MANAGED)
    assert offered(known) is not None
    strange.send(discover(strange.card))
    assert offered(known) is not None
    assert strange.hears(lambda frame: frame[70:76] == octets(strange.card.mac), within_s=0.1) is None


def test_a_stateful_card_that_allows_nothing_still_gets_its_address(one: Site) -> None:
    card = nic(2)
    closed = nic(2, filter=PortFilter(addresses=card.addresses, stateful=True))
    guest = one.plug(one.nodes[0], closed, MANAGED)
    assert offered(guest) is not None


def test_a_real_client_configures_a_real_kernel_over_both_protocols(one: Site, tmp_path: Path) -> None:
    node = one.nodes[0]
    guest = one.plug(node, nic(2), MANAGED)
    guest.with_kernel(mtu=1450)
    script = tmp_path / "bound"
    script.write_text(f"#!/bin/sh\necho $1 $ip $router $dns $mtu >> {tmp_path / 'told'}\n")
    script.chmod(0o700)
    guest.run("busybox", "udhcpc", "-i", "eth0", "-O", "mtu", "-n", "-q", "-t", "20", "-T", "1", "-s", str(script))
    assert "bound 10.5.0.2 10.5.0.1 192.0.2.53 1400" in (tmp_path / "told").read_text()

    def routed() -> bool:
        return "fe80::" in guest.run("ip", "-6", "route", "show", "default")

    until(routed)
    assert guest.run("cat", "/proc/sys/net/ipv6/conf/eth0/mtu").strip() == "1400"


def test_every_node_answers_its_own_and_no_other() -> None:
    with site(2) as two:
        a, b = two.nodes
        here, there = nic(2), nic(3)
        left, right = two.plug(a, here, MANAGED), two.plug(b, there, MANAGED)
        two.apply(two.state(1, place(here, a), place(there, b), of=MANAGED))
        assert offered(left) is not None
        assert offered(right) is not None
        a.do(a.overlay._servers.end(NETWORK))
        left.send(discover(left.card))
        assert offered(right) is not None
        assert left.hears(lambda frame: frame[34:36] == b"\x00\x43", within_s=0.3) is None, (
            "b answered through the tunnel"
        )


def test_it_learns_new_cards_outlives_the_agent_and_comes_back_when_it_died(
    one: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = one.nodes[0]
    first, second = nic(2), nic(3)
    left = one.plug(node, first, MANAGED)
    pid = serving(node)
    right = one.plug(node, second, MANAGED)
    assert serving(node) == pid, "told, not started anew"
    assert offered(right) is not None
    node.start()
    node.do(node.overlay.adopt())
    assert serving(node) == pid, "adopted"
    monkeypatch.setattr(overlay, "TEND_S", 0.05)
    tending = node.call(lambda: asyncio.ensure_future(node.overlay.tend()))
    os.kill(pid, signal.SIGKILL)
    until(lambda: node.overlay._servers.pid(NETWORK) not in (None, pid))
    node.call(tending.cancel)
    assert offered(left) is not None
    other = spec(mode=NetworkMode.NAT, mtu=1300)
    node.apply(one.state(2, place(first, node), place(second, node), of=other))
    got = offered(left)
    assert got is not None
    assert struct.unpack("!H", got[26]) == (1300,)


def test_it_goes_when_nothing_is_managed_any_more(one: Site) -> None:
    node = one.nodes[0]
    one.plug(node, nic(2), MANAGED)
    serving(node)
    node.apply(one.state(1, place(nic(2), node), of=spec(addressing=Addressing.STATIC)))
    assert node.overlay._servers.pid(NETWORK) is None
    assert "10.5.0.1" not in node.run("ip", "addr", "show", bridge_name(NETWORK))


def test_dnsmasq_itself_finds_the_settings_right(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(dhcp.hosts({"52:54:00:00:00:01": ("10.5.0.2", "fd05::2"), "52:54:00:00:00:02": ("fd05::3",)}))
    for mode in NetworkMode:
        conf = tmp_path / "conf"
        conf.write_text(dhcp.settings(spec(mode=mode, dns=MANAGED.dns), "ncb-0", str(hosts), str(tmp_path / "pid")))
        done = subprocess.run(["dnsmasq", "--test", f"--conf-file={conf}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def serving(node: Node) -> int:
    pid = node.overlay._servers.pid(NETWORK)
    assert pid is not None
    return pid


def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
