"""What may pass a card, compiled from its security groups: pure.

A rule that names a group becomes the addresses of that group's cards on the same network. Only there does
anti-spoofing vouch for a sender's address; isolated networks may also hold the same address twice.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from novacron.model.machine import Nic
from novacron.model.network import PortFilter, Rule, SecurityGroup

Members = Mapping[str, tuple[str, ...]]
"""By group id: its members on one network, as the subnets they fill exactly."""


def members_of(cards: Iterable[Nic]) -> Members:
    """The members of each group among the cards of one network; neighbours are joined into one subnet."""
    found: dict[str, list[str]] = {}
    for nic in cards:
        for group_id in nic.security_groups:
            found.setdefault(group_id, []).extend(nic.addresses)
    return {group_id: tuple(_joined(addresses)) for group_id, addresses in found.items()}


def _joined(addresses: Iterable[str]) -> Iterator[str]:
    parsed = [ipaddress.ip_address(text) for text in set(addresses)]
    for version in (4, 6):
        hosts = sorted(ipaddress.ip_network(one) for one in parsed if one.version == version)
        yield from (str(subnet) for subnet in ipaddress.collapse_addresses(hosts))  # type: ignore[type-var]


def compile_filter(nic: Nic, groups: Mapping[str, SecurityGroup], members: Members) -> PortFilter:
    """The card's filter, revision 0. In no group: not stateful. In some: what any rule of theirs allows."""
    rules = (rule for group_id in nic.security_groups if group_id in groups for rule in groups[group_id].rules)
    return PortFilter(
        anti_spoofing=nic.anti_spoofing,
        addresses=nic.addresses,
        stateful=bool(nic.security_groups),
        rules=tuple(dict.fromkeys(plain for rule in rules for plain in _without_group(rule, members))),
    )


def _without_group(rule: Rule, members: Members) -> Iterator[Rule]:
    if not rule.group_id:
        yield rule
        return
    for cidr in members.get(rule.group_id, ()):  # nobody is in it: nobody may
        yield msgspec.structs.replace(rule, group_id="", cidr=cidr)
