"""A network that NovaCron spans between its nodes, what may pass a card of it, and where each address is found."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec


class NetworkMode(StrEnum):
    """How it reaches the outside. isolated: not at all. nat: behind its node's address. routed: as it is."""

    ISOLATED = "isolated"
    NAT = "nat"
    ROUTED = "routed"


class Addressing(StrEnum):
    """How guests get their addresses. managed: NovaCron chooses, DHCP (and router advertisements) tell them.

    static: NovaCron chooses, cloud-init tells them. none: nobody chooses, and nobody checks.
    """

    MANAGED = "managed"
    STATIC = "static"
    NONE = "none"


class NetworkSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node must know to have a network: nothing of it changes but by a wish of a person.

    vni: its VXLAN number. ipv4, ipv6: the subnets with prefix length, empty: none. The gateway is the first address
    of each, the same on every node. mtu: of the guests' cards, in bytes. dns: resolvers told to guests.
    """

    id: str
    vni: int
    ipv4: str = ""
    ipv6: str = ""
    mode: NetworkMode = NetworkMode.ISOLATED
    addressing: Addressing = Addressing.MANAGED
    mtu: int = 1450
    dns: tuple[str, ...] = ()


class Network(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one network."""

    id: str
    name: str
    spec: NetworkSpec
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class Protocol(StrEnum):
    ANY = "any"
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"  # ICMPv6 where the peer is IPv6


class Rule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may begin a conversation; answers pass by themselves.

    cidr: the peer (empty: anybody); group_id: the peer's security group, instead of a cidr. ports: first and last,
    0: any (TCP and UDP only).
    """

    direction: Direction
    protocol: Protocol = Protocol.ANY
    port_first: int = 0
    port_last: int = 0
    cidr: str = ""
    group_id: str = ""


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one security group: what is not allowed by a rule is refused."""

    id: str
    name: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    rules: tuple[Rule, ...] = ()


class PortFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may pass one card, compiled: groups have become addresses.

    anti_spoofing: only its own MAC and `addresses` as sender (IP and ARP/ND), no DHCP server, no router
    advertisements. stateful: `rules` decide what else passes; without, everything does. revision: grows with each
    change; a node keeps the newest.
    """

    revision: int = 0
    anti_spoofing: bool = True
    addresses: tuple[str, ...] = ()
    stateful: bool = False
    rules: tuple[Rule, ...] = ()


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation that a card's filter lets go on. `mac`: the card's; the peer may have begun it.

    Ports are 0 for protocols without. left_s: how long it is still remembered when nothing more passes. number: of the
    IP protocol, where `protocol` is any.
    """

    mac: str
    protocol: Protocol
    address: str
    port: int
    peer_address: str
    peer_port: int
    left_s: int
    number: int = 0


class Location(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a card is found: behind the node that owns its VM under `generation`. An older one never replaces it.

    endpoint: that node's tunnel address.
    """

    mac: str
    vm_id: str
    generation: int
    endpoint: str
    addresses: tuple[str, ...] = ()


class NetworkState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a node needs of one network at one moment. revision: grows; an older one is ignored.

    locations: every card on it, on all nodes. endpoints: the nodes it spans, for what is sent to everybody.
    hosts: (mac, names) for DHCP are the locations' own. filters: by MAC, of the cards on this node.
    """

    spec: NetworkSpec
    revision: int
    endpoints: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()
    filters: dict[str, PortFilter] = {}
