"""`novacron balancer`: what would be moved and why, and setting it."""

from __future__ import annotations

import json
from typing import Any

from novacron.wire.rest.balancer import Balancer, BalancerPlan
from tests.cli.conftest import Run
from tests.client.control_room import VM_ID, ControlRoom, said

SETTINGS: dict[str, Any] = json.loads(
    Balancer.model_validate({"mode": "propose", "margin": 0.2, "updated_at": None, "revision": 7}).model_dump_json()
)
BETTER = {"broken_rules": 0, "unmet_rules": 0.0, "imbalance": 0.1}
MOVE = {
    "vm": "web-1",
    "vm_id": VM_ID,
    "source_node": "n1",
    "target_node": "n2",
    "why": "load",
    "reasons": [{"code": "node.strained", "message": "n1 is used to 80%"}],
    "kind": "live",
    "total_s": 12.0,
    "downtime_s": 0.05,
    "stream_bytes": 1 << 30,
    "disk_bytes": 0,
    "price_s": 15.0,
    "gain": 0.2,
    "before": BETTER | {"imbalance": 0.3},
    "after": BETTER,
}
PLAN: dict[str, Any] = json.loads(
    BalancerPlan.model_validate(
        {
            "mode": "propose",
            "cpu_by": "load",
            "moves": [MOVE],
            "reasons": [{"code": "balance.even", "message": "they are even", "remedy": "wait"}],
            "nodes": [],
            "before": MOVE["before"],
            "after": BETTER,
        }
    ).model_dump_json()
)


def test_what_would_be_moved_is_shown_with_why_and_why_no_more(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/balancer", said(SETTINGS))
    room.on("GET", "/balancer/plan", said(PLAN))
    told = run("balancer show").stdout
    assert "mode propose, margin 20%" in told
    assert "imbalance 0.300 -> 0.100" in told
    assert "web-1 to n2: n1 is used to 80%" in told
    assert "not more: they are even; try: wait" in told
    row = next(line for line in told.splitlines() if line.startswith("web-1  "))
    assert row.split()[:6] == ["web-1", "n1", "n2", "load", "20.0%", "live"]
    assert json.loads(run("balancer show -o json").stdout)["moves"][0]["vm_id"] == VM_ID


def test_what_is_not_given_stays_as_it_is(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/balancer", said(SETTINGS))
    room.on("PUT", "/balancer", said(SETTINGS | {"mode": "act", "cool_down_s": 7200.0}))
    done = run("balancer set --mode act --cool-down 2h")
    assert done.exit_code == 0, done.stderr
    assert "mode act" in done.stdout
    (sent,) = [one for one in room.asked if one.method == "PUT"]
    assert sent.headers["if-match"] == '"7"'
    body = json.loads(room.bodies[-1])
    assert (body["mode"], body["margin"], body["cool_down_s"], body["max_moves"]) == ("act", 0.2, 7200.0, 2)


def test_setting_nothing_is_a_wrong_usage(run: Run) -> None:
    assert run("balancer set").exit_code == 2
