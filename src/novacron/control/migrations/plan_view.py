"""A plan as the API shows it: the shape of wire.rest.migration_plans.MigrationPlan."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from novacron.control.migrations.plan import NodePlan, Plan
from novacron.control.migrations.view import disk_view
from novacron.control.store.kinds import NODES
from novacron.control.store.records import Records
from novacron.wire.rest.migrations import MigrationCreate

_all_of = msgspec.structs.asdict


def encoded(records: Records, asked: MigrationCreate, plan: Plan, not_before: datetime.datetime | None = None) -> bytes:
    """The plan's bytes. asked: what it was made for, so that what it says can be begun as it is."""
    chosen = plan.chosen
    return msgspec.json.encode(
        {
            "vm": plan.vm_name,
            "vm_id": plan.vm_id,
            "at_rest": plan.at_rest,
            "source_node": records.name(NODES, plan.source_id),
            "source_node_id": plan.source_id,
            "target_node": chosen.node_name if chosen else None,
            "target_node_id": chosen.node_id if chosen else None,
            "not_before": not_before,
            "goals": _all_of(plan.asked.effective.goals),
            "goals_said_by": plan.asked.effective.said_by,
            "measured": plan.measured,
            "note": plan.note,
            "nodes": [_node(records, asked, plan, node) for node in plan.nodes],
        }
    )


def _node(records: Records, asked: MigrationCreate, plan: Plan, node: NodePlan) -> dict[str, Any]:
    way = node.choice.way if node.choice else None
    return {
        "node": node.node_name,
        "node_id": node.node_id,
        "is_here": node.is_here,
        "can": way is not None,
        "chosen": node is plan.chosen,
        "kind": way.kind if way else None,
        "strategy": way.strategy if way else None,
        "disks": [disk_view(records, move) for move in node.disks],
        "belongings": node.belongings,
        "predicted": msgspec.to_builtins(way.predicted) if way else None,
        "reasons": [msgspec.structs.asdict(reason) for reason in (*node.cannot, *node.unmet)],
        "explanation": plan.explanation(node),
        "start": _start(asked, plan, node),
    }


def _start(asked: MigrationCreate, plan: Plan, node: NodePlan) -> dict[str, Any] | None:
    """What begins just this."""
    if node.choice is None:
        return None
    way = node.choice.way
    strategy = {"strategy": way.strategy} if way.kind == "live" else {}
    said = asked.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude={"labels", "measure"})
    return {**said, "vm": plan.vm_id, "target_node": node.node_id, "kind": way.kind, **strategy}
