"""What one network's DHCP server is told: its settings and the cards it knows, as dnsmasq reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from novacron.agent.network.subnets import Subnet, address, gateway_of, subnets
from novacron.model.network import Addressing, NetworkMode, NetworkSpec

LEASE = "1h"
USER, GROUP = "nobody", "nogroup"
ADVERTISE_S = 60


def wanted(spec: NetworkSpec) -> bool:
    """Whether the network has a DHCP server on every node."""
    return spec.addressing is Addressing.MANAGED and bool(subnets(spec))


def settings(spec: NetworkSpec, bridge: str, hosts_file: str, pid_file: str) -> str:
    """The whole settings file. Only cards of the hosts file get an answer; it serves no names."""
    lines = [
        "port=0",
        "no-resolv",
        "no-hosts",
        "no-ping",
        "leasefile-ro",  # a card's address is fixed: there is nothing to remember
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        f"interface={bridge}",
        "except-interface=lo",
        "bind-dynamic",
        f"user={USER}",
        f"group={GROUP}",
        f"pid-file={pid_file}",
        f"dhcp-hostsfile={hosts_file}",
        f"dhcp-option=option:mtu,{spec.mtu}",
    ]
    routed = spec.mode is not NetworkMode.ISOLATED
    for one in subnets(spec):
        lines += _ipv4(one, spec.dns, routed) if one.version == 4 else _ipv6(one, spec, bridge, routed)
    return "\n".join(lines) + "\n"


def hosts(cards: Mapping[str, Sequence[str]]) -> str:
    """The hosts file: a line a card, of its MAC and its addresses."""
    return "".join(f"{mac},{','.join(_written(addresses))},{LEASE}\n" for mac, addresses in sorted(cards.items()))


def _written(addresses: Iterable[str]) -> list[str]:
    known = [address(one, "addresses") for one in addresses]
    return [f"[{one}]" if one.version == 6 else str(one) for one in known]


def _ipv4(subnet: Subnet, dns: Sequence[str], routed: bool) -> list[str]:
    resolvers = [one for one in dns if address(one, "dns").version == 4]
    return [
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE}",
        f"dhcp-option=option:router,{gateway_of(subnet)}" if routed else "dhcp-option=option:router",
        ",".join(["dhcp-option=option:dns-server", *resolvers]),
    ]


def _ipv6(subnet: Subnet, spec: NetworkSpec, bridge: str, routed: bool) -> list[str]:
    resolvers = [f"[{one}]" for one in spec.dns if address(one, "dns").version == 6]
    lifetime = "" if routed else ",0"  # seconds to take the sender for a router
    return [
        f"dhcp-range={subnet.network_address},static,{subnet.prefixlen},{LEASE}",
        "enable-ra",
        f"ra-param={bridge},mtu:{spec.mtu},{ADVERTISE_S}{lifetime}",
        ",".join(["dhcp-option=option6:dns-server", *resolvers]),
    ]
