"""Bulk migrations, drains and plans at the command line: what is sent, what is said, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from novacron.wire.rest.bulk_migrations import BulkMigration, BulkMigrationPlan, NodeLossPlan
from tests.cli.conftest import Run
from tests.client.control_room import MIGRATION_ID, NODE_ID, NOW, VM_ID, ControlRoom, said

FORECAST = {
    "total_s": 95.0, "waves": 2, "share_bytes_per_s": 100 << 20, "held_back_s": {"limit.per_node node-1": 40.0},
    "busiest": [{"nodes": ["node-1"], "moves": 2, "busy_s": 95.0}, {"nodes": ["node-1", "node-2"], "moves": 1,
                "busy_s": 40.0}],
}  # fmt: skip


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def entry(vm: str, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "vm": vm, "vm_id": VM_ID, "state": "waiting", "priority": 50, "source_node": "node-1", "target_node": "node-2",
        "target_node_id": NODE_ID, "wave": 1, "starts_at_s": 0.0, "takes_s": 40.0, "migration_ids": [], "reasons": [],
        "finished_at": None,
    }  # fmt: skip
    return data | changes


REASON = {"code": "memory.short", "message": "node-2: 4096 MiB of memory asked for, 100 MiB free", "remedy": "stop VMs"}
HUGE = entry("huge", state="stays", target_node=None, target_node_id=None, wave=0, takes_s=0.0, reasons=[REASON])


def plan(*entries: dict[str, Any]) -> dict[str, Any]:
    stays = sum(one["state"] == "stays" for one in entries)
    data = {
        "purpose": "drain", "node": "node-1", "forecast": FORECAST, "stays": stays, "entries": list(entries),
        "start": {"drain": "node-1", "targets": {VM_ID: NODE_ID}, "max_per_node": 1},
    }  # fmt: skip
    return json.loads(BulkMigrationPlan.model_validate(data).model_dump_json(exclude_defaults=False))  # type: ignore[no-any-return]


def bulk(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": MIGRATION_ID, "state": "planned", "purpose": "drain", "node": "node-1", "target_node": None,
        "policy": None, "goals": {}, "max_concurrent": 5, "max_per_node": 2, "max_per_link": 2,
        "bandwidth_budget_bytes_per_s": 0, "max_attempts": 3, "forecast": FORECAST, "counts": {"waiting": 2},
        "entries": [entry("web-2", wave=2, starts_at_s=40.0), entry("web-1")], "replans": 0, "explanation": [],
        "labels": {}, "created_at": NOW, "updated_at": NOW, "finished_at": None, "revision": 80,
    }  # fmt: skip
    return json.loads(BulkMigration.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def test_a_plan_of_a_drain_says_who_when_and_what_is_the_bottleneck(room: ControlRoom, run: Run) -> None:
    made = plan(entry("web-2", wave=2, starts_at_s=40.0, takes_s=55.0), entry("web-1"), HUGE)
    room.on("POST", "/bulk-migration-plans", said(made))
    result = run("plan drain node-1 --budget 200MiB/s --max-per-node 1 --priority web-1=90 --may-pause")
    assert result.exit_code == 1  # somebody stays
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["WAVE", "VM", "FROM", "TO", "BEGINS", "TAKES", "STATE"]
    assert [line.split()[:2] for line in lines[1:4]] == [["1", "web-1"], ["2", "web-2"], ["-", "huge"]]
    assert "huge: node-2: 4096 MiB of memory asked for, 100 MiB free; try: stop VMs" in lines
    assert "2 waves, 1m35s in all" in lines
    assert "each move gets 100 MiB/s of the budget" in lines
    assert "bottleneck: node node-1, busy for 1m35s with 2 moves" in lines
    assert lines[-1] == "1 of 3 VMs would stay where they are"
    assert json.loads(room.bodies[0]) == {
        "drain": "node-1", "bandwidth_budget_bytes_per_s": 200 << 20, "max_per_node": 1, "priorities": {"web-1": 90},
        "may_pause": True,
    }  # fmt: skip


def test_a_kept_plan_is_begun_as_it_is(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    room.on("POST", "/bulk-migration-plans", said(plan(entry("web-1"))))
    kept = run("plan drain node-1 -o json")
    assert kept.exit_code == 0
    file = tmp_path / "plan.json"
    file.write_text(kept.stdout)
    room.on("POST", "/bulk-migrations", said(bulk(), 202))
    begun = run(f"bulk-migration start --plan {file}")
    assert begun.stdout == f"drain node-1: 2 waiting; novacron bulk-migration watch {MIGRATION_ID}\n"
    assert json.loads(room.bodies[-1]) == {"drain": "node-1", "targets": {VM_ID: NODE_ID}, "max_per_node": 1}
    file.write_text("{}")
    assert run(f"bulk-migration start --plan {file}").exit_code == 2


def test_draining_and_bringing_back(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/bulk-migrations", said(bulk(), 202))
    run("node drain node-1 --policy database --max-attempts 2")
    assert json.loads(room.bodies[-1]) == {"drain": "node-1", "policy": "database", "max_attempts": 2}
    room.on("POST", "/bulk-migrations", said(bulk(purpose="bring_back"), 202))
    assert run("node bring-back node-1").stdout.startswith("bring back node-1: 2 waiting")
    assert json.loads(room.bodies[-1]) == {"bring_back": "node-1"}
    room.on("POST", "/bulk-migration-plans", said(plan(entry("web-1"))))
    assert "1  web-1" in run("node drain node-1 --dry-run").stdout.replace("1     web-1", "1  web-1")


def test_vms_by_name_or_by_label(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/bulk-migrations", said(bulk(purpose="move", node=None), 202))
    run("bulk-migration start web-1 web-2 --to node-2 --label why=test")
    assert json.loads(room.bodies[-1]) == {
        "vms": ["web-1", "web-2"],
        "target_node": "node-2",
        "labels": {"why": "test"},
    }
    run("bulk-migration start --vms tier=web --max-concurrent 4")
    assert json.loads(room.bodies[-1]) == {"selector": {"tier": "web"}, "max_concurrent": 4}


@pytest.mark.parametrize(
    "line", ["", "web-1 --vms tier=web", "web-1 --priority web-1=high", "--max-concurrent 0 web-1"]
)
def test_what_says_no_vms_or_no_number_is_refused_here(room: ControlRoom, run: Run, line: str) -> None:
    assert run(f"bulk-migration start {line}").exit_code == 2
    assert room.asked == []


def test_waiting_for_one_that_leaves_vms_behind_fails_and_says_whom(room: ControlRoom, run: Run) -> None:
    ended = bulk(state="completed_with_failures", counts={"done": 1, "stays": 1}, finished_at=NOW,
                 entries=[entry("web-1", state="done"), HUGE])  # fmt: skip
    room.on("POST", "/bulk-migrations", said(bulk(), 202))
    room.on("GET", f"/bulk-migrations/{MIGRATION_ID}", said(ended))
    result = run("node drain node-1 --wait")
    assert result.exit_code == 1
    assert "drain node-1 ended completed_with_failures: 1 done, 1 stays" in result.stderr
    assert "huge" in result.stderr
    well = bulk(state="completed", counts={"done": 2}, finished_at=NOW)
    room.on("GET", f"/bulk-migrations/{MIGRATION_ID}", said(well))
    assert run(f"bulk-migration watch {MIGRATION_ID}").stdout == "drain node-1: 2 done\n"


def test_list_show_and_steer(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/bulk-migrations", said(page(bulk(entries=None))))
    assert run("bulk-migration list --state planned").stdout.splitlines()[1].split()[1:4] == [
        "drain",
        "node-1",
        "planned",
    ]
    assert room.asked[-1].query_params["state"] == "planned"
    room.on("GET", f"/bulk-migrations/{MIGRATION_ID}", said(bulk(entries=[entry("web-1"), HUGE], replans=1)))
    shown = run(f"bulk-migration show {MIGRATION_ID}").stdout
    assert "Planned anew:  1 times" in shown
    assert "huge: node-2: 4096 MiB of memory asked for, 100 MiB free; try: stop VMs" in shown
    for verb, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelling")):
        room.on("POST", f"/bulk-migrations/{MIGRATION_ID}/{verb}", said(bulk(state=state), 202))
        assert run(f"bulk-migration {verb} {MIGRATION_ID}").stdout == f"drain node-1: {state}; 2 waiting\n"


def test_the_loss_of_a_node(room: ControlRoom, run: Run) -> None:
    restart = {"vm": "web-1", "vm_id": VM_ID, "priority": 50, "memory_mib": 2048, "reasons": []}
    placed = restart | {"target_node": "node-1", "target_node_id": NODE_ID}
    lost = restart | {"vm": "huge", "target_node": None, "target_node_id": None, "reasons": [REASON]}
    data = {"node": "node-2", "node_id": NODE_ID, "restarts": [placed, lost], "no_room": 1, "at_rest": 2}
    room.on("GET", "/nodes/node-2/loss-plan", said(json.loads(NodeLossPlan.model_validate(data).model_dump_json())))
    result = run("plan node-loss node-2")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["web-1", "50", "2", "GiB", "node-1"]
    assert lines[-1] == "without node-2: 1 could be started elsewhere, 1 find no room, 2 do not run"
