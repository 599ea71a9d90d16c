"""Where VMs could go and why not elsewhere: what is answered, and both calls."""

from __future__ import annotations

import msgspec

from novacron.client.call import Call, path_of, ref_of
from novacron.client.migrations import Reason
from novacron.client.vms import VmCreate


class NodeFit(msgspec.Struct, frozen=True, kw_only=True):
    """One node. reasons: everything that keeps the VM off it; empty: it can take it, and `score` says how well."""

    node: str
    node_id: str
    is_here: bool
    can: bool
    score: float | None
    parts: dict[str, float]
    reasons: list[Reason]


class PlacementPlan(msgspec.Struct, frozen=True, kw_only=True):
    """chosen: where it would be; None: nowhere. nodes: the best first. vm_id, node: of a VM that is there already."""

    vm: str
    vm_id: str | None
    node: str | None
    chosen: str | None
    policy: str
    nodes: list[NodeFit]


def get(ref: str) -> Call[PlacementPlan]:
    """Where a VM could be started now. Nothing is changed."""
    return Call(method="GET", path=path_of("vms", ref_of("vm", ref), "placement"), answer=PlacementPlan)


def plan(vm: VmCreate) -> Call[PlacementPlan]:
    """Where a VM would be put if it were made now. Nothing is made."""
    return Call(method="POST", path=path_of("placement-plans"), answer=PlacementPlan, body=vm)
