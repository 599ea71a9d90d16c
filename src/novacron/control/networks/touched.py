"""Which networks a change of a record concerns: those whose nodes must know something else after it.

A VM without a card on an overlay network costs one look at its cards, a change that moves nothing one comparison.
"""

from __future__ import annotations

from typing import Any

from novacron.control.store.kinds import NETWORKS, NODES, SECURITY_GROUPS, VMS
from novacron.control.store.records import Records, Seen
from novacron.model.network import SecurityGroup
from novacron.model.node import Node
from novacron.model.vm import Vm, cards_of

Reach = tuple[Any, ...]


def touched(records: Records, seen: Seen) -> set[str]:
    """Ids of the networks. records: after the change."""
    if seen.kind is VMS:
        return _touched_by_vm(seen.before, seen.now)
    if seen.kind is NETWORKS:
        return {seen.now.id} if seen.now is not None else set()
    if seen.kind is SECURITY_GROUPS:
        return _touched_by_group(records, seen.before, seen.now)
    if seen.kind is NODES:
        return _touched_by_node(records, seen.before, seen.now)
    return set()


def _touched_by_vm(before: Vm | None, now: Vm | None) -> set[str]:
    if _reach(before) == _reach(now):
        return set()
    return {nic.network_id for vm in (before, now) if vm is not None for nic in cards_of(vm)}


def _touched_by_group(records: Records, before: SecurityGroup | None, now: SecurityGroup | None) -> set[str]:
    if before is None or now is None or before.rules == now.rules:
        return set()
    return {nic.network_id for stored in records.marked(VMS, now.id) for nic in cards_of(stored.record)}


def _touched_by_node(records: Records, before: Node | None, now: Node | None) -> set[str]:
    if _tunnel_of(before) == _tunnel_of(now):
        return set()
    node_id = now.id if now is not None else before.id if before is not None else ""
    return {nic.network_id for stored in records.on_node(VMS, node_id) for nic in cards_of(stored.record)}


def _reach(vm: Vm | None) -> Reach:
    """All of a VM that any node is told because of its networks; empty when it has no card on one."""
    cards = cards_of(vm) if vm is not None else ()
    if vm is None or not cards:
        return ()
    return (vm.node_id, vm.generation, vm.migration_id, cards)


def _tunnel_of(node: Node | None) -> str:
    return node.facts.tunnel_address if node is not None and node.facts is not None else ""
