"""Placement: filter the nodes, score what is left, choose; every node that was passed over has its reason."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.scheduler.filters import FILTERS
from novacron.control.scheduler.scorers import WEIGHTS
from novacron.control.scheduler.snapshot import Candidate, Limits, Need
from novacron.errors import Reason

__all__ = ["Candidate", "Limits", "Need", "Placement", "choose", "refusal", "refusals"]


class Score(msgspec.Struct, frozen=True):
    """A node's total, and the parts it was made of, each already weighted."""

    node_id: str
    total: float
    parts: dict[str, float]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """node_id: where it should go, None when nowhere; refusals: one reason for each node that cannot take it."""

    node_id: str | None
    refusals: tuple[Reason, ...]
    scores: tuple[Score, ...]


def refusal(need: Need, candidate: Candidate, limits: Limits = Limits()) -> Reason | None:  # noqa: B008 (frozen)
    """The first reason why this node cannot take the machine, or None."""
    for ask in FILTERS:
        reason = ask(need, candidate, limits)
        if reason is not None:
            return reason
    return None


def refusals(need: Need, candidate: Candidate, limits: Limits = Limits()) -> tuple[Reason, ...]:  # noqa: B008 (frozen)
    """Every reason why this node cannot take the machine, one of each filter. Of a node that has not said what it has
    there is no other to tell.
    """
    found: list[Reason] = []
    for ask in FILTERS:
        reason = ask(need, candidate, limits)
        if reason is not None:
            found.append(reason)
            if reason.code == "node.unknown":
                break
    return tuple(found)


def choose(need: Need, nodes: Sequence[Candidate], limits: Limits = Limits()) -> Placement:  # noqa: B008 (frozen)
    """The best node for the need. Equal scores go to the node whose name sorts first, so that answers repeat."""
    refusals: list[Reason] = []
    scored: list[tuple[float, str, Score]] = []
    for candidate in nodes:
        reason = refusal(need, candidate, limits)
        if reason is not None:
            refusals.append(reason)
            continue
        parts = {name: weight * scorer(need, candidate, limits) for name, scorer, weight in WEIGHTS}
        total = sum(parts.values())
        scored.append((-total, candidate.node.name, Score(candidate.node.id, total, parts)))
    scored.sort(key=lambda item: item[:2])
    scores = tuple(score for _, _, score in scored)
    return Placement(node_id=scores[0].node_id if scores else None, refusals=tuple(refusals), scores=scores)
