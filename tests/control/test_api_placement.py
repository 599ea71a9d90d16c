"""Placement over the API: taints, rules and policies are kept to, and every node is answered for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from novacron.control.store.kinds import NODES, VMS
from novacron.model.machine import MachineStatus
from novacron.model.node import NodeState
from novacron.wire.rest.placement import PlacementPlan
from tests.control.api import Api, another, problem_of

pytestmark = pytest.mark.anyio

APART = {"kind": "apart", "labels": {"app": "web"}}
WEB = {"image": "tiny", "memory_mib": 256, "nics": [], "labels": {"app": "web"}}


def web(name: str, *rules: dict[str, Any], **placement: Any) -> dict[str, Any]:
    return WEB | {"name": name, "placement": {"vm_rules": list(rules), **placement}}


async def make(api: Api, body: dict[str, Any]) -> str:
    """The name of the node it was put on, or the codes of the reasons why nowhere."""
    answer = await api.http.post("/api/v1/vms", json=body)
    if answer.status_code == 507:
        return ", ".join(sorted(f"{reason['subject']}: {reason['code']}" for reason in answer.json()["reasons"]))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["node"])


async def plan_of(api: Api, ref: str) -> PlacementPlan:
    answer = await api.http.get(f"/api/v1/vms/{ref}/placement")
    assert answer.status_code == 200, answer.text
    return PlacementPlan.model_validate_json(answer.content)


async def test_hard_rules_between_vms_are_never_broken(api: Api) -> None:
    for name, zone in (("node-1", "z1"), ("node-2", "z1"), ("node-3", "z2")):
        await api.node(name, labels={"zone": zone})
    await api.image()
    apart = APART | {"over": "zone"}
    assert [await make(api, web(f"web-{number}", apart)) for number in range(2)] == ["node-1", "node-3"]
    kept = await make(api, web("web-2", apart))
    assert kept == "node-1: affinity.apart, node-2: affinity.apart, node-3: affinity.apart"
    assert await make(api, web("web-3")) == kept.replace("affinity.apart", "affinity.kept_away")  # it wishes nothing
    assert await make(api, WEB | {"name": "db-1", "labels": {"app": "db"}}) == "node-2"


async def test_fifty_at_once_at_two_servers_never_share_a_node_they_must_not(api: Api, tmp_path: Path) -> None:
    for number in range(4):
        await api.node(f"node-{number}")
    await api.image()
    async with another(api, tmp_path) as other:
        answers = await asyncio.gather(*(
            server.http.post("/api/v1/vms", json=web(f"web-{number}", APART))
            for number, server in enumerate([api, other] * 25)
        ))  # fmt: skip
    made = [answer.json()["node"] for answer in answers if answer.status_code == 202]
    assert sorted(made) == [f"node-{number}" for number in range(4)]
    assert {answer.status_code for answer in answers} == {202, 507}


async def test_every_node_is_answered_for_with_every_reason(api: Api) -> None:
    small = await api.node("node-1", memory_mib=700, state=NodeState.SUSPECT, state_reason="silent")
    here = await api.node("node-2")
    await api.node("node-3", labels={"disk": "ssd"})
    await api.vm("db-1", node=small, labels={"app": "web"})
    vm = await api.vm("web-1", node=here, status=MachineStatus.RUNNING, labels={"app": "web"})
    change = {"placement": {"vm_rules": [APART], "node_rules": [{"labels": {"disk": "ssd"}, "hard": False}]}}
    assert (await api.http.patch("/api/v1/vms/web-1", json=change)).status_code == 200
    plan = await plan_of(api, vm.record.id)
    assert (plan.vm, plan.node, plan.chosen, plan.policy) == ("web-1", "node-2", "node-3", "spread")
    assert [(one.node, one.can, one.is_here) for one in plan.nodes] == [
        ("node-3", True, False), ("node-2", True, True), ("node-1", False, False),
    ]  # fmt: skip
    best, second, last = plan.nodes
    assert best.parts["node_rules"] == 2.0
    assert second.parts["memory_left"] == best.parts["memory_left"]  # as if it were not there now
    assert best.score == pytest.approx(sum(best.parts.values()))
    codes = [reason.code for reason in last.reasons]
    assert codes == ["node.not_up", "memory.short", "affinity.apart"]
    assert api.records.find(VMS, "web-1").record.node_id == here.id
    problem_of(await api.http.get("/api/v1/vms/nothing/placement"), 404, "not_found")


async def test_a_vm_that_is_not_made_yet_is_answered_for_and_not_made(api: Api) -> None:
    await api.node("node-1", taints=())
    await api.node("node-2", memory_mib=16384)
    await api.image()
    body = web("web-1", policy="pack")
    answer = await api.http.post("/api/v1/placement-plans", json=body)
    plan = PlacementPlan.model_validate_json(answer.content)
    assert (plan.vm_id, plan.node, plan.chosen, plan.policy) == (None, None, "node-1", "pack")
    assert not api.records.all(VMS)
    assert await make(api, body) == plan.chosen
    full = await api.http.post("/api/v1/placement-plans", json=body | {"name": "web-2", "memory_mib": 1 << 20})
    assert full.json()["chosen"] is None
    assert {reason["code"] for node in full.json()["nodes"] for reason in node["reasons"]} == {"memory.short"}
    wrong = body | {"image": "none"}
    problem_of(await api.http.post("/api/v1/placement-plans", json=wrong), 422, "invalid_input")


async def test_a_tainted_node_takes_who_tolerates_it(api: Api) -> None:
    await api.node("node-1")
    await api.image()
    taints = [{"key": "gpu", "value": "a100"}]
    shown = (await api.http.patch("/api/v1/nodes/node-1", json={"taints": taints})).json()
    assert shown["taints"] == [{"key": "gpu", "value": "a100", "effect": "refuse"}]
    assert await make(api, WEB | {"name": "web-1"}) == "node-1: node.tainted"
    assert await make(api, web("web-2", tolerations=[{"key": "gpu"}])) == "node-1"
    await api.http.patch("/api/v1/nodes/node-1", json={"taints": []})
    assert api.records.find(NODES, "node-1").record.taints == ()
    assert await make(api, WEB | {"name": "web-1"}) == "node-1"


async def test_what_is_wished_is_shown_replaced_and_forgotten(api: Api) -> None:
    await api.node()
    await api.image()
    await make(api, web("web-1", APART, policy="balance"))
    shown = (await api.http.get("/api/v1/vms/web-1")).json()["placement"]
    assert shown["policy"] == "balance"
    assert shown["vm_rules"] == [APART | {"over": "novacron.io/node", "hard": True, "weight": 50}]
    changed = await api.http.patch("/api/v1/vms/web-1", json={"placement": {"tolerations": [{"key": "gpu"}]}})
    assert changed.json()["placement"] == {
        "policy": None, "vm_rules": [], "node_rules": [], "tolerations": [{"key": "gpu", "value": ""}],
    }  # fmt: skip
    renamed = await api.http.patch("/api/v1/vms/web-1", json={"description": "other"})
    assert renamed.json()["placement"]["tolerations"]
    forgotten = await api.http.patch("/api/v1/vms/web-1", json={"placement": {}})
    assert not forgotten.json()["placement"]["tolerations"]


@pytest.mark.parametrize(
    ("placement", "field"),
    [
        ({"policy": "random"}, "placement.policy"),
        ({"vm_rules": [{"kind": "apart", "labels": {}}]}, "placement.vm_rules.0.labels"),
        ({"vm_rules": [{"kind": "near", "labels": {"a": "b"}}]}, "placement.vm_rules.0.kind"),
        ({"vm_rules": [APART | {"weight": 0}]}, "placement.vm_rules.0.weight"),
        ({"node_rules": [{"labels": {"BAD KEY": "x"}}]}, "placement.node_rules.0.labels.BAD KEY"),
        ({"tolerations": [{}]}, "placement.tolerations.0.key"),
    ],
)
async def test_what_cannot_be_wished_is_named(api: Api, placement: dict[str, Any], field: str) -> None:
    problem = problem_of(await api.http.post("/api/v1/vms", json=WEB | {"name": "a", "placement": placement}), 422,
                         "invalid_input")  # fmt: skip
    assert problem["reasons"][0]["subject"].startswith(field)


async def test_a_node_has_one_taint_of_a_key(api: Api) -> None:
    await api.node()
    taints = [{"key": "gpu"}, {"key": "gpu", "value": "x"}]
    answer = await api.http.patch("/api/v1/nodes/node-1", json={"taints": taints})
    assert problem_of(answer, 422, "invalid_input")["reasons"][0]["subject"] == "taints"


async def test_a_move_keeps_to_rules_and_taints(api: Api) -> None:
    here = await api.node("node-1")
    taken = await api.node("node-2")
    await api.node("node-3", taints=())
    await api.vm("web-2", node=taken, labels={"app": "web"})
    await api.vm("web-1", node=here, labels={"app": "web"}, status=MachineStatus.RUNNING)
    await api.http.patch("/api/v1/vms/web-1", json={"placement": {"vm_rules": [APART]}})
    plan = (await api.http.get("/api/v1/vms/web-1/migration-plan")).json()
    assert plan["target_node"] == "node-3"
    await api.http.patch("/api/v1/nodes/node-3", json={"taints": [{"key": "gpu"}]})
    refused = await api.http.post("/api/v1/migrations", json={"vm": "web-1"})
    codes = {reason["subject"]: reason["code"] for reason in problem_of(refused, 507, "no_room")["reasons"]}
    assert codes == {"node-2": "affinity.apart", "node-3": "node.tainted"}
