"""Which VMs are on which nodes, found by their labels, and which other VMs they keep away. Pure.

A count asked for once is kept up with every change of a VM, so that asking again costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
import numpy as np

from novacron.control.scheduler.columns import Columns, Numbers
from novacron.model.placement import RuleKind, VmRule

K = TypeVar("K")
V = TypeVar("V")
Selector = frozenset[tuple[str, str]]
"""Labels that a VM must have, all of them; an empty value: whatever the value."""

Held = tuple[Selector, str]
"""A hard `apart` rule: whom it keeps away, and the label over whose places."""

_MOST_COUNTS = 1024


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A VM. marks: all that it can be selected by. node_ids: where it is, and where it is on its way to."""

    marks: Selector
    held: frozenset[Held]
    node_ids: tuple[str, ...]


def selector_of(labels: Mapping[str, str]) -> Selector:
    """Of a rule about VMs with these labels."""
    return frozenset(labels.items())


def held_of(rules: Iterable[VmRule]) -> frozenset[Held]:
    """Which of a VM's rules bind others."""
    return frozenset(
        (selector_of(rule.labels), rule.over) for rule in rules if rule.hard and rule.kind is RuleKind.APART
    )


def marks_of(labels: Mapping[str, str]) -> Selector:
    """All that a VM with these labels can be selected by."""
    return _marks_of(frozenset(labels.items()))


@functools.lru_cache(maxsize=4096)
def _marks_of(labels: Selector) -> Selector:
    return labels | {(key, "") for key, _ in labels}


class Tenants:
    """`put` and `drop` keep it up, `rows_moved` when rows mean other nodes; the rest answers for the moment."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._tenants: dict[str, Tenant] = {}
        self._marked: dict[tuple[str, str], set[str]] = {}
        self._counts: dict[Selector, Numbers] = {}
        self._holders: dict[Held, set[str]] = {}
        self._held_by_mark: dict[tuple[str, str], set[Held]] = {}
        self._held_counts: dict[Held, Numbers] = {}

    def put(self, vm_id: str, tenant: Tenant) -> None:
        """The VM as it is from now on."""
        if self._tenants.get(vm_id) == tenant:
            return
        self.drop(vm_id)
        self._tenants[vm_id] = tenant
        for mark in tenant.marks:
            self._marked.setdefault(mark, set()).add(vm_id)
        for held in tenant.held:
            self._holders.setdefault(held, set()).add(vm_id)
            self._held_by_mark.setdefault(first_mark(held[0]), set()).add(held)
        self._count(tenant, 1)

    def drop(self, vm_id: str) -> None:
        tenant = self._tenants.pop(vm_id, None)
        if tenant is None:
            return
        self._count(tenant, -1)
        for mark in tenant.marks:
            _take_out(self._marked, mark, vm_id)
        for held in tenant.held:
            _take_out(self._holders, held, vm_id)
            if held not in self._holders:
                self._held_counts.pop(held, None)
                _take_out(self._held_by_mark, first_mark(held[0]), held)

    def rows_moved(self) -> None:
        """Nodes came or went: counts are of rows that may be other nodes' now."""
        self._counts.clear()
        self._held_counts.clear()

    def get(self, vm_id: str) -> Tenant | None:
        return self._tenants.get(vm_id)

    def counts(self, selector: Selector) -> Numbers:
        """For each node how many of the VMs are on it. Not to be written to."""
        if selector not in self._counts:
            if len(self._counts) >= _MOST_COUNTS:
                self._counts.clear()
            self._counts[selector] = self._counted(self._selected(selector))
        return self._counts[selector]

    def holders(self, held: Held) -> Numbers:
        """For each node how many VMs on it hold that rule. Not to be written to."""
        if held not in self._held_counts:
            self._held_counts[held] = self._counted(self._holders.get(held, ()))
        return self._held_counts[held]

    def held_against(self, marks: Selector) -> Iterator[Held]:
        """The rules that keep a VM with these marks away from some place."""
        for mark in marks:
            for held in self._held_by_mark.get(mark, ()):
                if held[0] <= marks:
                    yield held

    def _selected(self, selector: Selector) -> set[str]:
        return set.intersection(*(self._marked.get(pair, set()) for pair in selector))

    def _counted(self, vm_ids: Iterable[str]) -> Numbers:
        found = np.zeros(self._columns.size, np.int64)
        for vm_id in vm_ids:
            for row in self._columns.rows_of(self._tenants[vm_id].node_ids):
                found[row] += 1
        return found

    def _count(self, tenant: Tenant, by: int) -> None:
        for row in self._columns.rows_of(tenant.node_ids):
            for selector, counted in self._counts.items():
                if selector <= tenant.marks:
                    counted[row] += by
            for held in tenant.held:
                if held in self._held_counts:
                    self._held_counts[held][row] += by


def first_mark(selector: Selector) -> tuple[str, str]:
    """One of its pairs, always the same: who is selected has it."""
    return min(selector)


def _take_out(sets: dict[K, set[V]], key: K, one: V) -> None:
    sets[key].discard(one)
    if not sets[key]:
        del sets[key]
