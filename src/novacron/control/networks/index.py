"""Which VMs have cards on which network and in which group, kept up to date; and which networks a change concerns.

A VM without a card on an overlay network costs one look at its cards, a change that moves nothing one comparison.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from novacron.control.networks.cards import cards_of
from novacron.control.store.kinds import NETWORKS, NODES, SECURITY_GROUPS, VMS
from novacron.control.store.records import Seen
from novacron.model.network import SecurityGroup
from novacron.model.node import Node
from novacron.model.vm import Vm

Reach = tuple[Any, ...]


class Index:
    """`put` and `drop` VMs as they change; `touched` says whose nodes must be told."""

    def __init__(self, vms: Iterable[Vm]) -> None:
        self._on: defaultdict[str, set[str]] = defaultdict(set)  # network id -> VM ids
        self._in: defaultdict[str, set[str]] = defaultdict(set)  # group id -> VM ids
        self._vms: dict[str, Vm] = {}
        for vm in vms:
            self.put(vm)

    def put(self, vm: Vm) -> None:
        """A VM as it is now."""
        self.drop(vm.id)
        for nic in cards_of(vm):
            self._vms[vm.id] = vm
            self._on[nic.network_id].add(vm.id)
            for group_id in nic.security_groups:
                self._in[group_id].add(vm.id)

    def drop(self, vm_id: str) -> None:
        """A VM that is gone."""
        vm = self._vms.pop(vm_id, None)
        for nic in cards_of(vm) if vm else ():
            self._on[nic.network_id].discard(vm_id)
            for group_id in nic.security_groups:
                self._in[group_id].discard(vm_id)

    def networks(self) -> list[str]:
        """Ids of those with a card on them."""
        return [network_id for network_id, vm_ids in self._on.items() if vm_ids]

    def vms_on(self, network_id: str) -> list[Vm]:
        """Those with a card on it, oldest first."""
        return [self._vms[vm_id] for vm_id in sorted(self._on.get(network_id, ()))]

    def touched(self, seen: Seen) -> set[str]:
        """Ids of the networks whose nodes must know something else after this change; takes VMs in on the way."""
        if seen.kind is VMS:
            return self._touched_by_vm(seen.before, seen.now)
        if seen.kind is NETWORKS:
            return {seen.now.id} if seen.now is not None else set()
        if seen.kind is SECURITY_GROUPS:
            return self._touched_by_group(seen.before, seen.now)
        if seen.kind is NODES:
            return self._touched_by_node(seen.before, seen.now)
        return set()

    def _touched_by_vm(self, before: Vm | None, now: Vm | None) -> set[str]:
        then, here = _reach(before), _reach(now)
        if then == here:
            return set()
        if now is not None:
            self.put(now)
        elif before is not None:
            self.drop(before.id)
        cards = [nic for vm in (before, now) if vm is not None for nic in cards_of(vm)]
        return {nic.network_id for nic in cards}

    def _touched_by_group(self, before: SecurityGroup | None, now: SecurityGroup | None) -> set[str]:
        if before is None or now is None or before.rules == now.rules:
            return set()
        return {nic.network_id for vm_id in self._in.get(now.id, ()) for nic in cards_of(self._vms[vm_id])}

    def _touched_by_node(self, before: Node | None, now: Node | None) -> set[str]:
        if _tunnel_of(before) == _tunnel_of(now):
            return set()
        node_id = now.id if now is not None else before.id if before is not None else ""
        return {nic.network_id for vm in self._vms.values() if vm.node_id == node_id for nic in cards_of(vm)}


def _reach(vm: Vm | None) -> Reach:
    """All of a VM that any node is told because of its networks; empty when it has no card on one."""
    cards = cards_of(vm) if vm is not None else ()
    if vm is None or not cards:
        return ()
    return (vm.node_id, vm.generation, vm.migration_id, cards)


def _tunnel_of(node: Node | None) -> str:
    return node.facts.tunnel_address if node is not None and node.facts is not None else ""
