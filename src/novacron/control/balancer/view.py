"""The balancer as the API shows it: the shapes of wire.rest.balancer."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.control.balancer.decide import price_s
from novacron.control.balancer.plan import Move, NodeUse, Plan, Score
from novacron.errors import Reason
from novacron.model.balancer import Mode, Settings

_OFF = Reason("balancer.off", "the balancer is off", "", "novacron balancer set --mode propose")


def settings_shown(settings: Settings, revision: int) -> dict[str, Any]:
    """As GET /balancer and events show it."""
    fields = msgspec.structs.asdict(settings)
    del fields["id"]
    return {**fields, "revision": revision}


def plan_shown(plan: Plan | None, mode: Mode) -> dict[str, Any]:
    """As GET /balancer/plan shows it. plan None: the balancer is off."""
    if plan is None:
        return {
            "mode": mode,
            "cpu_by": None,
            "moves": [],
            "reasons": [_OFF],
            "nodes": [],
            "before": None,
            "after": None,
        }
    return {
        "mode": mode,
        "cpu_by": "load" if plan.by_load else "promises",
        "moves": [_move(one) for one in plan.moves],
        "reasons": plan.reasons,
        "nodes": [_node(one) for one in plan.nodes],
        "before": _score(plan.before),
        "after": _score(plan.after),
    }


def _move(move: Move) -> dict[str, Any]:
    price = move.price
    return {
        "vm": move.vm_name,
        "vm_id": move.vm_id,
        "source_node": move.source,
        "target_node": move.target,
        "why": move.why,
        "reasons": move.reasons,
        "kind": price.kind,
        "total_s": round(price.total_s, 3),
        "downtime_s": round(price.downtime_s, 3),
        "stream_bytes": price.stream_bytes,
        "disk_bytes": price.disk_bytes,
        "price_s": round(price_s(price), 3),
        "gain": round(move.gain, 4),
        "before": _score(move.before),
        "after": _score(move.after),
    }


def _score(score: Score) -> dict[str, Any]:
    return {
        "broken_rules": score.broken,
        "unmet_rules": round(score.unmet, 4),
        "imbalance": round(score.imbalance, 6),
    }


def _node(node: NodeUse) -> dict[str, Any]:
    return {
        "node": node.node,
        "node_id": node.node_id,
        "memory": round(node.before.memory, 4),
        "cpu": round(node.before.cpu, 4),
        "memory_after": round(node.after.memory, 4),
        "cpu_after": round(node.after.cpu, 4),
    }
