"""What the balancer would do now, and what that comes to: the answer of `decide`. Pure."""

from __future__ import annotations

import msgspec

from novacron.control.balancer.company import Standing
from novacron.control.balancer.scene import Price
from novacron.control.balancer.use import Used
from novacron.errors import Reason
from novacron.model.balancer import Why

DIGITS = 9


class Score(msgspec.Struct, frozen=True, order=True):
    """How well VMs stand; less is better, what comes first decides.

    broken: hard rules that VMs stand against; unmet: what their soft rules lack; imbalance: see `Uses.imbalance`.
    """

    broken: int
    unmet: float
    imbalance: float


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """gain: by what share the more strained of its nodes is less used after it; below zero where a rule asks for it.

    before, after: the whole cluster's score, with the moves before this one done.
    """

    vm_id: str
    vm_name: str
    source_id: str
    source: str
    target_id: str
    target: str
    why: Why
    reasons: tuple[Reason, ...]
    price: Price
    gain: float
    before: Score
    after: Score


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """A node that takes VMs, before all moves and after them."""

    node_id: str
    node: str
    before: Used
    after: Used


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """by_load: CPU is counted as nodes report it, else as it is promised. reasons: why there are no more moves."""

    moves: tuple[Move, ...]
    reasons: tuple[Reason, ...]
    nodes: tuple[NodeUse, ...]
    by_load: bool
    before: Score
    after: Score


def score_of(standing: Standing, imbalance: float) -> Score:
    """Rounded, so that what is equal is equal."""
    return Score(standing.broken, round(standing.unmet, DIGITS), round(imbalance, DIGITS))
