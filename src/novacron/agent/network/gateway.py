"""How networks reach the outside through their node: nftables rules, as data, and a kernel told to forward."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from novacron.agent.network import links
from novacron.agent.network.grammar import (
    ACCEPT,
    DROP,
    Command,
    Expression,
    Table,
    any_of,
    jump,
    match,
    meta,
    payload,
    prefix,
    raw,
)
from novacron.agent.network.names import BRIDGES, VXLAN_PORT, bridge_name
from novacron.agent.network.subnets import Address, of_version, subnets
from novacron.model.network import NetworkMode, NetworkSpec

TABLE = Table("inet", "novacron")
FILTER, SOURCE_NAT = 0, 100
_OURS = f"{BRIDGES}*"
_VNI = raw(96, 24)  # after the UDP header and half of the VXLAN header

Rules = list[list[Expression]]


class Span(NamedTuple):
    """A network and the nodes it spans: from anybody else its tunnel takes nothing."""

    spec: NetworkSpec
    nodes: Collection[Address]


def rules(spans: Collection[Span]) -> list[Command]:
    """The whole table; without a network there is none."""
    if not spans:
        return [TABLE.make(), TABLE.delete()]
    known = sorted(spans, key=lambda span: span.spec.id)
    specs = [span.spec for span in known]
    tunnels = [rule for span in known for rule in _tunnel(span)]
    made = [TABLE.make(), *TABLE.chain("guests", _to_the_node())]
    made += TABLE.hooked("input", "input", FILTER, [*tunnels, [match(meta("iifname"), _OURS), jump("guests")]])
    made += TABLE.hooked("forward", "forward", FILTER, _forward(specs))
    return made + TABLE.hooked("postrouting", "postrouting", SOURCE_NAT, _behind_the_node(specs), "nat")


def open_ways(networks: Collection[NetworkSpec]) -> None:
    """Have the kernel forward, if a network needs it. A node that hears routers goes on hearing them.

    It is not closed again: something else on the node may rely on it by then.
    """
    routing = [one for spec in networks if spec.mode is not NetworkMode.ISOLATED for one in subnets(spec)]
    if any(one.version == 4 for one in routing):
        links.write_sysctl("ipv4/ip_forward", "1")
    if any(one.version == 6 for one in routing):
        _keep_hearing_routers(links.SYSCTL / "ipv6" / "conf")
        links.write_sysctl("ipv6/conf/all/forwarding", "1")


def _keep_hearing_routers(conf: Path) -> None:
    for accepts in conf.glob("*/accept_ra"):
        if accepts.read_text().strip() == "1":
            accepts.write_text("2")


def _tunnel(span: Span) -> Rules:
    """VXLAN knows no secret: the least to do is to take it from nodes of the network alone. Others' VNIs go by."""
    tunnel = [match(payload("udp", "dport"), VXLAN_PORT), match(_VNI, span.spec.vni)]
    known = [
        [*tunnel, match(payload(header, "saddr"), any_of(sorted(of_version(span.nodes, version)))), ACCEPT]
        for header, version in (("ip", 4), ("ip6", 6))
        if of_version(span.nodes, version)
    ]
    return [*known, [*tunnel, DROP]]


def _to_the_node() -> Rules:
    """What a guest may ask of the node itself: whether it is there, and its DHCP."""
    established = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    return [
        [established, ACCEPT],
        [match(payload("icmp", "type"), "echo-request"), ACCEPT],
        [match(payload("icmpv6", "type"), any_of([128, 131, 132, 133, 135, 136, 143])), ACCEPT],
        [match(payload("udp", "dport"), any_of([67, 547])), ACCEPT],
        [DROP],
    ]


def _forward(specs: list[NetworkSpec]) -> Rules:
    routed = [bridge_name(spec.id) for spec in specs if spec.mode is NetworkMode.ROUTED]
    established = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
    come, go = match(meta("iifname"), _OURS), match(meta("oifname"), _OURS)
    bridges = [bridge_name(spec.id) for spec in specs]
    # Where br_netfilter is at work, what a bridge forwards comes by here too.
    made: Rules = [[match(meta("iifname"), one), match(meta("oifname"), one), ACCEPT] for one in bridges]
    if routed:
        made.append([match(meta("iifname"), any_of(routed)), match(meta("oifname"), any_of(routed)), ACCEPT])
    made.append([come, go, DROP])
    if routed:
        made += [[match(meta("iifname"), any_of(routed)), ACCEPT], [match(meta("oifname"), any_of(routed)), ACCEPT]]
    for spec in specs:
        if spec.mode is NetworkMode.NAT:
            made += [[match(meta("iifname"), bridge_name(spec.id)), *one, ACCEPT] for one in _sources(spec)]
            made.append([match(meta("oifname"), bridge_name(spec.id)), established, ACCEPT])
    return [*made, [come, DROP], [go, DROP]]


def _behind_the_node(specs: list[NetworkSpec]) -> Rules:
    outward = match(meta("oifname"), _OURS, "!=")
    nat = [spec for spec in specs if spec.mode is NetworkMode.NAT]
    return [[*one, outward, {"masquerade": None}] for spec in nat for one in _sources(spec)]


def _sources(spec: NetworkSpec) -> list[list[Expression]]:
    headers = {4: "ip", 6: "ip6"}
    return [
        [match(payload(headers[one.version], "saddr"), prefix(str(one.network_address), one.prefixlen))]
        for one in subnets(spec)
    ]
