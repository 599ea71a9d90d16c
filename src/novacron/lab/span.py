"""The demo's network: one of NovaCron's that spans the nodes, and the way into it for the client in the fabric.

    client ── fabric0 ── route to 10.20.0.0/24 by node-3 ── node-3 (gateway) ══ VXLAN ══ node-1, later node-2: the VM

The network is `routed`: the routers around must know the way, and the fabric is the router around. A node is on a
network while a machine there has a card on it, so a small neighbour keeps node-3 on it whatever moves. Answers leave
by the gateway of the node where the VM is.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from pyroute2 import IPRoute

from novacron.client import devices, images, networks, nodes, vms
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab
from novacron.lab.network import BRIDGE, guest_address
from novacron.lab.rom import rom
from novacron.model.image import FileRole

NODES = 3
NETWORK = "demo"
NEIGHBOUR = "neighbour"
_NEIGHBOUR_IMAGE = "lab-ticker"
_NEIGHBOUR_MIB = 32
_SUBNET = ipaddress.IPv4Network("10.20.0.0/24")
_ABILITY = "overlay"


class Way(NamedTuple):
    """How a VM is on a network: its card, the words its kernel needs, and where its client finds it."""

    nic: devices.NicIn
    words: str
    address: str


def bridged() -> Way:
    """On the bridge that spans the lab's nodes."""
    address = guest_address(0)
    nic = devices.NicIn(network="bridge", bridge=BRIDGE)
    return Way(nic, f"novacron.ip={address}", address.partition("/")[0])


async def lay(lab: Lab) -> Way:
    """A network over the nodes, a neighbour on the last of them, and the fabric's way there.

    Where the nodes cannot have such networks: the bridge.
    """
    last = lab.nodes[-1]
    facts = (await lab.client.do(nodes.get(last))).facts
    if facts is None or _ABILITY not in facts.abilities:
        return bridged()
    await lab.client.do(networks.create(networks.NetworkCreate(name=NETWORK, ipv4=str(_SUBNET), mode="routed")))
    await _neighbour(lab, last)
    if lab.fabric:
        lab.fabric.fabric.run(lambda: _route(lab.node(last).address))
    address = str(_SUBNET[10])
    nic = devices.NicIn(network="overlay", net=NETWORK, addresses=[address])
    return Way(nic, f"novacron.ip={address}/{_SUBNET.prefixlen} novacron.gw={_SUBNET[1]}", address)


async def _neighbour(lab: Lab, node: str) -> None:
    await lab.client.do(images.create(images.ImageCreate(name=_NEIGHBOUR_IMAGE)))
    await lab.client.upload(_NEIGHBOUR_IMAGE, FileRole.FIRMWARE, rom(lab.path / "rom"))
    await lab.client.do(images.seal(_NEIGHBOUR_IMAGE))
    nic = devices.NicIn(network="overlay", net=NETWORK)
    wish = vms.VmCreate(name=NEIGHBOUR, image=_NEIGHBOUR_IMAGE, memory_mib=_NEIGHBOUR_MIB, node=node, nics=[nic])
    await lab.client.do(vms.create(wish))
    await lab.client.wait_vm(NEIGHBOUR, vm_settles("running"))


def _route(gateway: str) -> None:
    with IPRoute() as ip:
        ip.route("add", dst=str(_SUBNET), gateway=gateway)
