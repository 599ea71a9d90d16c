"""The lab's network as root: a fabric and one namespace a node, joined by bridges; nothing outside of them.

    fabric    fabric0 (bridge) 10.77.0.1   where the clients are
                 │ n1        │ n2
    node-1    br0 (bridge) 10.77.0.11      node-2    br0 10.77.0.12
                 └ taps of its guests, 10.77.0.100 and up

The addresses exist inside these namespaces only.
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
_FABRIC_BRIDGE = "fabric0"
_UPLINK = "up0"
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
            self.nodes.append(self._join(number))

    def settle(self) -> None:
        """Wait until everything forwards: about a second after it was laid.

        :raise LabFailed: a link stays down.
        """
        for namespace in (self.fabric, *self.nodes):
            namespace.run(_wait_for_carriers)

    def _join(self, number: int) -> Namespace:
        node, port = Namespace(), f"n{number}"
        node.run(lambda: _lay_node(self.fabric.fd, port, node_address(number)))
        self.fabric.run(lambda: _plug(port))
        return node

    def close(self) -> None:
        for namespace in (*self.nodes, self.fabric):
            namespace.close()


def node_address(number: int) -> str:
    """Where node `number` (from 1) receives migration streams."""
    return str(_NETWORK[10 + number])


def guest_address(number: int) -> str:
    """The address of guest `number` (from 0), with the prefix, as the guest's kernel command line wants it."""
    return f"{_NETWORK[100 + number]}/{_NETWORK.prefixlen}"


def _lay_fabric() -> None:
    with IPRoute() as ip:
        _bring_up(ip, "lo")
        _add_bridge(ip, _FABRIC_BRIDGE, str(_NETWORK[1]))
    (Path("/proc/sys/net/ipv4/neigh") / _FABRIC_BRIDGE / "retrans_time_ms").write_text(str(_NEIGHBOUR_RETRY_MS))


def _lay_node(fabric_fd: int, port: str, address: str) -> None:
    with IPRoute() as ip:
        _bring_up(ip, "lo")
        bridge = _add_bridge(ip, BRIDGE, address)
        peer = {"ifname": port, "net_ns_fd": fabric_fd}
        ip.link("add", ifname=_UPLINK, index=_UPLINK_INDEX, kind="veth", peer=peer)
        ip.link("set", index=_index(ip, _UPLINK), master=bridge, state="up")


def _plug(port: str) -> None:
    with IPRoute() as ip:
        ip.link("set", index=_index(ip, port), master=_index(ip, _FABRIC_BRIDGE), state="up")


def _add_bridge(ip: IPRoute, name: str, address: str) -> int:
    # A hardware address of its own: else a bridge takes its ports' lowest, and with each tap that comes or goes the
    # neighbours send to one it no longer has, until they have asked anew.
    own = "02:" + ":".join(f"{byte:02x}" for byte in (0x77, *ipaddress.IPv4Address(address).packed))
    ip.link("add", ifname=name, kind="bridge", address=own)
    index = _index(ip, name)
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
    return bool(link.get("ifname") == "lo" or link.get("operstate") == "UP")


def _bring_up(ip: IPRoute, name: str) -> None:
    ip.link("set", index=_index(ip, name), state="up")


def _index(ip: IPRoute, name: str) -> int:
    index: int = ip.link_lookup(ifname=name)[0]
    return index
