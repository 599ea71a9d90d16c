"""Where VMs may run, on the wire: taints of nodes, what a VM wishes of its place, and where it could go and why not."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from novacron.model.placement import DEFAULT_WEIGHT, NODE_LABEL, Effect, PlacementPolicy, RuleKind
from novacron.wire.rest.common import LabelKey, LabelValue, ReasonOut, Strict, Wanted, example

MAX_RULES = 32
Weight = Annotated[int, Field(ge=1, le=100, description="Of a soft rule, against the VM's other soft rules")]
Hard = Annotated[bool, Field(description="Else it is broken when there is no better node")]


class Taint(Strict):
    """Keeps VMs off a node that do not tolerate it. refuse: they are not placed there; avoid: only without a choice."""

    key: LabelKey
    value: LabelValue = ""
    effect: Effect = Effect.REFUSE


class Toleration(Strict):
    """A VM minds no taint with this key; with a value: only with that one."""

    key: LabelKey
    value: LabelValue = ""


class VmRule(Strict):
    """How a VM stands to others. labels: of those it is about, all of them (an empty value: any value).

    together: where such a VM is, once there is one; apart: where none is; spread: where fewest are. over: the label of
    nodes that says which nodes are one place (`zone`); by default each is one. A hard `apart` binds those VMs as well.
    """

    kind: RuleKind
    labels: Wanted
    over: LabelKey = NODE_LABEL
    hard: Hard = True
    weight: Weight = DEFAULT_WEIGHT


class NodeRule(Strict):
    """Nodes with all of the labels (an empty value: any value), or (avoid) the others.

    Every node has the labels novacron.io/node (its name) and novacron.io/arch by itself.
    """

    labels: Wanted
    avoid: bool = False
    hard: Hard = True
    weight: Weight = DEFAULT_WEIGHT


class Placement(Strict):
    """What a VM wishes of the node it is put on. It counts whenever one is chosen; where it is, it stays.

    policy: spread (most room left), pack (least room left) or balance (CPU and memory used alike); null: the server's.
    """

    policy: PlacementPolicy | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=MAX_RULES)] = []
    vm_rules: Annotated[list[VmRule], Field(max_length=MAX_RULES)] = []
    node_rules: Annotated[list[NodeRule], Field(max_length=MAX_RULES)] = []

    model_config = Strict.model_config | example(
        {
            "policy": "spread",
            "tolerations": [{"key": "gpu"}],
            "vm_rules": [{"kind": "apart", "labels": {"app": "web"}, "over": "zone"}],
            "node_rules": [{"labels": {"disk": "ssd"}, "hard": False}],
        }
    )


class NodeFit(Strict):
    """One node. reasons: everything that keeps the VM off it; empty: it can take it, and `score` says how well.

    parts: what the score is made of. is_here: the VM is there now.
    """

    node: str
    node_id: str
    is_here: bool
    can: bool
    score: float | None
    parts: dict[str, float]
    reasons: list[ReasonOut]


class PlacementPlan(Strict):
    """Where a VM could be started now. chosen: where it would be; null: nowhere. nodes: the best first.

    vm_id, node: of a VM that is there already, and where it is.
    """

    vm: str
    vm_id: str | None
    node: str | None
    chosen: str | None
    policy: PlacementPolicy
    nodes: list[NodeFit]

    model_config = Strict.model_config | example(
        {
            "vm": "web-1",
            "vm_id": None,
            "node": None,
            "chosen": "node-1",
            "policy": "spread",
            "nodes": [
                {
                    "node": "node-1",
                    "node_id": "0190b36e-7c1a-7000-8000-000000000002",
                    "is_here": False,
                    "can": True,
                    "score": 3.2,
                    "parts": {"memory_left": 0.8, "vcpus_left": 0.4, "accelerated": 0.0, "untainted": 2.0},
                    "reasons": [],
                },
                {
                    "node": "node-2",
                    "node_id": "0190b36e-7c1a-7000-8000-000000000003",
                    "is_here": False,
                    "can": False,
                    "score": None,
                    "parts": {},
                    "reasons": [
                        {
                            "code": "affinity.apart",
                            "message": "node-2: a VM labelled app=web is there",
                            "subject": "node-2",
                            "remedy": "make room on other nodes, or take the rule away",
                        }
                    ],
                },
            ],
        }
    )
