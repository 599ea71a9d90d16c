"""Bulk migrations over the API: planned as they are begun, drains that cordon, what is refused and why."""

from __future__ import annotations

from typing import Any

import pytest

from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES
from novacron.model.bulk_migration import PRIORITY_LABEL
from novacron.model.machine import Disk, MachineStatus
from novacron.model.node import Node, NodeState
from novacron.model.vm import Task, TaskKind, VmSpec
from novacron.wire.rest import bulk_migrations as wire
from novacron.wire.rest.common import PageOf
from tests.control.api import NOW, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio
PATH = "/api/v1/bulk-migrations"


async def _world(api: Api, count: int = 3) -> list[Node]:
    """Three nodes; `web-1` and so on run on the first."""
    nodes = [await api.node(f"node-{number}") for number in (1, 2, 3)]
    for number in range(1, count + 1):
        await api.vm(f"web-{number}", node=nodes[0], status=MachineStatus.RUNNING, labels={"tier": "web"})
    return nodes


async def _plan(api: Api, **body: Any) -> wire.BulkMigrationPlan:
    answer = await api.http.post("/api/v1/bulk-migration-plans", json=body)
    assert answer.status_code == 200, answer.text
    return wire.BulkMigrationPlan.model_validate_json(answer.content)


async def _begin(api: Api, **body: Any) -> wire.BulkMigration:
    answer = await api.http.post(PATH, json=body)
    assert answer.status_code == 202, answer.text
    made = wire.BulkMigration.model_validate_json(answer.content)
    assert answer.headers["location"] == f"{PATH}/{made.id}"
    return made


async def test_a_plan_changes_nothing_and_what_it_says_is_what_is_begun(api: Api) -> None:
    await _world(api, 5)
    plan = await _plan(api, drain="node-1", bandwidth_budget_bytes_per_s=100 << 20, max_downtime_ms=300)
    assert (plan.purpose, plan.node, plan.stays) == ("drain", "node-1", 0)
    assert sorted(entry.wave for entry in plan.entries) == [1, 1, 2, 2, 3]
    assert plan.forecast.waves == 3
    assert plan.forecast.share_bytes_per_s == 50 << 20
    assert plan.forecast.total_s == pytest.approx(max(one.starts_at_s + one.takes_s for one in plan.entries), abs=0.01)
    assert (plan.forecast.busiest[0].nodes, plan.forecast.busiest[0].moves) == (["node-1"], 5)
    assert "limit.per_node node-1" in plan.forecast.held_back_s
    assert api.records.all(BULK_MIGRATIONS) == []
    assert not api.records.find(NODES, "node-1").record.cordoned
    made = await _begin(api, **plan.start.model_dump(mode="json", exclude_none=True))
    assert (made.state, made.purpose, made.node) == ("planned", "drain", "node-1")
    assert made.entries == plan.entries
    assert made.forecast == plan.forecast
    assert made.goals.max_downtime_ms == 300
    assert api.records.find(NODES, "node-1").record.cordoned
    assert api.records.all(MIGRATIONS) == []


async def test_a_plan_begun_later_keeps_its_targets(api: Api) -> None:
    """The other node would score better by now."""
    await _world(api, 1)
    plan = await _plan(api, drain="node-1")
    (target,) = plan.start.targets.values()
    there = api.records.find(NODES, target).record
    for number in range(5):
        await api.vm(f"more-{number}", node=there, status=MachineStatus.RUNNING)
    assert (await _plan(api, drain="node-1")).entries[0].target_node != there.name
    made = await _begin(api, **plan.start.model_dump(mode="json", exclude_none=True))
    assert made.entries is not None
    assert made.entries[0].target_node == there.name


async def test_who_cannot_move_is_said_with_every_nodes_reasons(api: Api) -> None:
    nodes = await _world(api, 1)
    spec = VmSpec(
        image_id=api.records.new_id(),
        memory_mib=64 << 10,
        disks=(Disk(volume_id=api.records.new_id(), size_bytes=1 << 30),),
    )
    await api.vm("huge", node=nodes[0], status=MachineStatus.RUNNING, spec=spec)
    await api.vm("crashed", node=nodes[0], status=MachineStatus.STALLED)
    await api.vm("off", node=nodes[0])
    task = Task(id="t", kind=TaskKind.STOP, requested_at=NOW)
    await api.vm("busy", node=nodes[0], status=MachineStatus.RUNNING, task=task)
    plan = await _plan(api, drain="node-1")
    entries = {entry.vm: entry for entry in plan.entries}
    assert {name: entry.state for name, entry in entries.items()} == {
        "web-1": "waiting", "huge": "stays", "crashed": "stays", "off": "waiting", "busy": "waiting",
    }  # fmt: skip
    assert [(one.code, one.subject) for one in entries["huge"].reasons] == [
        ("memory.short", "node-2"), ("memory.short", "node-3"),
    ]  # fmt: skip
    assert entries["crashed"].reasons[0].code == "state.conflict"
    assert entries["busy"].reasons[0].code == "vm.task_under_way"
    assert (entries["off"].target_node is None, entries["busy"].target_node) == (False, None)
    assert plan.stays == 2


async def test_labels_and_requests_say_who_goes_first(api: Api) -> None:
    nodes = await _world(api, 2)
    await api.vm("urgent", node=nodes[0], status=MachineStatus.RUNNING, labels={"tier": "web", PRIORITY_LABEL: "90"})
    await api.vm("odd", node=nodes[0], status=MachineStatus.RUNNING, labels={"tier": "web", PRIORITY_LABEL: "soon"})
    plan = await _plan(api, selector={"tier": ""}, max_concurrent=1, priorities={"web-2": 100})
    assert {one.vm: one.priority for one in plan.entries} == {"web-1": 50, "web-2": 100, "urgent": 90, "odd": 50}
    ordered = sorted(plan.entries, key=lambda one: one.starts_at_s)
    assert [one.vm for one in ordered] == ["web-2", "urgent", "odd", "web-1"]


async def test_all_go_to_the_node_asked_for_and_who_is_there_is_left_alone(api: Api) -> None:
    nodes = await _world(api, 2)
    await api.vm("there", node=nodes[2], status=MachineStatus.RUNNING)
    made = await _begin(api, vms=["web-1", "there", "web-2", "web-1"], target_node="node-3")
    assert made.entries is not None
    assert [(one.vm, one.state, one.target_node) for one in made.entries] == [
        ("web-1", "waiting", "node-3"), ("there", "skipped", None), ("web-2", "waiting", "node-3"),
    ]  # fmt: skip
    assert made.counts == {"waiting": 2, "skipped": 1}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "vms"),
        ({"vms": ["web-1"], "drain": "node-1"}, "drain"),
        ({"vms": ["nobody"]}, "vms"),
        ({"selector": {"tier": "db"}}, "selector"),
        ({"drain": "nowhere"}, "drain"),
        ({"bring_back": "nowhere"}, "bring_back"),
        ({"bring_back": "node-1", "target_node": "node-2"}, "target_node"),
        ({"vms": ["web-1"], "target_node": "nowhere"}, "target_node"),
        ({"vms": ["web-1"], "policy": "none"}, "policy"),
        ({"vms": ["web-1"], "priorities": {"web-2": 1}}, "priorities"),
        ({"vms": ["web-1"], "targets": {"web-1": "nowhere"}}, "targets"),
        ({"vms": ["web-1"], "max_concurrent": 0}, "max_concurrent"),
        ({"vms": ["web-1"], "surprise": 1}, "surprise"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_changes(api: Api, body: dict[str, Any], field: str) -> None:
    await _world(api, 2)
    for path in (PATH, "/api/v1/bulk-migration-plans"):
        problem = problem_of(await api.http.post(path, json=body), 422, "invalid_input")
        assert fields_of(problem) == [field]
    assert api.records.all(BULK_MIGRATIONS) == []


async def test_pause_resume_cancel_and_what_they_refuse(api: Api) -> None:
    await _world(api)
    made = await _begin(api, drain="node-1", labels={"why": "kernel"})
    problem = problem_of(await api.http.post(PATH, json={"drain": "node-1"}), 409, "state_conflict")
    assert problem["reasons"][0]["code"] == "node.draining"
    problem_of(await api.http.post(PATH, json={"bring_back": "node-1"}), 409, "state_conflict")
    where = f"{PATH}/{made.id}"
    problem_of(await api.http.post(f"{where}/resume"), 409, "state_conflict")
    assert (await api.http.post(f"{where}/pause")).json()["state"] == "paused"
    assert (await api.http.post(f"{where}/pause")).status_code == 202
    assert (await api.http.post(f"{where}/resume")).json()["state"] == "running"
    problem_of(await api.http.post(f"{where}/cancel", headers={"if-match": '"1"'}), 412, "precondition_failed")
    cancelled = wire.BulkMigration.model_validate_json((await api.http.post(f"{where}/cancel")).content)
    assert (cancelled.state, cancelled.counts) == ("cancelling", {"cancelled": 3})
    problem_of(await api.http.post(f"{PATH}/{api.records.new_id()}/cancel"), 404, "not_found")


async def test_a_request_sent_twice_begins_one(api: Api) -> None:
    await _world(api)
    answers = [await api.http.post(PATH, json={"drain": "node-1"}, headers={"idempotency-key": "k"}) for _ in range(2)]
    assert [one.status_code for one in answers] == [202, 202]
    assert answers[0].content == answers[1].content
    assert len(api.records.all(BULK_MIGRATIONS)) == 1


async def test_lists_leave_the_entries_out(api: Api) -> None:
    await _world(api)
    made = await _begin(api, drain="node-1", labels={"why": "kernel"})
    await _begin(api, vms=["web-1"])
    found = await api.http.get(PATH, params={"label": "why=kernel", "state": "planned"})
    (listed,) = PageOf[wire.BulkMigration].model_validate_json(found.content).items
    assert (listed.id, listed.entries, listed.counts) == (made.id, None, {"waiting": 3})
    whole = wire.BulkMigration.model_validate_json((await api.http.get(f"{PATH}/{made.id}")).content)
    assert whole.entries is not None
    assert len(whole.entries) == 3


async def test_bringing_back_uncordons_and_knows_what_was_taken(api: Api) -> None:
    await _world(api, 1)
    await api.http.patch("/api/v1/nodes/node-1", json={"cordoned": True})
    plan = await _plan(api, bring_back="node-1")
    assert (plan.purpose, plan.entries) == ("bring_back", [])
    made = await _begin(api, bring_back="node-1")
    assert (made.target_node, made.counts) == ("node-1", {})
    assert not api.records.find(NODES, "node-1").record.cordoned


async def test_the_loss_of_a_node_is_played_through(api: Api) -> None:
    nodes = [await api.node("node-1"), await api.node("node-2", memory_mib=512 + 1100)]
    await api.node("node-3", state=NodeState.DOWN)
    for number in (1, 2, 3):
        labels = {PRIORITY_LABEL: "90"} if number == 3 else {}
        await api.vm(f"web-{number}", node=nodes[0], status=MachineStatus.RUNNING, labels=labels)
    await api.vm("off", node=nodes[0])
    answer = await api.http.get("/api/v1/nodes/node-1/loss-plan")
    loss = wire.NodeLossPlan.model_validate_json(answer.content)
    assert [(one.vm, one.target_node) for one in loss.restarts] == [
        ("web-3", "node-2"), ("web-1", "node-2"), ("web-2", None),
    ]  # fmt: skip
    assert (loss.no_room, loss.at_rest) == (1, 1)
    assert [one.code for one in loss.restarts[2].reasons] == ["memory.short", "node.not_up"]
    problem_of(await api.http.get("/api/v1/nodes/nowhere/loss-plan"), 404, "not_found")
