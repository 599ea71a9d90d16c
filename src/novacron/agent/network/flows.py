"""Conversations as data: what a card's sets hold, made into flows that travel, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from novacron.agent.network.conversations import (
    FAMILIES,
    ICMP,
    ICMPV6,
    NUMBER,
    OPEN_SIZE,
    PLAIN_SIZE,
    TCP_S,
    Family,
    set_name,
)
from novacron.agent.network.subnets import address
from novacron.model.network import Flow, Protocol

MOST = 10_000
"""So many travel with a machine, those with the most time left: they cross the line in one frame."""
_PROTOCOL = {number: protocol for protocol, number in NUMBER.items()} | {
    ICMP: Protocol.ICMP,
    ICMPV6: Protocol.ICMP,
}


def names(tap: str) -> list[str]:
    """The sets that hold a card's conversations."""
    return [set_name(what, family.version, tap) for family in FAMILIES for what in ("open", "plain")]


def exported(mac: str, held: Mapping[str, Sequence[Any]]) -> tuple[Flow, ...]:
    """What sets hold, as flows of the card `mac`."""
    found = [_flow(mac, one["elem"]) for elements in held.values() for one in elements if "elem" in one]
    return tuple(sorted(found, key=lambda flow: -flow.left_s)[:MOST])


def imported(tap: str, flows: Iterable[Flow]) -> dict[str, list[Any]]:
    """Elements for the sets of a card. :raise InvalidInput: a flow names no address."""
    made: dict[str, list[Any]] = {name: [] for name in names(tap)}
    for flow in flows:
        family = FAMILIES[address(flow.address, "flows").version == 6]
        name = set_name("open" if flow.protocol in NUMBER else "plain", family.version, tap)
        left = min(max(flow.left_s, 1), TCP_S)
        made[name].append({"elem": {"val": {"concat": _key(flow, family)}, "timeout": left}})
    bound = {name: OPEN_SIZE if name.startswith("open") else PLAIN_SIZE for name in made}
    return {name: elements[: bound[name]] for name, elements in made.items() if elements}


def _flow(mac: str, element: Any) -> Flow:
    key, left = element["val"]["concat"], int(element.get("expires", element.get("timeout", 1)))
    own, number, own_port, peer, peer_port = key if len(key) == 5 else (key[0], key[1], 0, key[2], 0)
    protocol = _PROTOCOL.get(number, Protocol.ANY)
    return Flow(
        mac=mac,
        protocol=protocol,
        address=own,
        port=own_port,
        peer_address=peer,
        peer_port=peer_port,
        left_s=left,
        number=number if protocol is Protocol.ANY else 0,
    )


def _key(flow: Flow, family: Family) -> list[Any]:
    own, peer = str(address(flow.address, "flows")), str(address(flow.peer_address, "flows"))
    if flow.protocol in NUMBER:
        return [own, NUMBER[flow.protocol], flow.port & 0xFFFF, peer, flow.peer_port & 0xFFFF]
    return [own, family.icmp if flow.protocol is Protocol.ICMP else flow.number & 0xFF, peer]
