"""The balancer on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import Field

from novacron.model.balancer import Mode, Why
from novacron.wire.rest.common import ReasonOut, Strict, example

Seconds = Annotated[float, Field(ge=0, le=31 * 86_400)]


class BalancerPut(Strict):
    """Whether VMs are moved by themselves, and how sure that has to be."""

    mode: Mode = Field(Mode.OFF, description="off; propose: what would be moved is shown; act: it is moved, too.")
    margin: float = Field(
        0.1,
        ge=0.01,
        le=1,
        description="How far apart two nodes must be used, as a share of what they have, before a VM goes from one to"
        " the other for load; and the share of its soft rules by which a VM must be better off.",
    )
    pays_within_s: Seconds = Field(
        900, description="So much a move may cost in seconds (one of standstill counts 60); less where it helps less."
    )
    cool_down_s: Seconds = Field(3600, description="A VM that was moved, by whomever, is left alone for so long.")
    node_cool_down_s: Seconds = Field(
        600, description="A node that a move of the balancer's began or ended at has none for load for so long."
    )
    max_moves: int = Field(2, ge=1, le=100, description="Of the balancer's own at once.")
    window_s: float = Field(300, ge=10, le=86_400, description="Over so long the load of nodes is smoothed.")

    model_config = Strict.model_config | example({"mode": "propose", "margin": 0.15})


class Balancer(BalancerPut):
    """The balancer as it is set. revision 0, updated_at null: nobody has set it."""

    updated_at: datetime.datetime | None
    revision: int


class BalancerScore(Strict):
    """How well VMs stand; less is better, and what comes first decides."""

    broken_rules: int = Field(description="Hard rules and taints that VMs stand against.")
    unmet_rules: float = Field(description="What soft rules lack, a whole one of weight 100 counting 1.")
    imbalance: float = Field(description="How far nodes are from being used alike; 0: they are.")


class BalancerMove(Strict):
    """One move. before, after: the score with all moves before it done, and with this one."""

    vm: str
    vm_id: str
    source_node: str
    target_node: str
    why: Why
    reasons: list[ReasonOut]
    kind: str = Field(description="How it would go: live, warm or cold.")
    total_s: float
    downtime_s: float
    stream_bytes: int
    disk_bytes: int
    price_s: float = Field(description="What is held against pays_within_s.")
    gain: float = Field(description="By what share the more used of its two nodes is less used after it.")
    before: BalancerScore
    after: BalancerScore


class BalancerNode(Strict):
    """A node that takes VMs: the shares of its memory and CPUs that are used, and would be after all moves."""

    node: str
    node_id: str
    memory: float
    cpu: float
    memory_after: float
    cpu_after: float


class BalancerPlan(Strict):
    """moves: in this order. reasons: why there are no more. cpu_by: whether CPU is counted by what nodes report or by
    what is promised. nodes: the most used first.
    """

    mode: Mode
    cpu_by: Literal["load", "promises"] | None
    moves: list[BalancerMove]
    reasons: list[ReasonOut]
    nodes: list[BalancerNode]
    before: BalancerScore | None
    after: BalancerScore | None
