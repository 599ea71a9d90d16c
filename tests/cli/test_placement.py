"""Placement on the command line: wishes are sent as said and shown as they are given, plans say why not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from novacron.model.placement import NODE_LABEL
from novacron.wire.rest.placement import PlacementPlan
from tests.cli.conftest import Run
from tests.client.control_room import NODE_ID, VM_ID, ControlRoom, node, said, vm

RULES = {
    "policy": "pack",
    "tolerations": [{"key": "gpu", "value": ""}, {"key": "old", "value": "x"}],
    "vm_rules": [
        {"kind": "apart", "labels": {"app": "web"}, "over": "zone", "hard": True, "weight": 50},
        {"kind": "together", "labels": {"app": "db", "tier": ""}, "over": NODE_LABEL, "hard": False, "weight": 9},
    ],
    "node_rules": [
        {"labels": {"disk": "ssd"}, "avoid": False, "hard": False, "weight": 50},
        {"labels": {"rack": "r1"}, "avoid": True, "hard": True, "weight": 50},
    ],
}  # fmt: skip
OPTIONS = (
    "--policy pack --tolerate gpu --tolerate old=x --affinity apart,app=web,over=zone "
    "--affinity together,app=db,tier=,weight=9 --node-rule disk=ssd,soft --node-rule rack=r1,avoid"
)


def plan(*, chosen: str | None = "node-2") -> dict[str, Any]:
    reason = {"code": "memory.short", "message": "node-3: 512 MiB asked for, 100 free", "remedy": "stop VMs"}
    fit = {
        "node_id": NODE_ID,
        "is_here": False,
        "can": True,
        "score": 3.25,
        "parts": {"memory_left": 0.75},
        "reasons": [],
    }
    cannot = fit | {"node": "node-3", "can": False, "score": None, "parts": {}, "reasons": [reason]}
    nodes = [fit | {"node": "node-2"}, fit | {"node": "node-1", "is_here": True, "score": 3.0}] if chosen else []
    data = {"vm": "web-1", "vm_id": VM_ID, "node": "node-1", "chosen": chosen, "policy": "spread"}
    data |= {"nodes": [*nodes, cannot]}
    return json.loads(PlacementPlan.model_validate(data).model_dump_json())  # type: ignore[no-any-return]


def test_wishes_are_sent_as_they_are_said(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(placement=RULES)))
    assert run(f"vm create web-1 --image tiny {OPTIONS}").exit_code == 0
    assert json.loads(room.bodies[0])["placement"] == RULES


def test_wishes_are_replaced_as_a_whole_or_forgotten(room: ControlRoom, run: Run) -> None:
    room.on("PATCH", "/vms/web-1", said(vm()), said(vm()))
    assert run("vm update web-1 --tolerate gpu").exit_code == 0
    assert run("vm update web-1 --no-wishes").exit_code == 0
    sent = [json.loads(body)["placement"] for body in room.bodies]
    assert sent[0]["tolerations"] == [{"key": "gpu", "value": ""}]
    assert not any(sent[1].values())


def test_wishes_are_shown_as_they_are_given(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm(placement=RULES)))
    shown = [tuple(line.split(":", 1)) for line in run("vm show web-1").stdout.splitlines()]
    told = [(key, value.strip()) for key, value in shown if key in ("Policy", "Tolerates", "Affinity", "Node rule")]
    assert told == [
        ("Policy", "pack"),
        ("Tolerates", "gpu"),
        ("Tolerates", "old=x"),
        ("Affinity", "apart,app=web,over=zone"),
        ("Affinity", "together,app=db,tier=,weight=9"),
        ("Node rule", "disk=ssd,weight=50"),
        ("Node rule", "rack=r1,avoid"),
    ]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--affinity near,app=web", "'near' is none of"),
        ("--affinity apart", "it names no label"),
        ("--affinity apart,app=web,hard", "'hard' means nothing here"),
        ("--affinity apart,app=web,weight=much", "much"),
        ("--node-rule soft", "it names no label"),
        ("--policy random", "random"),
    ],
)
def test_a_wish_that_means_nothing_is_refused_before_anything_is_sent(
    room: ControlRoom, run: Run, options: str, word: str
) -> None:
    result = run(f"vm create web-1 --image tiny {options}")
    assert result.exit_code == 2
    assert word in result.output
    assert not room.asked


def test_a_plan_says_where_and_why_not_elsewhere(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1/placement", said(plan()))
    lines = run("vm placement web-1").stdout.splitlines()
    assert lines[0].split() == ["NODE", "ANSWER", "SCORE", "MADE", "OF"]
    assert lines[1].split() == ["node-2", "would", "be", "taken", "3.250", "memory_left", "0.750"]
    assert "can (is here)" in lines[2]
    assert lines[3].startswith("node-3  cannot")
    assert "policy spread: web-1 would go to node-2" in lines
    assert "why not node-3: 512 MiB asked for, 100 free; try: stop VMs" in lines


def test_a_plan_is_whole_for_programs(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1/placement", said(plan()))
    assert json.loads(run("vm placement web-1 -o json").stdout) == plan()


def test_a_dry_run_makes_nothing(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/placement-plans", said(plan(chosen=None)))
    result = run(f"vm create web-1 --image tiny {OPTIONS} --dry-run")
    assert "no node can take web-1" in result.stdout
    assert json.loads(room.bodies[0])["placement"] == RULES
    assert [request.url.path for request in room.asked] == ["/api/v1/placement-plans"]


def test_a_taint_is_added_replaced_and_taken_away(room: ControlRoom, run: Run) -> None:
    there = [{"key": "gpu", "value": "", "effect": "refuse"}, {"key": "old", "value": "", "effect": "refuse"}]
    after = [{"key": "old", "value": "", "effect": "avoid"}, {"key": "ssd", "value": "fast", "effect": "refuse"}]
    room.on("GET", "/nodes/node-1", said(node(taints=there)))
    room.on("PATCH", "/nodes/node-1", said(node(taints=after)))
    assert run("node taint node-1 gpu- old:avoid ssd=fast").stdout == "node-1: old:avoid, ssd=fast:refuse\n"
    assert json.loads(room.bodies[1]) == {"taints": after}
    assert room.asked[1].headers["if-match"] == '"20"'
    assert run("node taint node-1 old:sometimes").exit_code == 2
