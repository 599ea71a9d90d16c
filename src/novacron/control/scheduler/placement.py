"""Placement: filter the nodes, score what is left, choose; every node that was passed over has its reason."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.scheduler.filters import FILTERS
from novacron.control.scheduler.scorers import parts_of
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
    """Every reason why this node cannot take the machine: one of each filter, and of each rule between VMs. Of a node
    that has not said what it has there is no other to tell.
    """
    found: list[Reason] = []
    for ask in FILTERS:
        reason = ask(need, candidate, limits)
        if reason is not None:
            found.append(reason)
            if reason.code == "node.unknown":
                return tuple(found)
    return (*found, *need.company.barred.get(candidate.node.id, ())[1:])


def score_of(need: Need, candidate: Candidate, limits: Limits) -> Score:
    """How good a node is that can take the machine."""
    groups = parts_of(need, candidate, limits)
    parts = {name: part for group in groups for name, part in group.items()}
    return Score(candidate.node.id, sum(sum(group.values()) for group in groups), parts)


def choose(need: Need, nodes: Sequence[Candidate], limits: Limits = Limits()) -> Placement:  # noqa: B008 (frozen)
    """The best node for the need. Equal scores go to the node whose name sorts first, so that answers repeat."""
    refusals: list[Reason] = []
    scored: list[tuple[float, str, Score]] = []
    for candidate in nodes:
        reason = refusal(need, candidate, limits)
        if reason is not None:
            refusals.append(reason)
            continue
        score = score_of(need, candidate, limits)
        scored.append((-score.total, candidate.node.name, score))
    scored.sort(key=lambda item: item[:2])
    scores = tuple(score for _, _, score in scored)
    return Placement(node_id=scores[0].node_id if scores else None, refusals=tuple(refusals), scores=scores)
