"""The balancer: what is sent, what is answered, and every call about it."""

from __future__ import annotations

import datetime

import msgspec

from novacron.client.call import Call, path_of
from novacron.client.migrations import Reason

COLLECTION = "balancer"


class BalancerPut(msgspec.Struct, frozen=True, kw_only=True):
    """Whether VMs are moved by themselves (off, propose, act), and how sure that has to be."""

    mode: str = "off"
    margin: float = 0.1
    pays_within_s: float = 900
    cool_down_s: float = 3600
    node_cool_down_s: float = 600
    max_moves: int = 2
    window_s: float = 300


class Balancer(msgspec.Struct, frozen=True, kw_only=True):
    """As it is set. revision 0: nobody has set it."""

    mode: str
    margin: float
    pays_within_s: float
    cool_down_s: float
    node_cool_down_s: float
    max_moves: int
    window_s: float
    updated_at: datetime.datetime | None
    revision: int


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How well VMs stand; less is better, and what comes first decides."""

    broken_rules: int
    unmet_rules: float
    imbalance: float


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """why: hard_rule, soft_rule or load. before, after: the score with all moves before it done, and with this one."""

    vm: str
    vm_id: str
    source_node: str
    target_node: str
    why: str
    reasons: list[Reason]
    kind: str
    total_s: float
    downtime_s: float
    stream_bytes: int
    disk_bytes: int
    price_s: float
    gain: float
    before: Score
    after: Score


class NodeUse(msgspec.Struct, frozen=True, kw_only=True):
    """The shares of a node's memory and CPUs that are used, and would be after all moves."""

    node: str
    node_id: str
    memory: float
    cpu: float
    memory_after: float
    cpu_after: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """moves: in this order. reasons: why there are no more. cpu_by: load or promises; None: it is off."""

    mode: str
    cpu_by: str | None
    moves: list[Move]
    reasons: list[Reason]
    nodes: list[NodeUse]
    before: Score | None
    after: Score | None


def get() -> Call[Balancer]:
    """How it is set."""
    return Call(method="GET", path=path_of(COLLECTION), answer=Balancer)


def put(wished: BalancerPut, *, revision: int | None = None) -> Call[Balancer]:
    """Set all of it; with `revision`, only when it is still that one."""
    return Call(method="PUT", path=path_of(COLLECTION), answer=Balancer, body=wished, revision=revision)


def plan() -> Call[Plan]:
    """What it would begin now, and why no more. Nothing is changed."""
    return Call(method="GET", path=path_of(COLLECTION, "plan"), answer=Plan)
