"""Which cards are on which network, where they are, and who must know of them: pure functions over records."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.model.machine import Nic
from novacron.model.migration import Migration, is_final
from novacron.model.network import Network, NetworkSpec
from novacron.model.vm import Vm, cards_of

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def cards_on(records: Records, network_id: str) -> Iterator[tuple[Vm, Nic]]:
    """Every card on one network with its VM, those of the oldest VM first."""
    for stored in records.marked(VMS, network_id):
        for nic in cards_of(stored.record):
            if nic.network_id == network_id:
                yield stored.record, nic


def sides_of(vm: Vm, migration: Migration | None) -> frozenset[str]:
    """The nodes that have its cards or are about to: its owner, and both sides of the migration that holds it."""
    sides = {vm.node_id}
    if migration is not None and migration.id == vm.migration_id and not is_final(migration):
        sides |= {migration.source_node, migration.target_node}
    return frozenset(sides - {""})


def subnets_of(spec: NetworkSpec) -> tuple[Subnet, ...]:
    """Its subnets, IPv4 first."""
    return tuple(ipaddress.ip_network(text) for text in (spec.ipv4, spec.ipv6) if text)


def gateway_of(subnet: Subnet) -> str:
    """Its first address."""
    return str(subnet.network_address + 1)


def gateways_of(network: Network) -> list[str]:
    """The first address of each of its subnets."""
    return [gateway_of(subnet) for subnet in subnets_of(network.spec)]
