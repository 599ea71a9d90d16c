"""Which cards are on which network, where they are, and who must know of them: pure functions over records."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from novacron.model.machine import NetworkKind, Nic
from novacron.model.migration import Migration, is_final
from novacron.model.network import Network, NetworkSpec
from novacron.model.vm import Vm, running_spec

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def cards_of(vm: Vm) -> tuple[Nic, ...]:
    """Its cards on overlay networks: the wished ones, and those it runs with that are wished no more."""
    wished = {nic.id for nic in vm.spec.nics}
    leaving = (nic for nic in running_spec(vm).nics if nic.id not in wished)
    return tuple(nic for nic in (*vm.spec.nics, *leaving) if nic.network is NetworkKind.OVERLAY)


def cards_on(network_id: str, vms: Iterable[Vm]) -> Iterator[tuple[Vm, Nic]]:
    """Every card on one network with its VM."""
    for vm in vms:
        for nic in cards_of(vm):
            if nic.network_id == network_id:
                yield vm, nic


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
