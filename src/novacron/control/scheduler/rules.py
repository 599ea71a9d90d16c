"""Rules between VMs over all nodes at once: where they bar a VM, and how far the soft ones are fulfilled. Pure.

A place is one node, or all nodes with the same value of a label. A node without the label is in no place: a VM's own
hard rules over that label bar it there. What is counted is counted by place, and spread out over the nodes at the end:
the last number of a count by label stands for no place at all, which is where an index of NOWHERE leads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from novacron.control.scheduler.columns import NOWHERE, OPEN, Columns, Numbers, Truths
from novacron.control.scheduler.tenants import Held, Selector, Tenants, first_mark, held_of, selector_of
from novacron.model.placement import NODE_LABEL, RuleKind, VmRule, in_words

S = TypeVar("S", np.bool_, np.float64)
Shares = npt.NDArray[np.float64]


class Bar(NamedTuple):
    """Why nodes are barred, and which."""

    code: str
    message: str
    remedy: str
    barred: Truths


class Term(NamedTuple):
    """A VmRule, ready to be counted. mark: one of the selector's."""

    kind: RuleKind
    selector: Selector
    mark: tuple[str, str]
    over: str
    weight: int


class Terms(NamedTuple):
    """The rules between VMs of one of them. held: those that bind the others."""

    hard: tuple[Term, ...]
    soft: tuple[Term, ...]
    held: frozenset[Held]


class _Change(NamedTuple):
    """One VM more, or one less, on a node than the fleet has."""

    marks: Selector
    held: frozenset[Held]
    row: int
    by: int


def terms_of(rules: Sequence[VmRule]) -> Terms:
    """Of a VM with these rules."""
    hard, soft = (tuple(_term(rule) for rule in rules if rule.hard is kept) for kept in (True, False))
    return Terms(hard, soft, held_of(rules))


def _term(rule: VmRule) -> Term:
    selector = selector_of(rule.labels)
    return Term(rule.kind, selector, first_mark(selector), rule.over, rule.weight)


class Neighbours:
    """The VMs of a fleet, with those that were promised since, which it does not know of, and without others.

    marks: those of the VM that is asked about, or promised (see tenants.marks_of).
    """

    def __init__(self, columns: Columns, tenants: Tenants) -> None:
        self._columns = columns
        self._tenants = tenants
        self._changes: list[_Change] = []
        self._selected: dict[tuple[str, str], dict[tuple[Selector, str], Numbers]] = {}  # by one mark of the selector
        self._holding: dict[Held, Numbers] = {}
        self._new_held: set[Held] = set()
        self._against: dict[Selector, set[Held]] = {}
        self._open: dict[str, Truths] = {}

    def promise(self, terms: Terms, marks: Selector, row: int) -> None:
        """One more VM is on that node."""
        self._change(_Change(marks, terms.held, row, 1))
        if not terms.held <= self._new_held:
            self._new_held |= terms.held
            self._against.clear()

    def without(self, vm_id: str) -> None:
        """That VM of the fleet is nowhere."""
        tenant = self._tenants.get(vm_id)
        if tenant is not None:
            for row in self._columns.rows_of(tenant.node_ids):
                self._change(_Change(tenant.marks, tenant.held, row, -1))

    def barred(self, terms: Terms, marks: Selector) -> Iterator[Truths]:
        """For each hard rule, its own or others', where it bars the VM."""
        for term in terms.hard:
            yield self._own(term)
        for held in self._held_against(marks):
            yield self._kept_away(held)

    def bars(self, terms: Terms, marks: Selector) -> Iterator[Bar]:
        """The same, in words."""
        for term in terms.hard:
            remedy = "make room on other nodes, or take the rule away"
            yield Bar(f"affinity.{term.kind.value}", _told(term), remedy, self._own(term))
        for held in self._held_against(marks):
            message = f"a VM there keeps apart from VMs labelled {in_words(dict(held[0]))}{_over(held[1])}"
            yield Bar("affinity.kept_away", message, "move that VM, or change its rules", self._kept_away(held))

    def drawn(self, terms: Terms) -> tuple[Shares, str] | None:
        """The sum of its soft rules' weights, each times how far it is fulfilled; None: it has none.

        By place, with the label that says which; for each node when its rules are about places of several kinds.
        """
        overs = {term.over for term in terms.soft}
        over = overs.pop() if len(overs) == 1 else NODE_LABEL
        total: Shares | None = None
        for term in terms.soft:
            part = term.weight * self._fulfilled(term)
            part = part if term.over == over else self.everywhere(part, term.over)
            total = part if total is None else total + part
        return None if total is None else (total, over)

    def everywhere(self, by_place: npt.NDArray[S], over: str) -> npt.NDArray[S]:
        """What is so by place, for each node."""
        return by_place if over == NODE_LABEL else by_place[self._columns.places(over)]

    # -- rules ---------------------------------------------------------------------------------------------

    def _own(self, term: Term) -> Truths:
        counted = self._count(term)
        if term.kind is RuleKind.TOGETHER:
            barred = counted == 0 if counted.any() else np.zeros(len(counted), np.bool_)
            return self.everywhere(barred, term.over)
        barred = counted > (0 if term.kind is RuleKind.APART else self._fewest(term, counted))
        if term.over != NODE_LABEL:
            barred[NOWHERE] = True
        return self.everywhere(barred, term.over)

    def _kept_away(self, held: Held) -> Truths:
        return self.everywhere(self._holders(held) > 0, held[1])

    def _fulfilled(self, term: Term) -> Shares:
        """By place, from 0 to 1."""
        counted = self._count(term)
        if term.kind is RuleKind.TOGETHER:
            share = (counted > 0).astype(np.float64)
        elif term.kind is RuleKind.APART:
            share = 1 / (1 + counted)
        else:
            share = 1 / (1 + np.maximum(counted - self._fewest(term, counted), 0))
        if term.over != NODE_LABEL:
            share[NOWHERE] = 0.0
        return share

    def _fewest(self, term: Term, counted: Numbers) -> int:
        """How many are where fewest are, of the places that take VMs at all."""
        over = term.over
        if over not in self._open:
            open_ = self._columns.with_mark(OPEN)
            if over != NODE_LABEL:
                found = np.zeros(len(counted), np.bool_)
                found[self._columns.places(over)[open_]] = True
                found[NOWHERE] = False
                open_ = found
            self._open[over] = open_
        looked_at = counted[self._open[over]]
        return int(np.minimum.reduce(looked_at)) if len(looked_at) else 0

    # -- counting ------------------------------------------------------------------------------------------

    def _count(self, term: Term) -> Numbers:
        """By place, how many of the rule's VMs are there."""
        selector, over = term.selector, term.over
        known = self._selected.setdefault(term.mark, {})
        if (selector, over) not in known:
            counted = self._by_place(self._tenants.counts(selector), over)
            for change in self._changes:
                if selector <= change.marks:
                    self._add(counted, over, change)
            known[selector, over] = counted
        return known[selector, over]

    def _holders(self, held: Held) -> Numbers:
        """By place, how many VMs there hold that rule."""
        if held not in self._holding:
            counted = self._by_place(self._tenants.holders(held), held[1])
            for change in self._changes:
                if held in change.held:
                    self._add(counted, held[1], change)
            self._holding[held] = counted
        return self._holding[held]

    def _held_against(self, marks: Selector) -> set[Held]:
        if marks not in self._against:
            new = (held for held in self._new_held if held[0] <= marks)
            self._against[marks] = {*self._tenants.held_against(marks), *new}
        return self._against[marks]

    def _by_place(self, by_node: Numbers, over: str) -> Numbers:
        """The draft's own."""
        if over == NODE_LABEL:
            return by_node.copy()
        places, count = self._columns.places(over), self._columns.place_count(over)
        counted = np.bincount(np.where(places == NOWHERE, count, places), weights=by_node, minlength=count + 1)
        counted[NOWHERE] = 0
        return counted.astype(np.int64)

    def _change(self, change: _Change) -> None:
        self._changes.append(change)
        for mark in change.marks:
            for (selector, over), counted in self._selected.get(mark, {}).items():
                if selector <= change.marks:
                    self._add(counted, over, change)
        for held in change.held:
            if held in self._holding:
                self._add(self._holding[held], held[1], change)

    def _add(self, counted: Numbers, over: str, change: _Change) -> None:
        """One more, or one less, in the place of that node."""
        place = change.row if over == NODE_LABEL else int(self._columns.places(over)[change.row])
        if place != NOWHERE:
            counted[place] += change.by


def _told(term: Term) -> str:
    """What is so of a node that the rule bars."""
    whom, over = in_words(dict(term.selector)), _over(term.over)
    if term.kind is RuleKind.TOGETHER:
        return f"no VM labelled {whom} is there{over}"
    told = f"a VM labelled {whom} is" if term.kind is RuleKind.APART else f"more VMs labelled {whom} are"
    than = "" if term.kind is RuleKind.APART else " than elsewhere"
    no_place = "" if term.over == NODE_LABEL else f", or it has no label {term.over}"
    return f"{told} there{than}{over}{no_place}"


def _over(over: str) -> str:
    return "" if over == NODE_LABEL else f", by {over}"
