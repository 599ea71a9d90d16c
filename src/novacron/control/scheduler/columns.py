"""Nodes as columns: one row a node, an array for each size, an array of truths for each thing nodes can have. Pure.

A node that changes changes its row; nothing is built anew for it. Rows of nodes that are gone are given to new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from novacron.control.scheduler.filters import OVERLAY
from novacron.model.node import Node, NodeState, labels_of
from novacron.model.placement import NODE_LABEL, Taint

T = TypeVar("T")
Truths = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

OPEN = "open"
SPANS = "spans"
NOWHERE = -1
_FIRST_ROWS = 16


def marks_of(node: Node) -> Iterator[str]:
    """Everything that a node has or is and a VM can ask for, one word each; not its name."""
    for key, value in labels_of(node).items():
        if key != NODE_LABEL:
            yield label_mark(key, value)
            yield label_mark(key, "")
    facts = node.facts
    if facts is None:
        return
    if node.state is NodeState.UP and not node.cordoned:
        yield OPEN
    if OVERLAY in facts.abilities and facts.tunnel_address:
        yield SPANS
    yield from (f"own-pool:{pool_id}" for pool_id in facts.pool_ids)
    yield from (f"bridge:{bridge}" for bridge in facts.bridges)
    for driver in facts.drivers:
        name = driver.name
        yield from (f"{name}:machine:{kind}" for kind in driver.default_machine_types)
        yield from (f"{name}:feature:{feature}" for feature in driver.features)
        yield from (f"{name}:type:{machine_type}" for machine_type in driver.machine_types)
        yield from (f"{name}:model:{model}" for model in driver.cpu_models)
        yield f"{name}:accelerator:{driver.accelerator.name if driver.accelerator else 'none'}"


def label_mark(key: str, value: str) -> str:
    """Of a node with that label; an empty value: whatever its value."""
    return f"label:{key}={value}"


class Columns:
    """`version` grows with every change of what nodes have, `size` is how many rows there are."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.nodes: list[Node | None] = []
        self.version = 0
        self._memory_mib = np.zeros(_FIRST_ROWS, np.int64)
        self._cpu_count = np.zeros(_FIRST_ROWS, np.int64)
        self._marks: dict[str, Truths] = {}
        self._taints: dict[Taint, Truths] = {}
        self._named: dict[str, int] = {}
        self._free: list[int] = []
        self._places: dict[str, tuple[Numbers, dict[str, int]]] = {}
        self._by_name: Numbers | None = None
        self._is_sorted = False

    @property
    def size(self) -> int:
        return len(self.nodes)

    @property
    def memory_mib(self) -> Numbers:
        return self._memory_mib[: self.size]

    @property
    def cpu_count(self) -> Numbers:
        return self._cpu_count[: self.size]

    @property
    def taints(self) -> Iterable[Taint]:
        """Every taint that some node has, or had."""
        return self._taints

    def put(self, node: Node) -> int:
        """The node as it is from now on; its row."""
        row = self.row_of.get(node.id, NOWHERE)
        before = None if row == NOWHERE else self.nodes[row]
        if before is not None and _is_same(before, node):
            self.nodes[row] = node
            return row
        if row == NOWHERE:
            row = self._new_row()
            self.row_of[node.id] = row
        self._write(row, before, node)
        return row

    def drop(self, node_id: str) -> None:
        """It is gone; its row is free."""
        row = self.row_of.pop(node_id, NOWHERE)
        if row != NOWHERE:
            self._write(row, self.nodes[row], None)
            self._free.append(row)

    def rows_of(self, node_ids: Iterable[str]) -> list[int]:
        """The rows of those of them that are known."""
        return [self.row_of[node_id] for node_id in node_ids if node_id in self.row_of]

    def with_mark(self, mark: str) -> Truths:
        """The nodes that have it; not to be written to."""
        found = self._marks.get(mark)
        return np.zeros(self.size, np.bool_) if found is None else found[: self.size]

    def with_label(self, key: str, value: str) -> Truths:
        """The nodes that have the label; an empty value: whatever its value. Not to be written to."""
        if key != NODE_LABEL:
            return self.with_mark(label_mark(key, value))
        found = np.zeros(self.size, np.bool_)
        if not value:
            found[list(self.row_of.values())] = True
        elif value in self._named:
            found[self._named[value]] = True
        return found

    def with_taint(self, taint: Taint) -> Truths:
        return self._taints[taint][: self.size]

    def places(self, over: str) -> Numbers:
        """For each node the number of the place it is in: equal for equal values of that label, NOWHERE without one."""
        if over not in self._places:
            self._places[over] = (np.full(len(self._memory_mib), NOWHERE, np.int64), {})
            for row, node in enumerate(self.nodes):
                self._put_place(over, row, node)
        return self._places[over][0][: self.size]

    def place_count(self, over: str) -> int:
        """How many places there are, or were."""
        self.places(over)
        return len(self._places[over][1])

    def by_name(self) -> Numbers | None:
        """The rows in the order of the nodes' names; None: they are in it."""
        if not self._is_sorted:
            key = {row: node.name for row, node in enumerate(self.nodes) if node is not None}
            order = np.array(sorted(key, key=lambda row: key[row]), np.int64)
            self._by_name = None if bool((np.diff(order) > 0).all()) else order
            self._is_sorted = True
        return self._by_name

    # -- rows ----------------------------------------------------------------------------------------------

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        self.nodes.append(None)
        if self.size > len(self._memory_mib):
            self._memory_mib, self._cpu_count = _longer(self._memory_mib, 0), _longer(self._cpu_count, 0)
            self._marks = {mark: _longer(truths, False) for mark, truths in self._marks.items()}
            self._taints = {taint: _longer(truths, False) for taint, truths in self._taints.items()}
            self._places = {over: (_longer(rows, NOWHERE), known) for over, (rows, known) in self._places.items()}
        return self.size - 1

    def _write(self, row: int, before: Node | None, now: Node | None) -> None:
        facts = now.facts if now else None
        self._memory_mib[row] = facts.memory_mib if facts else 0
        self._cpu_count[row] = facts.cpu_count if facts else 0
        old, new = (set(marks_of(node)) if node else set[str]() for node in (before, now))
        self._turn(self._marks, row, old, new)
        self._turn(self._taints, row, *(set(node.taints) if node else set[Taint]() for node in (before, now)))
        if before is not None and self._named.get(before.name) == row:
            del self._named[before.name]
        if now is not None:
            self._named[now.name] = row
        self.nodes[row] = now
        for over in self._places:
            self._put_place(over, row, now)
        self._is_sorted = self._is_sorted and before is not None and now is not None and before.name == now.name
        self.version += 1

    def _turn(self, truths: dict[T, Truths], row: int, old: set[T], new: set[T]) -> None:
        for gone in old - new:
            truths[gone][row] = False
        for come in new - old:
            if come not in truths:
                truths[come] = np.zeros(len(self._memory_mib), np.bool_)
            truths[come][row] = True

    def _put_place(self, over: str, row: int, node: Node | None) -> None:
        rows, known = self._places[over]
        value = labels_of(node).get(over) if node else None
        rows[row] = NOWHERE if value is None else known.setdefault(value, len(known))


def _is_same(before: Node, now: Node) -> bool:
    """Whether nothing has changed that a VM could ask for."""
    return (
        before.facts == now.facts
        and before.state is now.state
        and before.cordoned is now.cordoned
        and before.labels == now.labels
        and before.taints == now.taints
        and before.name == now.name
    )


def _longer(column: npt.NDArray[Any], fill: int | bool) -> npt.NDArray[Any]:
    """Twice as long."""
    return np.concatenate([column, np.full_like(column, fill)])
