"""The lab's network as root: a fabric and one namespace a node, joined by bridges; nothing outside of them.

    fabric    fabric0 (bridge) 10.77.0.1   where the clients are
                 │ n1        │ n2
    node-1    br0 (bridge) 10.77.0.11      node-2    br0 10.77.0.12
                 └ taps of its guests, 10.77.0.100 and up

The addresses exist inside these namespaces only. What is done to the links between is in novacron.lab.links.
"""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from novacron.lab.failure import LabFailed
from novacron.lab.namespaces import Namespace

BRIDGE = "br0"
FABRIC_BRIDGE = "fabric0"
UPLINK = "up0"
_UPLINK_INDEX = 1000  # unlike its peer's: the kernel reports the carrier of a pair with equal indexes a second late
_NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
_NEIGHBOUR_RETRY_MS = 20  # a client that asks for a guest which still boots shall not wait a second to ask again
_CARRIER_DEADLINE_S = 5.0


class Fabric:
    """The namespaces of a lab with `nodes` nodes. `close` lets go of them; they end with what runs inside."""

    def __init__(self, nodes: int) -> None:
        """:raise LabFailed: not root."""
        self.fabric = Namespace()
        self.nodes: list[Namespace] = []
        self.fabric.run(_lay_fabric)
        for number in range(1, nodes + 1):
            self.join(number)

    def settle(self) -> None:
        """Wait until everything forwards: about a second after it was laid.

        :raise LabFailed: a link stays down.
        """
        for namespace in (self.fabric, *self.nodes):
            namespace.run(_wait_for_carriers)

    def join(self, number: int) -> Namespace:
        """Lay the network of node `number`: the next one, or one that has parted."""
        node = Namespace()
        node.run(lambda: _lay_node(self.fabric.fd, port_of(number), node_address(number)))
        self.fabric.run(lambda: _plug(port_of(number)))
        self.nodes[number - 1 :] = [node, *self.nodes[number:]]
        return node

    def part(self, number: int) -> None:
        """Take the link of node `number` away and let go of its namespace, for good."""
        self.fabric.run(lambda: _unplug(port_of(number)))
        self.nodes[number - 1].close()

    def close(self) -> None:
        for namespace in (*self.nodes, self.fabric):
            namespace.close()


def port_of(number: int) -> str:
    """The fabric's end of the link of node `number`."""
    return f"n{number}"


def node_address(number: int) -> str:
    """Where node `number` (from 1) receives migration streams."""
    return str(_NETWORK[10 + number])


def fabric_address() -> str:
    """Where the clients are, and the control plane for agents that dial it over the fabric."""
    return str(_NETWORK[1])


def guest_address(number: int) -> str:
    """The address of guest `number` (from 0), with the prefix, as the guest's kernel command line wants it."""
    return f"{_NETWORK[100 + number]}/{_NETWORK.prefixlen}"


def _lay_fabric() -> None:
    with IPRoute() as ip:
        _bring_up(ip, "lo")
        _add_bridge(ip, FABRIC_BRIDGE, fabric_address())
    # A port that a wire has taken off the bridge must not answer in the bridge's name.
    Path("/proc/sys/net/ipv4/conf/all/arp_ignore").write_text("1")
    (Path("/proc/sys/net/ipv4/neigh") / FABRIC_BRIDGE / "retrans_time_ms").write_text(str(_NEIGHBOUR_RETRY_MS))


def _lay_node(fabric_fd: int, port: str, address: str) -> None:
    with IPRoute() as ip:
        _bring_up(ip, "lo")
        bridge = _add_bridge(ip, BRIDGE, address)
        peer = {"ifname": port, "net_ns_fd": fabric_fd}
        ip.link("add", ifname=UPLINK, index=_UPLINK_INDEX, kind="veth", peer=peer)
        ip.link("set", index=index_of(ip, UPLINK), master=bridge, state="up")


def _plug(port: str) -> None:
    with IPRoute() as ip:
        ip.link("set", index=index_of(ip, port), master=index_of(ip, FABRIC_BRIDGE), state="up")


def _unplug(port: str) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=port):
            ip.link("del", index=index)


def _add_bridge(ip: IPRoute, name: str, address: str) -> int:
    # A hardware address of its own: else a bridge takes its ports' lowest, and with each tap that comes or goes the
    # neighbours send to one it no longer has, until they have asked anew.
    own = "02:" + ":".join(f"{byte:02x}" for byte in (0x77, *ipaddress.IPv4Address(address).packed))
    ip.link("add", ifname=name, kind="bridge", address=own)
    index = index_of(ip, name)
    ip.addr("add", index=index, address=address, prefixlen=_NETWORK.prefixlen)
    ip.link("set", index=index, state="up")
    return index


def _wait_for_carriers() -> None:
    """The kernel reports carriers in its own time, and a bridge forwards nothing before."""
    end = time.monotonic() + _CARRIER_DEADLINE_S
    with IPRoute() as ip:
        while waiting := [link for link in ip.get_links() if link.get("state") == "up" and not _carries(link)]:
            if time.monotonic() > end:
                raise LabFailed.because(f"{waiting[0].get('ifname')} in the lab's network has no carrier")
            time.sleep(0.01)


def _carries(link: Any) -> bool:
    if link.get("ifname") == "lo" or link.get(("linkinfo", "kind")) == "tun":  # of a tap the kernel does not say
        return True
    return bool(link.get("operstate") == "UP")


def _bring_up(ip: IPRoute, name: str) -> None:
    ip.link("set", index=index_of(ip, name), state="up")


def index_of(ip: IPRoute, name: str) -> int:
    """The number of a link in the namespace `ip` speaks to. :raise LabFailed: there is none."""
    for index in ip.link_lookup(ifname=name):
        return int(index)
    raise LabFailed.because(f"there is no {name} in the lab's network")
