"""Whether a network may be as asked: pure; every refusal names its field.

Two networks may overlap unless nodes have an address in both: a node that routes or answers DHCP in two networks finds
a guest by its address alone, and could deliver to a stranger. Nodes have no address in a network that is isolated and
whose addresses they do not manage, so that it may reuse what another has. A changed mode is checked again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence

from novacron.control.networks.cards import Subnet, subnets_of
from novacron.errors import Conflict, InvalidInput, NoRoom, Reason
from novacron.model.network import Addressing, Network, NetworkMode, NetworkSpec
from novacron.model.node import Node
from novacron.model.vm import Vm

FIRST_VNI = 4096
MAX_VNI = (1 << 24) - 1
"""Chosen ones begin where nobody numbers by hand."""

MIN_MTU6 = 1280
USABLE6 = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("fc00::/7"))


def check(network: Network, others: Iterable[Network], nodes: Iterable[Node]) -> None:
    """The whole record beside all others.

    :raise InvalidInput: a subnet is of a kind or size no network can have, or holds a node's own address.
    :raise Conflict: its VNI is taken, or a subnet overlaps that of another network.
    """
    _check_whole(network.spec)
    for subnet in subnets_of(network.spec):
        _check_subnet(subnet)
        _check_nodes(subnet, nodes)
    for other in others:
        if other.id != network.id:
            _check_other(network, other)


def _check_whole(spec: NetworkSpec) -> None:
    if not subnets_of(spec) and (spec.addressing is not Addressing.NONE or spec.mode is not NetworkMode.ISOLATED):
        remedy = "give ipv4, ipv6 or both; without, addressing is none and mode isolated"
        raise InvalidInput.field("ipv4", "a network that manages addresses or has a gateway needs a subnet", remedy)
    if spec.ipv6 and spec.mtu < MIN_MTU6:
        raise InvalidInput.field("ipv6", f"needs an mtu of {MIN_MTU6} at least", f"this network has {spec.mtu}")


def _check_subnet(subnet: Subnet) -> None:
    field = f"ipv{subnet.version}"
    if isinstance(subnet, ipaddress.IPv4Network):
        if not 8 <= subnet.prefixlen <= 30:
            raise InvalidInput.field(field, "is of a size no network can have", "give a prefix length from 8 to 30")
        if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or subnet.is_reserved or _is_zero(subnet):
            raise InvalidInput.field(field, f"{subnet} is not for hosts", "take one of 10.0.0.0/8, 172.16.0.0/12 …")
        return
    if subnet.prefixlen != 64:
        raise InvalidInput.field(field, "must be a /64: guests that configure themselves need it", "give a /64")
    if not any(subnet.subnet_of(usable) for usable in USABLE6):
        raise InvalidInput.field(field, f"{subnet} is not for hosts", "take a /64 of fd00::/8, or one of your own")


def _is_zero(subnet: ipaddress.IPv4Network) -> bool:
    return int(subnet.network_address) >> 24 == 0


def _check_nodes(subnet: Subnet, nodes: Iterable[Node]) -> None:
    for node in nodes:
        for text in (node.facts.tunnel_address, node.facts.migration_address) if node.facts else ():
            if _lies_in(text, subnet):
                raise InvalidInput.field(
                    f"ipv{subnet.version}", f"holds {text}, the address of node {node.name}", "take another subnet"
                )


def _lies_in(text: str, subnet: Subnet) -> bool:
    try:
        return ipaddress.ip_address(text) in subnet
    except ValueError:  # a host's name, or nothing: no subnet holds it
        return False


def _check_other(network: Network, other: Network) -> None:
    if network.spec.vni == other.spec.vni:
        raise Conflict(
            f"VNI {network.spec.vni} belongs to network {other.name}",
            [Reason("vni.taken", "taken", subject=other.name, remedy="give another, or none")],
        )
    if not (_is_on_nodes(network.spec) and _is_on_nodes(other.spec)):
        return
    for mine in subnets_of(network.spec):
        for theirs in subnets_of(other.spec):
            if mine.version == theirs.version and mine.overlaps(theirs):
                raise Conflict(
                    f"{mine} overlaps {theirs} of network {other.name}",
                    [
                        Reason(
                            "subnet.overlaps",
                            "subnets may overlap only where one is isolated and its addresses are not managed",
                            subject=other.name,
                            remedy="take another subnet",
                        )
                    ],
                )


def _is_on_nodes(spec: NetworkSpec) -> bool:
    """Whether nodes have its gateway's address: to route, or to answer DHCP from."""
    return spec.mode is not NetworkMode.ISOLATED or spec.addressing is Addressing.MANAGED


def free_vni(others: Iterable[Network]) -> int:
    """The lowest VNI from FIRST_VNI that no network has. :raise NoRoom"""
    taken = {network.spec.vni for network in others}
    for vni in range(FIRST_VNI, MAX_VNI + 1):
        if vni not in taken:
            return vni
    raise NoRoom("there is no VNI left", [Reason("vni.short", f"{len(taken)} networks exist")])


def check_change(old: NetworkSpec, new: NetworkSpec, users: Sequence[Vm], name: str) -> None:
    """Whether a change may be made while the cards of these VMs are on it. :raise Conflict: it takes addresses away."""
    if users and (old.ipv4, old.ipv6) != (new.ipv4, new.ipv6):
        raise in_use(f"cannot change the subnets of network {name}", {vm.name for vm in users}, "network.in_use")


def in_use(what: str, names: Collection[str], code: str) -> Conflict:
    """The refusal that names up to five of those who use something."""
    ordered = sorted(names)
    told = ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
    return Conflict(
        f"{what}: {told} use{'s' if len(ordered) == 1 else ''} it",
        [Reason(code, "it is in use", subject=name, remedy="change or delete that first") for name in ordered[:5]],
    )
