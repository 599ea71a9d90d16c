"""How much may move at once: in all, on a node, between two nodes, and each move's share of the bandwidth. Pure.

A machine at rest is moved by one write to the store, so its move counts for nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from novacron.errors import Reason
from novacron.model.bulk_migration import BulkLimits

Pair = tuple[str, str]


def link_of(one: str, other: str) -> Pair:
    """The way between two nodes: the same in both directions."""
    return (one, other) if one <= other else (other, one)


class Carried:
    """What is under way. own: how many of them are of the bulk migration in question."""

    def __init__(self, pairs: Iterable[Pair] = (), own: int = 0) -> None:
        self.own = own
        self.nodes: Counter[str] = Counter()
        self.links: Counter[Pair] = Counter()
        for source, target in pairs:
            self._count(source, target, 1)

    def begin(self, source: str, target: str) -> None:
        """One more of its own."""
        self.own += 1
        self._count(source, target, 1)

    def end(self, source: str, target: str) -> None:
        """One less."""
        self.own -= 1
        self._count(source, target, -1)

    def _count(self, source: str, target: str, by: int) -> None:
        for node in (source, target):
            self.nodes[node] += by
        self.links[link_of(source, target)] += by

    def refusal(self, limits: BulkLimits, source: str, target: str = "") -> Reason | None:
        """Why no move may begin there now, or None. target empty: whatever the target."""
        if self.own >= limits.max_concurrent:
            return _refuse("limit.max_concurrent", f"{limits.max_concurrent} are under way in all", "")
        for node in (source, target):
            if node and self.nodes[node] >= limits.per_node:
                return _refuse("limit.per_node", f"the node carries {limits.per_node} already", node)
        if target and self.links[link_of(source, target)] >= limits.per_link:
            message = f"the link between the two nodes carries {limits.per_link} already"
            return _refuse("limit.per_link", message, f"{source} {target}")
        return None


def at_once(limits: BulkLimits, ways: Iterable[tuple[str, Iterable[str]]]) -> int:
    """How many of these (source, possible targets) the limits let move together, at least 1."""
    carried = Carried()
    for source, targets in ways:
        for target in targets:
            if carried.refusal(limits, source, target) is None:
                carried.begin(source, target)
                break
    return max(1, carried.own)


def shares(budget: int, caps: Mapping[str, int], held: int = 0) -> dict[str, int]:
    """What of the budget each of these moves gets, in bytes a second: the same, but none more than its own cap (0: it
    has none), and what that leaves over is the others'. One that would get nothing is left out. The sum never exceeds
    the budget.

    held: what others have of it for good.
    """
    left, found = max(0, budget - held), {}
    rising = sorted(caps, key=lambda one: (caps[one] or budget, one))
    for at, one in enumerate(rising):
        part = min(caps[one] or budget, left // (len(rising) - at))
        left -= part
        if part:
            found[one] = part
    return found


def _refuse(code: str, message: str, subject: str) -> Reason:
    return Reason(code, message, subject, "wait until a move has ended, or allow more at once")
