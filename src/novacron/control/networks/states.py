"""What each node must know of one network, computed from the records: pure, the same on every server."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from novacron.control.networks.cards import cards_on, sides_of
from novacron.control.networks.filters import compile_filter, members_of
from novacron.control.store.kinds import MIGRATIONS, NETWORKS, NODES, SECURITY_GROUPS
from novacron.control.store.records import Records
from novacron.model.machine import Nic
from novacron.model.network import Location, Network, NetworkState, PortFilter, SecurityGroup
from novacron.model.vm import Vm


class Snapshot(msgspec.Struct, frozen=True):
    """What the states of one network are made from. cards: all on it, each with the nodes that have it or soon will.

    tunnels: by node id, its tunnel address; a node without one is not there.
    """

    network: Network
    cards: tuple[tuple[Vm, Nic, frozenset[str]], ...]
    groups: Mapping[str, SecurityGroup]
    tunnels: Mapping[str, str]


def snapshot(records: Records, network: Network) -> Snapshot:
    """As the cache holds it now."""
    cards = []
    for vm, nic in cards_on(records, network.id):
        migration = records.get(MIGRATIONS, vm.migration_id) if vm.migration_id else None
        cards.append((vm, nic, sides_of(vm, migration.record if migration else None)))
    named = {group_id for _, nic, _ in cards for group_id in nic.security_groups}
    stored = [records.get(SECURITY_GROUPS, group_id) for group_id in named]
    groups = {one.record.id: one.record for one in stored if one is not None}
    nodes = {node_id for _, _, sides in cards for node_id in sides}
    tunnels = {node_id: address for node_id in nodes if (address := _tunnel_of(records, node_id))}
    return Snapshot(network, tuple(cards), groups, tunnels)


def _tunnel_of(records: Records, node_id: str) -> str:
    node = records.get(NODES, node_id)
    return node.record.facts.tunnel_address if node and node.record.facts else ""


def states(seen: Snapshot) -> dict[str, NetworkState]:
    """By node id, for every node that has a card on it or is about to; all with revision 0: see `stamped`."""
    locations = tuple(
        Location(
            mac=nic.mac,
            vm_id=vm.id,
            generation=vm.generation,
            endpoint=seen.tunnels[vm.node_id],
            addresses=nic.addresses,
        )
        for vm, nic, _ in seen.cards
        if vm.node_id in seen.tunnels
    )
    compiled = filters_of(seen)
    here: dict[str, dict[str, PortFilter]] = {}
    for _, nic, sides in seen.cards:
        for node_id in sides:
            here.setdefault(node_id, {})[nic.mac] = compiled[nic.id]
    endpoints = tuple(sorted(set(seen.tunnels.values())))
    return {
        node_id: NetworkState(
            spec=seen.network.spec, revision=0, endpoints=endpoints, locations=locations, filters=filters
        )
        for node_id, filters in here.items()
    }


def filters_of(seen: Snapshot, nic_ids: Collection[str] | None = None) -> dict[str, PortFilter]:
    """By card id: of these cards, as far as they are on it, or of all."""
    members = members_of(nic for _, nic, _ in seen.cards)
    cards = (nic for _, nic, _ in seen.cards if nic_ids is None or nic.id in nic_ids)
    return {nic.id: compile_filter(nic, seen.groups, members) for nic in cards}


def stamped(state: NetworkState, revision: int) -> NetworkState:
    """The state as it is sent: under the store revision it was read at, which grows with every change of it."""
    filters = {mac: msgspec.structs.replace(one, revision=revision) for mac, one in state.filters.items()}
    return msgspec.structs.replace(state, revision=revision, filters=filters)


class Wiring(msgspec.Struct, frozen=True):
    """What a node is told of a machine's networks. filters: by card id."""

    networks: tuple[Network, ...] = ()
    filters: Mapping[str, PortFilter] = {}


UNWIRED = Wiring()
"""Of a machine without a card on an overlay network."""


def wiring_of(records: Records, nics: Sequence[Nic]) -> Wiring:
    """The networks that these cards name, and the cards' filters, as the cache holds them now."""
    found = {nic.network_id: records.get(NETWORKS, nic.network_id) for nic in nics if nic.network_id}
    if not found:
        return UNWIRED
    networks = tuple(stored.record for stored in found.values() if stored is not None)
    mine = {nic.id for nic in nics}
    filters: dict[str, PortFilter] = {}
    for network in networks:
        compiled = filters_of(snapshot(records, network), mine)
        filters |= {nic_id: msgspec.structs.replace(one, revision=records.revision) for nic_id, one in compiled.items()}
    return Wiring(networks, filters)
