"""Addresses of a network, as values: its subnets, its gateways, a card's link-local address. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from novacron.errors import InvalidInput
from novacron.model.network import NetworkSpec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def subnets(spec: NetworkSpec) -> list[Subnet]:
    """Those it has. :raise InvalidInput: one is none."""
    return [subnet(text, field) for text, field in ((spec.ipv4, "ipv4"), (spec.ipv6, "ipv6")) if text]


def subnet(text: str, field: str) -> Subnet:
    """:raise InvalidInput"""
    try:
        return ipaddress.ip_network(text)
    except ValueError as wrong:
        raise InvalidInput.field(field, f"{text!r} is no subnet", "give it as address/prefix length") from wrong


def gateway_of(of: Subnet) -> Address:
    """The first address of a subnet."""
    return of[1]


def address(text: str, field: str) -> Address:
    """:raise InvalidInput"""
    try:
        return ipaddress.ip_address(text)
    except ValueError as wrong:
        raise InvalidInput.field(field, f"{text!r} is no IP address", "give one, without prefix") from wrong


def of_version(addresses: Iterable[Address], version: int) -> list[str]:
    """Those of one IP version, as text."""
    return [str(one) for one in addresses if one.version == version]


def link_local(mac: str) -> Address:
    """What a card calls itself on its link by RFC 4291: made of its hardware address."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface)
