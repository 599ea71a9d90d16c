"""Which VMs stand where their rules, or a taint, would not have them, and what a move changes in that. Pure.

A draft says where a VM may go. What it does not say is whether others are worse off once it has gone: whoever must be
together with it, or spreads over the places it leaves. So every rule is counted here, before a move and after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from novacron.control.balancer.scene import Scene, Seat
from novacron.control.scheduler.tenants import Selector, first_mark, marks_of, selector_of
from novacron.errors import Reason
from novacron.model.node import labels_of
from novacron.model.placement import NODE_LABEL, Effect, NodeRule, RuleKind, VmRule, in_words, matches, tolerates

FULL_WEIGHT = 100
_Key = tuple[Selector, str]


class Standing(msgspec.Struct, frozen=True, order=True):
    """broken: hard rules and taints that VMs stand against. unmet: what soft ones lack, 1 for a whole one of weight
    100.
    """

    broken: int = 0
    unmet: float = 0.0

    def plus(self, other: Standing) -> Standing:
        return Standing(self.broken + other.broken, self.unmet + other.unmet)


class Company:
    """As things stand after every `move`."""

    def __init__(self, scene: Scene) -> None:
        self._nodes = {post.node.id: post.node for post in scene.posts}
        self._open = [post.node.id for post in scene.posts if post.is_open]
        self._taking: dict[str, frozenset[str]] = {}
        self._seats = {seat.vm_id: seat for seat in scene.seats}
        self._at = {seat.vm_id: seat.node_id for seat in scene.seats}
        self._marks: dict[str, Selector] = {}
        self._counts: dict[_Key, Counter[str]] = {}
        self._holders: dict[tuple[str, str], dict[str, set[Selector]]] = defaultdict(dict)
        self._places: dict[str, dict[str, str]] = {NODE_LABEL: {node_id: node_id for node_id in self._nodes}}
        self._fewest: dict[_Key, int] = {}
        self.minding = [seat for seat in scene.seats if self._minds(seat)]
        self._begin(scene.seats)

    def _minds(self, seat: Seat) -> bool:
        """Whether it has rules, or stands on a node with a taint."""
        node = self._nodes.get(seat.node_id)
        wishes = seat.need.wishes
        return bool(wishes.vm_rules or wishes.node_rules or (node is not None and node.taints))

    def _begin(self, seats: Iterable[Seat]) -> None:
        for seat in seats:
            for rule in seat.need.wishes.vm_rules:
                selector = selector_of(rule.labels)
                self._counts.setdefault((selector, rule.over), Counter())
                self._holders[first_mark(selector)].setdefault(seat.vm_id, set()).add(selector)
        if not self._counts:
            return
        for seat in seats:
            self._count(seat, seat.node_id, 1)

    # -- what is asked -------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """Of all VMs together: of those that mind anything."""
        total = Standing()
        for seat in self.minding:
            total = total.plus(self.of(seat))
        return total

    def of(self, seat: Seat) -> Standing:
        """Of one VM."""
        return Standing(sum(1 for _ in self.broken(seat)), sum(self._unmet(seat)))

    def change(self, seat: Seat, target_id: str) -> Standing:
        """What the move adds for this VM and all whose rules are about it; below zero: they are better off."""
        concerned = self._concerned(seat)
        before = [self.of(one) for one in concerned]
        home = self._at[seat.vm_id]
        self.move(seat, target_id)
        after = [self.of(one) for one in concerned]
        self.move(seat, home)
        return Standing(
            sum(one.broken for one in after) - sum(one.broken for one in before),
            sum(one.unmet for one in after) - sum(one.unmet for one in before),
        )

    def move(self, seat: Seat, target_id: str) -> None:
        """The VM is there now."""
        self._count(seat, self._at[seat.vm_id], -1)
        self._at[seat.vm_id] = target_id
        self._count(seat, target_id, 1)

    def broken(self, seat: Seat) -> Iterator[Reason]:
        """The hard rules that it stands against where it is, in words."""
        node = self._nodes.get(self._at[seat.vm_id])
        if node is None:
            return
        wishes, labels = seat.need.wishes, labels_of(node)
        for taint in node.taints:
            if taint.effect is Effect.REFUSE and not tolerates(wishes.tolerations, taint):
                yield Reason("node.tainted", f"its node is tainted {taint.key}", node.name)
        for rule in wishes.node_rules:
            if rule.hard and not _holds(rule, labels):
                told = f"its node is {'' if rule.avoid else 'not '}labelled {in_words(rule.labels)}"
                yield Reason("node.unwished" if rule.avoid else "node.not_labelled", told, node.name)
        for vm_rule in wishes.vm_rules:
            if vm_rule.hard and self._is_broken(seat, vm_rule):
                yield Reason(f"affinity.{vm_rule.kind.value}", _told(vm_rule), node.name)

    def lacking(self, seat: Seat) -> float:
        """The most that its soft rules, and taints that would rather not have it, can come to."""
        node = self._nodes.get(self._at[seat.vm_id])
        rules: tuple[VmRule | NodeRule, ...] = (*seat.need.wishes.vm_rules, *seat.need.wishes.node_rules)
        weights = sum(rule.weight / FULL_WEIGHT for rule in rules if not rule.hard)
        return weights + (1.0 if node and any(one.effect is Effect.AVOID for one in node.taints) else 0.0)

    # -- parts ---------------------------------------------------------------------------------------------

    def _unmet(self, seat: Seat) -> Iterator[float]:
        node = self._nodes.get(self._at[seat.vm_id])
        if node is None:
            return
        wishes, labels = seat.need.wishes, labels_of(node)
        minded = (one for one in node.taints if one.effect is Effect.AVOID)
        if not all(tolerates(wishes.tolerations, one) for one in minded):
            yield 1.0
        for rule in wishes.node_rules:
            if not rule.hard and not _holds(rule, labels):
                yield rule.weight / FULL_WEIGHT
        for vm_rule in wishes.vm_rules:
            if not vm_rule.hard:
                yield vm_rule.weight / FULL_WEIGHT * (1 - self._fulfilled(seat, vm_rule))

    def _is_broken(self, seat: Seat, rule: VmRule) -> bool:
        place, others, elsewhere = self._others(seat, rule)
        if rule.kind is RuleKind.TOGETHER:
            return others == 0 and elsewhere > 0
        if place is None:
            return True
        return others > (0 if rule.kind is RuleKind.APART else self._least(rule, place, others))

    def _fulfilled(self, seat: Seat, rule: VmRule) -> float:
        place, others, _ = self._others(seat, rule)
        if place is None:
            return 0.0
        if rule.kind is RuleKind.TOGETHER:
            return 1.0 if others else 0.0
        if rule.kind is RuleKind.APART:
            return 1 / (1 + others)
        return 1 / (1 + max(0, others - self._least(rule, place, others)))

    def _others(self, seat: Seat, rule: VmRule) -> tuple[str | None, int, int]:
        """Where it is, how many others of the rule's VMs are there, and how many are anywhere else."""
        key = (selector_of(rule.labels), rule.over)
        counted, place = self._counts[key], self._place(rule.over, self._at[seat.vm_id])
        own = 1 if key[0] <= self._marks_of(seat) else 0
        if place is None:
            return None, 0, counted.total()
        there = counted[place] - own
        return place, there, counted.total() - own - there

    def _least(self, rule: VmRule, place: str, others: int) -> int:
        """How many of the rule's VMs, but for this one, are where fewest are, of the places that take VMs."""
        key = (selector_of(rule.labels), rule.over)
        if key not in self._fewest:
            counted = self._counts[key]
            self._fewest[key] = min((counted[one] for one in self._open_places(rule.over)), default=0)
        return min(self._fewest[key], others) if place in self._open_places(rule.over) else self._fewest[key]

    def _open_places(self, over: str) -> frozenset[str]:
        """Places with a node that takes VMs."""
        if over not in self._taking:
            places = (self._place(over, node_id) for node_id in self._open)
            self._taking[over] = frozenset(place for place in places if place is not None)
        return self._taking[over]

    def _place(self, over: str, node_id: str) -> str | None:
        if over not in self._places:
            known = ((node_id, labels_of(node).get(over)) for node_id, node in self._nodes.items())
            self._places[over] = {node_id: place for node_id, place in known if place is not None}
        return self._places[over].get(node_id)

    def _concerned(self, seat: Seat) -> list[Seat]:
        """The VM, and whoever has a rule about it."""
        marks, found = self._marks_of(seat), {seat.vm_id: seat}
        for mark in marks:
            for vm_id, selectors in self._holders.get(mark, {}).items():
                if any(selector <= marks for selector in selectors):
                    found[vm_id] = self._seats[vm_id]
        return list(found.values())

    def _marks_of(self, seat: Seat) -> Selector:
        if seat.vm_id not in self._marks:
            self._marks[seat.vm_id] = marks_of(seat.need.labels)
        return self._marks[seat.vm_id]

    def _count(self, seat: Seat, node_id: str, by: int) -> None:
        if not self._counts or not seat.need.labels:
            return
        marks = self._marks_of(seat)
        for (selector, over), counted in self._counts.items():
            place = self._place(over, node_id) if selector <= marks else None
            if place is not None:
                counted[place] += by
                self._fewest.pop((selector, over), None)


def _holds(rule: NodeRule, labels: dict[str, str]) -> bool:
    return matches(rule.labels, labels) is not rule.avoid


def _told(rule: VmRule) -> str:
    whom = in_words(rule.labels)
    over = "" if rule.over == NODE_LABEL else f", by {rule.over}"
    match rule.kind:
        case RuleKind.TOGETHER:
            return f"no VM labelled {whom} is with it{over}"
        case RuleKind.APART:
            return f"a VM labelled {whom} is with it, or it has no place{over}"
        case RuleKind.SPREAD:
            return f"more VMs labelled {whom} are with it than elsewhere{over}"
