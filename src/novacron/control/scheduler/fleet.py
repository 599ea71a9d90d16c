"""The fleet: nodes, what is promised on them, pools and VMs, kept up change by change for placing many VMs fast. Pure.

Whoever keeps it up tells it of every change (see control.promises); whoever places VMs asks it for a Draft.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from novacron.control.scheduler.columns import Columns, Numbers, Truths
from novacron.control.scheduler.rules import Shares, Terms
from novacron.control.scheduler.snapshot import Limits
from novacron.control.scheduler.tenants import Held, Tenant, Tenants, marks_of
from novacron.model.node import Node

UNBOUNDED = 1 << 62


class Committed(msgspec.Struct):
    """What is promised on one node: VMs it owns; memory and virtual CPUs of those that run or are to run."""

    vm_count: int = 0
    memory_mib: int = 0
    vcpus: int = 0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM holds of one node. owned: the node is its owner."""

    node_id: str
    memory_mib: int = 0
    vcpus: int = 0
    owned: bool = False


class Occupant(msgspec.Struct, frozen=True, kw_only=True):
    """A VM as the fleet sees it: one claim for each node it is on, or on its way to."""

    claims: tuple[Claim, ...]
    labels: Mapping[str, str] = {}
    held: frozenset[Held] = frozenset()


class PoolSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A storage pool. reached: by node id, why not, empty when it is; size_bytes: by node id, where it is known."""

    shared: bool
    reached: Mapping[str, str]
    size_bytes: Mapping[str, int]


class Lot(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes promised to a volume in a pool; node_id: on that node, of a pool that nodes do not share."""

    pool_id: str
    node_id: str
    size_bytes: int


class Known(NamedTuple):
    """What is so of a need for as long as no node and no pool changes. version: the fleet's it is of.

    standing: the part of each node's score that VMs do not change, -inf where something lacks.
    """

    version: int
    standing: Shares
    terms: Terms
    soft_weight: int


class Fleet:
    """`put_…` and `drop_…` keep it up. What it holds is read by Draft, and by whoever looks at one node."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.columns = Columns()
        self.tenants = Tenants(self.columns)
        self.committed: dict[str, Committed] = {}
        self.pools: dict[str, PoolSeen] = {}
        self.known: dict[bytes, Known] = {}  # of needs that drafts were asked about
        self.version = 0  # grows with every change of what nodes have and which pools they reach
        self._occupants: dict[str, Occupant] = {}
        self._lots: dict[str, tuple[Lot, ...]] = {}
        self._promised_bytes: dict[tuple[str, str], int] = {}
        self._pool_room: dict[str, Numbers] = {}
        self._reached: dict[str, Truths] = {}
        self._memory_mib = np.zeros(0, np.int64)
        self._vcpus = np.zeros(0, np.int64)

    # -- nodes ---------------------------------------------------------------------------------------------

    def put_node(self, node: Node) -> None:
        before, is_new = self.columns.version, node.id not in self.columns.row_of
        self.columns.put(node)
        if self.columns.version != before:
            self._nodes_changed(rows_moved=is_new)

    def drop_node(self, node_id: str) -> None:
        self.columns.drop(node_id)
        self._nodes_changed(rows_moved=True)

    def free_memory_mib(self) -> Numbers:
        """Of each node; a copy."""
        self._match_rows()
        return self.columns.memory_mib - self.limits.memory_reserve_mib - self._memory_mib

    def vcpus(self) -> tuple[Numbers, Numbers]:
        """Of each node, how many may be promised at all and how many are left; copies."""
        self._match_rows()
        total = (self.columns.cpu_count * self.limits.cpu_overcommit).astype(np.int64)
        return total, total - self._vcpus

    # -- VMs -----------------------------------------------------------------------------------------------

    def put_vm(self, vm_id: str, occupant: Occupant) -> None:
        """The VM as it is from now on."""
        before = self._occupants.get(vm_id)
        if before == occupant:
            return
        if before is not None:
            self._claim(before.claims, -1)
        self._occupants[vm_id] = occupant
        self._claim(occupant.claims, 1)
        node_ids = tuple(claim.node_id for claim in occupant.claims)
        self.tenants.put(vm_id, Tenant(marks=marks_of(occupant.labels), held=occupant.held, node_ids=node_ids))

    def drop_vm(self, vm_id: str) -> None:
        before = self._occupants.pop(vm_id, None)
        if before is not None:
            self._claim(before.claims, -1)
            self.tenants.drop(vm_id)

    def claims_of(self, vm_id: str) -> tuple[Claim, ...]:
        """What a VM holds; nothing of one that is not known."""
        found = self._occupants.get(vm_id)
        return found.claims if found else ()

    # -- disks ---------------------------------------------------------------------------------------------

    def put_pool(self, pool_id: str, seen: PoolSeen) -> None:
        if self.pools.get(pool_id) != seen:
            self.pools[pool_id] = seen
            self._pool_changed(pool_id)

    def drop_pool(self, pool_id: str) -> None:
        self.pools.pop(pool_id, None)
        self._pool_changed(pool_id)

    def put_volume(self, volume_id: str, lots: tuple[Lot, ...]) -> None:
        """Where a volume takes room from now on; nowhere: it is gone."""
        before = self._lots.pop(volume_id, ())
        if lots:
            self._lots[volume_id] = lots
        for lot in before:
            self._promise_bytes(lot, -lot.size_bytes)
        for lot in lots:
            self._promise_bytes(lot, lot.size_bytes)

    def reaching(self, pool_id: str) -> Truths:
        """The nodes that reach the pool. Not to be written to."""
        if pool_id not in self._reached:
            seen, found = self.pools.get(pool_id), np.zeros(self.columns.size, np.bool_)
            reached = [node_id for node_id, why_not in seen.reached.items() if not why_not] if seen else []
            found[self.columns.rows_of(reached)] = True
            self._reached[pool_id] = found
        return self._reached[pool_id]

    def pool_room(self, pool_id: str) -> Numbers | None:
        """Of each node, bytes that may still be promised to disks in the pool; None: nothing is known of the pool."""
        seen = self.pools.get(pool_id)
        if seen is None:
            return None
        if pool_id not in self._pool_room:
            room = np.full(self.columns.size, UNBOUNDED, np.int64)
            for node_id in seen.size_bytes:
                row, left = self.columns.row_of.get(node_id), self.pool_room_bytes(pool_id, node_id)
                if row is not None and left is not None:
                    room[row] = left
            self._pool_room[pool_id] = room
        return self._pool_room[pool_id]

    def pool_room_bytes(self, pool_id: str, node_id: str) -> int | None:
        """The same of one node; None: not known."""
        seen = self.pools.get(pool_id)
        if seen is None or node_id not in seen.size_bytes:
            return None
        promised = self._promised_bytes.get((pool_id, "" if seen.shared else node_id), 0)
        return int(seen.size_bytes[node_id] * self.limits.disk_overcommit) - promised

    # -- parts ---------------------------------------------------------------------------------------------

    def _nodes_changed(self, *, rows_moved: bool) -> None:
        """rows_moved: some came or went, and rows mean other nodes."""
        self.version += 1
        if rows_moved:
            self._pool_room.clear()
            self._reached.clear()
            self.tenants.rows_moved()
            self._memory_mib = self._vcpus = np.zeros(0, np.int64)

    def _pool_changed(self, pool_id: str) -> None:
        self._pool_room.pop(pool_id, None)
        self._reached.pop(pool_id, None)
        self.version += 1

    def _match_rows(self) -> None:
        """What is promised, a row a node."""
        if len(self._memory_mib) == self.columns.size:
            return
        self._memory_mib, self._vcpus = (np.zeros(self.columns.size, np.int64) for _ in range(2))
        for node_id, mine in self.committed.items():
            row = self.columns.row_of.get(node_id)
            if row is not None:
                self._memory_mib[row], self._vcpus[row] = mine.memory_mib, mine.vcpus

    def _claim(self, claims: Iterable[Claim], by: int) -> None:
        for claim in claims:
            mine = self.committed.setdefault(claim.node_id, Committed())
            mine.vm_count += by * claim.owned
            mine.memory_mib += by * claim.memory_mib
            mine.vcpus += by * claim.vcpus
            row = self.columns.row_of.get(claim.node_id)
            if row is not None and len(self._memory_mib) == self.columns.size:
                self._memory_mib[row], self._vcpus[row] = mine.memory_mib, mine.vcpus

    def _promise_bytes(self, lot: Lot, by: int) -> None:
        key = (lot.pool_id, lot.node_id)
        self._promised_bytes[key] = self._promised_bytes.get(key, 0) + by
        room, seen = self._pool_room.get(lot.pool_id), self.pools.get(lot.pool_id)
        if room is None or seen is None:
            return
        if seen.shared:
            if not lot.node_id:
                room[room < UNBOUNDED] -= by
        elif lot.node_id in seen.size_bytes:
            room[self.columns.rows_of([lot.node_id])] -= by
