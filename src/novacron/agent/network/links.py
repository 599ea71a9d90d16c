"""The bridge and the VXLAN tunnel of one network in this node's kernel, and their forwarding tables."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novacron.agent.network.forwarding import EVERYBODY, Tables
from novacron.agent.network.names import VXLAN_PORT, bridge_name, gateway_mac, tunnel_name
from novacron.agent.network.subnets import Address, Subnet, gateway_of
from novacron.errors import NovaCronError, Reason, Unsupported
from novacron.model.network import NetworkSpec

SYSCTL = Path("/proc/sys/net")
OVERHEAD = {4: 50, 6: 70}  # bytes a frame grows by in the tunnel
_SELF, _MASTER = 2, 4  # whose table an entry is in: the device's own, its bridge's
_STATIC, _PERMANENT = 0x40, 0x80


class Pair(NamedTuple):
    """Interface numbers."""

    bridge: int
    tunnel: int


async def ensure(kernel: AsyncIPRoute, spec: NetworkSpec, here: Address, addresses: Collection[Subnet]) -> Pair:
    """Both, up, as the spec says; those there are stay and are only corrected. addresses: subnets with a gateway here.

    :raise Unsupported: the kernel cannot, or the way to the other nodes is too narrow.
    """
    await _check_width(kernel, spec, here)
    try:
        bridge = await _bridge(kernel, spec, speaks_ipv6=any(one.version == 6 for one in addresses))
        tunnel = await _tunnel(kernel, spec, here, bridge)
    except NetlinkError as refused:
        remedy = "run the agent as root on a kernel with bridge and vxlan"
        raise Unsupported(
            f"this node cannot have network {spec.id}: {refused}",
            [Reason("network.refused", str(refused), spec.id, remedy)],
        ) from refused
    await _answer_at(kernel, bridge, addresses)
    return Pair(bridge, tunnel)


async def existing(kernel: AsyncIPRoute, network_id: str) -> Pair | None:
    """Both, as they are; None: one is missing."""
    bridge, tunnel = await find(kernel, bridge_name(network_id)), await find(kernel, tunnel_name(network_id))
    return Pair(bridge["index"], tunnel["index"]) if bridge is not None and tunnel is not None else None


async def remove(kernel: AsyncIPRoute, network_id: str) -> None:
    """Absent: fine."""
    for name in (tunnel_name(network_id), bridge_name(network_id)):
        link = await find(kernel, name)
        if link is not None:
            await kernel.link("del", index=link["index"])


async def find(kernel: AsyncIPRoute, name: str) -> Any | None:
    """The interface of that name, or None."""
    try:
        return (await kernel.link("get", ifname=name))[0]
    except NetlinkError as refused:
        if refused.code == errno.ENODEV:
            return None
        raise


async def fill(kernel: AsyncIPRoute, pair: Pair, wanted: Tables) -> None:
    """Bring the tables in step with `wanted`: additions first, so that nothing known is unknown in between."""
    own, bridged = await _entries(kernel, pair)
    for mac, endpoint in sorted(wanted.behind - own):
        verb = "append" if mac == EVERYBODY else "replace"
        await kernel.fdb(verb, ifindex=pair.tunnel, lladdr=mac, dst=endpoint, flags=_SELF, state=_PERMANENT)
    for mac in sorted(wanted.remote - {mac for mac, port in bridged.items() if port == pair.tunnel}):
        await place(kernel, mac, pair.tunnel)
    for mac, tap in wanted.local.items():
        link = await find(kernel, tap)
        there = link is not None and link.get("master") == pair.bridge
        if link is not None and there and bridged.get(mac) != link["index"]:
            await place(kernel, mac, link["index"])
    replaced = {mac for mac, _ in wanted.behind if mac != EVERYBODY}
    for mac, endpoint in sorted(own - wanted.behind):
        if mac not in replaced:
            await _gone(kernel.fdb("del", ifindex=pair.tunnel, lladdr=mac, dst=endpoint, flags=_SELF))
    for mac, port in bridged.items():
        if mac not in wanted.remote and mac not in wanted.local:
            await _gone(kernel.fdb("del", ifindex=port, lladdr=mac, flags=_MASTER))
    await _know(kernel, pair.bridge, wanted.neighbours)


async def place(kernel: AsyncIPRoute, mac: str, port: int) -> None:
    """From now on the bridge sends what is for `mac` to this port of it."""
    await kernel.fdb("replace", ifindex=port, lladdr=mac, flags=_MASTER, state=_STATIC)


async def tunnel_address_of(kernel: AsyncIPRoute, here: Address) -> Any | None:
    """The interface that has the node's tunnel address, or None."""
    async for entry in await kernel.addr("dump"):
        if entry.get("address") and ipaddress.ip_address(entry.get("address")) == here:
            return (await kernel.link("get", index=entry["index"]))[0]
    return None


async def _check_width(kernel: AsyncIPRoute, spec: NetworkSpec, here: Address) -> None:
    link = await tunnel_address_of(kernel, here)
    if link is None:
        remedy = "set tunnel_host to an address of the node that the other nodes reach"
        raise Unsupported(
            f"this node has no address {here}", [Reason("tunnel.missing", "no interface has it", str(here), remedy)]
        )
    width, needed = link.get("mtu"), spec.mtu + OVERHEAD[here.version]
    if width < needed:
        name = link.get("ifname")
        raise Unsupported(
            f"network {spec.id} needs {needed} bytes between nodes, and {name} carries {width}",
            [Reason("tunnel.narrow", f"its MTU is {width}", name, f"ip link set {name} mtu {needed}, or a lower mtu")],
        )


async def _bridge(kernel: AsyncIPRoute, spec: NetworkSpec, *, speaks_ipv6: bool) -> int:
    name, mac = bridge_name(spec.id), gateway_mac(spec.id)
    link = await find(kernel, name)
    if link is None:
        quiet = {"br_forward_delay": 0, "br_stp_state": 0, "br_mcast_snooping": 0}
        await kernel.link("add", ifname=name, kind="bridge", address=mac, mtu=spec.mtu, **quiet)
        link = await find(kernel, name)
    if link is None:
        raise NovaCronError(f"the bridge {name} went away meanwhile")
    index: int = link["index"]
    write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "0" if speaks_ipv6 else "1")
    write_sysctl(f"ipv6/conf/{name}/accept_ra", "0")
    write_sysctl(f"ipv6/conf/{name}/accept_dad", "0")  # every node has this address, on purpose
    if link.get("mtu") != spec.mtu or link.get("address") != mac:
        await kernel.link("set", index=index, mtu=spec.mtu, address=mac)
    if link.get("state") != "up":
        await kernel.link("set", index=index, state="up")
    return index


async def _tunnel(kernel: AsyncIPRoute, spec: NetworkSpec, here: Address, bridge: int) -> int:
    name, local = tunnel_name(spec.id), "vxlan_local" if here.version == 4 else "vxlan_local6"
    link = await find(kernel, name)
    if link is not None and _differs(link, spec, here):
        await kernel.link("del", index=link["index"])
        link = None
    if link is None:
        where = {"vxlan_id": spec.vni, local: str(here), "vxlan_port": VXLAN_PORT, "vxlan_learning": 0}
        await kernel.link("add", ifname=name, kind="vxlan", mtu=spec.mtu, **where)
        link = await find(kernel, name)
    if link is None:
        raise NovaCronError(f"the tunnel {name} went away meanwhile")
    index: int = link["index"]
    write_sysctl(f"ipv6/conf/{name}/disable_ipv6", "1")
    if link.get("mtu") != spec.mtu:
        await kernel.link("set", index=index, mtu=spec.mtu)
    if link.get("master") != bridge:
        await kernel.link("set", index=index, master=bridge)
        await kernel.brport("set", index=index, learning=0)
    if link.get("state") != "up":
        await kernel.link("set", index=index, state="up")
    return index


def _differs(link: Any, spec: NetworkSpec, here: Address) -> bool:
    data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    local = data.get("vxlan_local") if here.version == 4 else data.get("vxlan_local6")
    return bool(data.get("vxlan_id") != spec.vni or local != str(here))


async def _answer_at(kernel: AsyncIPRoute, bridge: int, wanted: Collection[Subnet]) -> None:
    """The gateway addresses on the bridge, and no other of ours."""
    want = {(str(gateway_of(one)), one.prefixlen) for one in wanted}
    have: set[tuple[str, int]] = set()
    async for entry in await kernel.addr("dump", index=bridge):
        if entry["index"] == bridge and not ipaddress.ip_address(entry.get("address")).is_link_local:
            have.add((entry.get("address"), entry["prefixlen"]))
    for address, length in have - want:
        await kernel.addr("del", index=bridge, address=address, prefixlen=length)
    for address, length in want - have:
        nodad = {} if ":" not in address else {"flags": 0x02}
        await kernel.addr("add", index=bridge, address=address, prefixlen=length, **nodad)


async def _entries(kernel: AsyncIPRoute, pair: Pair) -> tuple[set[tuple[str, str]], dict[str, int]]:
    """The tunnel's own entries, and the bridge's fixed ones: port by MAC."""
    own: set[tuple[str, str]] = set()
    bridged: dict[str, int] = {}
    async for entry in await kernel.fdb("dump"):
        mac = entry.get("lladdr")
        if entry["ifindex"] == pair.tunnel and entry.get("dst"):
            own.add((mac, entry.get("dst")))
        elif entry.get("master") == pair.bridge and entry["state"] == _STATIC:
            bridged[mac] = entry["ifindex"]
    return own, bridged


async def _know(kernel: AsyncIPRoute, bridge: int, wanted: Collection[tuple[str, str]]) -> None:
    have: set[tuple[str, str]] = set()
    async for entry in await kernel.get_neighbours(ifindex=bridge):
        if entry["ifindex"] == bridge and entry["state"] == _PERMANENT:
            have.add((entry.get("dst"), entry.get("lladdr")))
    for address, mac in set(wanted) - have:
        await kernel.neigh("replace", ifindex=bridge, dst=address, lladdr=mac, state=_PERMANENT)
    still = {address for address, _ in wanted}
    for address, mac in have - set(wanted):
        if address not in still and not ipaddress.ip_address(address).is_multicast:
            await _gone(kernel.neigh("del", ifindex=bridge, dst=address, lladdr=mac))


async def _gone(deletion: Any) -> None:
    try:
        await deletion
    except NetlinkError as refused:
        if refused.code not in (errno.ENOENT, errno.ENODEV, errno.EADDRNOTAVAIL):
            raise


def write_sysctl(name: str, value: str) -> None:
    """Absent (a kernel without IPv6): fine."""
    file = SYSCTL / name
    if file.exists() and file.read_text().strip() != value:
        file.write_text(value)
