"""A draft: where VMs would go, one after the other, each seeing what was promised to those before it. Pure.

It decides over all nodes at once what filters.py and scorers.py decide for one node and can put into words;
tests/control/test_fleet.py holds the two to each other. It changes no fleet: records do that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from novacron.control.scheduler.columns import OPEN, SPANS, Numbers, Truths
from novacron.control.scheduler.fleet import UNBOUNDED, Fleet, Known
from novacron.control.scheduler.rules import Neighbours, terms_of
from novacron.control.scheduler.scorers import soft_node_rules, soft_weight
from novacron.control.scheduler.snapshot import Candidate, Company, Need, policy_of
from novacron.control.scheduler.tenants import Selector, marks_of
from novacron.errors import Reason
from novacron.model.placement import Effect, PlacementPolicy, tolerates

Shares = npt.NDArray[np.float64]
F = TypeVar("F", float, Shares)
_CANNOT = -np.inf
_key = msgspec.msgpack.Encoder().encode
_FEW = 8  # rows that are sooner done one by one than all at once
_MOST_KNOWN = 512


class _Left(NamedTuple):
    """What a node that has taken a VM of some size has left, as part of its score; -inf: it cannot take it.

    upto: how many of a draft's promises are in it.
    """

    scores: Shares
    upto: int


class _PoolRoom:
    """What is left in a pool on each node, in a draft. least: no node has less."""

    def __init__(self, left: Numbers, *, shared: bool) -> None:
        self.left = left.copy()
        self.least = int(left.min(initial=UNBOUNDED))
        self._shared = shared

    def take(self, row: int, size_bytes: int) -> None:
        """So much is promised there, or in a pool that nodes share."""
        if self._shared:
            self.left -= size_bytes
            self.least -= size_bytes
        else:
            self.left[row] -= size_bytes
            self.least = min(self.least, int(self.left[row]))


class _Asked(NamedTuple):
    """A need, and what is known of it."""

    need: Need
    known: Known
    marks: Selector


class Draft:
    """`choose`, `promise`, and again. It stands for the moment it was made at."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._columns = fleet.columns
        self._limits = fleet.limits
        self._neighbours = Neighbours(fleet.columns, fleet.tenants)
        self._free_mib = fleet.free_memory_mib().astype(np.float64)
        vcpus, free_vcpus = fleet.vcpus()
        self._free_vcpus = free_vcpus.astype(np.float64)
        self._memory_whole = np.maximum(self._columns.memory_mib, 1).astype(np.float64)
        self._vcpus_whole = np.maximum(vcpus, 1).astype(np.float64)
        self._pool_room: dict[str, _PoolRoom] = {}
        self._left: dict[tuple[int, int, PlacementPolicy], _Left] = {}
        self._touched: list[int] = []  # rows, promise by promise
        self._asked: _Asked | None = None

    def choose(self, need: Need) -> str | None:
        """The id of the best node for it; None: no node can take it. Equal ones: the name that sorts first."""
        if not self._columns.size:
            return None
        scores, order = self.scores(need), self._columns.by_name()
        row = int(scores.argmax() if order is None else order[scores[order].argmax()])
        node = self._columns.nodes[row]
        return node.id if node is not None and scores[row] > _CANNOT else None

    def able(self, need: Need) -> list[str]:
        """The ids of all nodes that can take it, the best first; of equal ones the name that sorts first."""
        scores = self.scores(need)
        found = [(-float(scores[row]), node) for row, node in enumerate(self._columns.nodes) if node is not None]
        able = sorted((score, node.name, node.id) for score, node in found if score < np.inf)
        return [node_id for _, _, node_id in able]

    def promise(self, need: Need, node_id: str) -> None:
        """Its machine goes there: what is chosen from now on takes that into account."""
        row = self._columns.row_of[node_id]
        self._free_mib[row] -= need.memory_mib
        self._free_vcpus[row] -= need.vcpus
        self._touched.append(row)
        for disk in need.disks:
            room = self._room(disk.pool_id)
            if room is not None:
                room.take(row, disk.size_bytes)
        asked = self._ask(need)
        self._neighbours.promise(asked.known.terms, asked.marks, row)

    def without(self, vm_id: str) -> None:
        """As if that VM held nothing of any node: to ask where it could be instead."""
        for claim in self._fleet.claims_of(vm_id):
            row = self._columns.row_of.get(claim.node_id)
            if row is not None:
                self._free_mib[row] += claim.memory_mib
                self._free_vcpus[row] += claim.vcpus
                self._touched.append(row)
        self._neighbours.without(vm_id)

    def seen(self, candidate: Candidate) -> Candidate:
        """A node as it stands in this draft; one that the fleet does not have yet, as it is."""
        row = self._columns.row_of.get(candidate.node.id)
        if row is None:
            return candidate
        own = {pool_id: int(room.left[row]) for pool_id, room in self._pool_room.items()}
        whole_mib = int(self._columns.memory_mib[row]) - self._limits.memory_reserve_mib
        return msgspec.structs.replace(
            candidate,
            committed_memory_mib=whole_mib - int(self._free_mib[row]),
            committed_vcpus=int(self._fleet.vcpus()[0][row] - self._free_vcpus[row]),
            pool_room_bytes={pool_id: own.get(pool_id, room) for pool_id, room in candidate.pool_room_bytes.items()},
        )

    def scores(self, need: Need) -> Shares:
        """How good each node is; -inf: it cannot take it."""
        asked = self._ask(need)
        total = asked.known.standing + self._room_left(need)
        drawn = self._neighbours.drawn(asked.known.terms)
        if drawn is not None:
            by_place, over = drawn
            part = self._limits.weights.rules * (by_place / asked.known.soft_weight)
            total += self._neighbours.everywhere(part, over)
        cannot: Truths | None = None
        for barred in self._barred(asked):
            cannot = barred if cannot is None else cannot | barred
        if cannot is not None:
            np.putmask(total, cannot, _CANNOT)
        return total

    def company(self, need: Need) -> Company:
        """What rules between VMs say of each node, for those who look at one node at a time."""
        barred: dict[str, tuple[Reason, ...]] = {}
        asked = self._ask(need)
        for bar in self._neighbours.bars(asked.known.terms, asked.marks):
            for row in np.flatnonzero(bar.barred):
                node = self._columns.nodes[row]
                if node is not None:
                    why = Reason(bar.code, f"{node.name}: {bar.message}", node.name, bar.remedy)
                    barred[node.id] = (*barred.get(node.id, ()), why)
        drawn = self._neighbours.drawn(asked.known.terms)
        if drawn is None:
            return Company(barred=barred)
        shares = self._neighbours.everywhere(*drawn)
        return Company(
            barred=barred, drawn={node_id: float(shares[row]) for node_id, row in self._columns.row_of.items()}
        )

    def with_company(self, need: Need) -> Need:
        """The need with its company in it."""
        return msgspec.structs.replace(need, company=self.company(need))

    # -- parts ---------------------------------------------------------------------------------------------

    def _barred(self, asked: _Asked) -> Iterator[Truths]:
        """Where it cannot go for what changes as VMs are placed, memory and CPU aside."""
        for disk in asked.need.disks:
            room = self._room(disk.pool_id)
            if room is not None and room.least < disk.size_bytes:
                yield room.left < disk.size_bytes
        yield from self._neighbours.barred(asked.known.terms, asked.marks)

    def _room(self, pool_id: str) -> _PoolRoom | None:
        """The draft's own; None: nothing is known of the pool."""
        if pool_id not in self._pool_room:
            room = self._fleet.pool_room(pool_id)
            if room is None:
                return None
            self._pool_room[pool_id] = _PoolRoom(room, shared=self._fleet.pools[pool_id].shared)
        return self._pool_room[pool_id]

    def _room_left(self, need: Need) -> Shares:
        """The part of the score that is about memory and CPU; not to be written to."""
        key = (need.memory_mib, need.vcpus, policy_of(need, self._limits))
        left, now = self._left.get(key), len(self._touched)
        if left is None or now - left.upto > _FEW:
            memory = (self._free_mib - need.memory_mib) / self._memory_whole
            vcpus = (self._free_vcpus - need.vcpus) / self._vcpus_whole
            scores = self._of_shares(memory, vcpus, key[2])
            np.putmask(scores, (memory < 0) | (vcpus < 0), _CANNOT)
        else:
            scores = left.scores
            for row in self._touched[left.upto :]:
                memory_share = float(self._free_mib[row] - need.memory_mib) / float(self._memory_whole[row])
                vcpus_share = float(self._free_vcpus[row] - need.vcpus) / float(self._vcpus_whole[row])
                fits = memory_share >= 0 and vcpus_share >= 0
                scores[row] = self._of_shares(memory_share, vcpus_share, key[2]) if fits else _CANNOT
        self._left[key] = _Left(scores, now)
        return scores

    def _of_shares(self, memory: F, vcpus: F, policy: PlacementPolicy) -> F:
        """Of the shares that stay free."""
        weights = self._limits.weights
        if policy is PlacementPolicy.SPREAD:
            return weights.memory * memory + weights.vcpus * vcpus
        if policy is PlacementPolicy.PACK:
            return weights.memory * (1 - memory) + weights.vcpus * (1 - vcpus)
        return (weights.memory + weights.vcpus) * (1 - abs(memory - vcpus))

    def _ask(self, need: Need) -> _Asked:
        """The need made ready. Who is placed is asked about twice, so the last one is remembered."""
        if self._asked is None or self._asked.need is not need:
            self._asked = _Asked(need, self._known(need), marks_of(need.labels))
        return self._asked

    def _known(self, need: Need) -> Known:
        """What is so of the need for as long as no node and no pool changes: it is kept with the fleet."""
        asked = (need.driver, need.machine, need.features, need.machine_type, need.cpu_model, need.accelerator)
        lies = (need.pool_id, need.pools, need.bridges, need.overlay, need.node_id, need.not_nodes)
        key, known = _key((asked, lies, need.wishes)), self._fleet.known
        found = known.get(key)
        if found is None or found.version != self._fleet.version:
            if len(known) >= _MOST_KNOWN:
                known.clear()
            terms = terms_of(need.wishes.vm_rules)
            found = Known(self._fleet.version, self._find_standing(need), terms, soft_weight(need))
            known[key] = found
        return found

    def _find_fitting(self, need: Need) -> Truths:
        columns = self._columns
        fitting = columns.with_mark(OPEN).copy()
        for mark in _demanded(need):
            fitting &= columns.with_mark(mark)
        for rule in need.wishes.node_rules:
            if rule.hard:
                fitting &= self._with_labels(rule.labels) ^ rule.avoid
        for taint in columns.taints:
            if taint.effect is Effect.REFUSE and not tolerates(need.wishes.tolerations, taint):
                fitting &= ~columns.with_taint(taint)
        if need.node_id:
            fitting &= self._rows([need.node_id])
        if need.not_nodes:
            fitting &= ~self._rows(need.not_nodes)
        for pool in need.pools:
            fitting &= self._fleet.reaching(pool.id)
            if pool.node_id:
                fitting &= self._rows([pool.node_id])
        return fitting

    def _rows(self, node_ids: tuple[str, ...] | list[str]) -> Truths:
        found = np.zeros(self._columns.size, np.bool_)
        found[self._columns.rows_of(node_ids)] = True
        return found

    def _with_labels(self, labels: dict[str, str]) -> Truths:
        found = np.ones(self._columns.size, np.bool_)
        for key, value in labels.items():
            found &= self._columns.with_label(key, value)
        return found

    def _find_standing(self, need: Need) -> Shares:
        """What of the score does not change as VMs are placed; -inf for nodes that lack something."""
        weights, columns = self._limits.weights, self._columns
        untainted = np.ones(columns.size, np.bool_)
        for taint in columns.taints:
            if taint.effect is Effect.AVOID and not tolerates(need.wishes.tolerations, taint):
                untainted &= ~columns.with_taint(taint)
        total = weights.accelerated * columns.with_mark(f"{need.driver}:accelerator:kvm")
        total = total + weights.untainted * untainted
        if rules := soft_node_rules(need):
            kept = np.zeros(columns.size, np.float64)
            for rule in rules:
                kept = kept + rule.weight * (self._with_labels(rule.labels) ^ rule.avoid)
            total = total + weights.rules * (kept / soft_weight(need))
        return np.where(self._find_fitting(need), total, _CANNOT)


def _demanded(need: Need) -> list[str]:
    """The marks that a node must have to take it."""
    driver = need.driver
    wished = (
        (f"{driver}:machine:{need.machine.value}", True),
        (f"{driver}:type:{need.machine_type}", bool(need.machine_type)),
        (f"{driver}:model:{need.cpu_model}", bool(need.cpu_model)),
        (f"{driver}:accelerator:{need.accelerator}", bool(need.accelerator)),
        (f"own-pool:{need.pool_id}", bool(need.pool_id)),
        (SPANS, need.overlay),
    )
    marks = [mark for mark, is_asked in wished if is_asked]
    marks += [f"{driver}:feature:{feature}" for feature in need.features]
    return marks + [f"bridge:{bridge}" for bridge in need.bridges]
