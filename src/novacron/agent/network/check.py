"""Whether what a node is told of a network can be: before anything of it is remembered or reaches a tool. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from novacron.agent.network.subnets import address, subnet, subnets
from novacron.errors import InvalidInput
from novacron.model.identity import is_id
from novacron.model.machine import Nic
from novacron.model.network import NetworkSpec, NetworkState, PortFilter

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_MAX_VNI = (1 << 24) - 1
_LEAST_MTU, _LEAST_MTU_IPV6, _MOST_MTU = 576, 1280, 65535


def check_state(state: NetworkState) -> None:
    """:raise InvalidInput"""
    check_spec(state.spec)
    _check_addresses(state.endpoints, "endpoints")
    for place in state.locations:
        check_mac(place.mac)
        address(place.endpoint, "endpoint")
        _check_addresses(place.addresses, "addresses")
    for mac, wanted in state.filters.items():
        check_mac(mac)
        _check_filter(wanted)


def check_spec(spec: NetworkSpec) -> None:
    """:raise InvalidInput"""
    check_id(spec.id)
    if not 1 <= spec.vni <= _MAX_VNI:
        raise InvalidInput.field("vni", f"{spec.vni} is no VXLAN number", f"give one from 1 to {_MAX_VNI}")
    least = _LEAST_MTU_IPV6 if spec.ipv6 else _LEAST_MTU
    if not least <= spec.mtu <= _MOST_MTU:
        raise InvalidInput.field("mtu", f"{spec.mtu} is out of bounds", f"give {least} to {_MOST_MTU}")
    for one in subnets(spec):
        if one.num_addresses < 4:
            raise InvalidInput.field("subnet", f"{one} has no room for a guest", "give a shorter prefix")
    _check_addresses(spec.dns, "dns")


def check_nic(nic: Nic) -> None:
    """:raise InvalidInput"""
    check_id(nic.network_id)
    check_mac(nic.mac)
    _check_addresses(nic.addresses, "addresses")
    if nic.filter is not None:
        _check_filter(nic.filter)


def check_id(network_id: str) -> None:
    """:raise InvalidInput"""
    if not is_id(network_id):
        raise InvalidInput.field("network_id", "is not an id", "give the network's UUID")


def check_mac(mac: str) -> None:
    """:raise InvalidInput"""
    if _MAC.match(mac) is None:
        raise InvalidInput.field("mac", "is not a hardware address", "give six pairs of lower-case hex digits")


def _check_filter(wanted: PortFilter) -> None:
    _check_addresses(wanted.addresses, "addresses")
    for rule in wanted.rules:
        if rule.cidr:
            subnet(rule.cidr, "cidr")
        last = rule.port_last or rule.port_first
        if not 0 <= rule.port_first <= last <= 65535:
            raise InvalidInput.field("ports", f"{rule.port_first} to {last} are no ports", "give 0 to 65535 in order")


def _check_addresses(texts: Iterable[str], field: str) -> None:
    for text in texts:
        address(text, field)
