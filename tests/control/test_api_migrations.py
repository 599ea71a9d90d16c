"""Migrations over the API: checked before anything changes, recorded with the VM in one transaction, taken back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from novacron.control.migrations.decide import LIVE_FEATURES
from novacron.control.store.kinds import MIGRATIONS, VMS
from novacron.model.machine import MachineStatus, NetworkKind, Nic
from novacron.model.migration import MigrationState, Progress, judged
from novacron.model.migration_steps import began, did, finished, next_action
from novacron.model.node import Accelerator, Node, NodeState
from novacron.model.verdict import Check, Outcome, Verdict
from novacron.model.vm import Desired, Problem, Task, TaskKind
from novacron.wire.rest import migrations as wire
from novacron.wire.rest.common import PageOf
from tests.control.api import NOW, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio


async def _two_nodes(api: Api) -> tuple[Node, Node]:
    return await api.node("node-1"), await api.node("node-2")


async def _move(api: Api, **body: Any) -> Any:
    return await api.http.post("/api/v1/migrations", json={"vm": "web-1", **body})


async def test_a_migration_and_its_vm_are_written_together(api: Api) -> None:
    source, target = await _two_nodes(api)
    stored = await api.vm(node=source, status=MachineStatus.RUNNING)
    answer = await _move(api, max_downtime_ms=50, labels={"why": "test"})
    assert answer.status_code == 202
    migration = wire.Migration.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/api/v1/migrations/{migration.id}"
    assert (migration.state, migration.kind, migration.vm_id) == ("pending", "live", stored.record.id)
    assert (migration.source_node, migration.target_node) == ("node-1", "node-2")
    assert (migration.target_node_id, migration.max_downtime_ms, migration.may_cancel) == (target.id, 50, True)
    assert "node-2" in migration.explanation[0]
    vm = api.records.find(VMS, "web-1")
    assert (vm.record.migration_id, vm.modified) == (migration.id, migration.revision)
    assert (await api.http.get("/api/v1/vms/web-1")).json()["state"] == "migrating"


async def test_the_view_follows_the_story(api: Api) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, status=MachineStatus.RUNNING)
    made = (await _move(api)).json()
    story = api.records.find(MIGRATIONS, made["id"]).record
    while (action := next_action(story)) is not None and hasattr(action, "step"):
        story = did(began(story, action.step, NOW), action.step, NOW)
    story = msgspec.structs.replace(
        finished(story, MigrationState.COMPLETED, NOW),
        progress=Progress(at=NOW, total_bytes=10),
        problem=Problem(code="x", message="y", at=NOW),
    )
    failed = Check(name="clock", outcome=Outcome.FAILED, evidence="it was an hour off", took_ms=1.5)
    story = judged(story, Verdict(at=NOW, checks=(failed,), clock_off_ms=3.6e6))
    await api.records.change(MIGRATIONS, story.id, lambda _: story)
    shown = wire.Migration.model_validate_json((await api.http.get(f"/api/v1/migrations/{story.id}")).content)
    assert (shown.state, shown.may_cancel) == ("completed", False)
    assert shown.steps_done == list(story.did)
    assert shown.figures.total_ms is not None
    assert shown.verdict is not None
    assert (shown.verdict.outcome, shown.verdict.clock_off_ms, shown.verdict.clock_off_after_ms) == (
        "failed",
        3.6e6,
        None,
    )
    assert [one.model_dump() for one in shown.verdict.checks] == [msgspec.to_builtins(failed)]
    assert "check clock failed: it was an hour off" in shown.explanation
    assert shown.progress is not None
    assert shown.progress.transferred_bytes == 0


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ({"state": NodeState.DOWN}, "node.not_up"),
        ({"cordoned": True}, "node.cordoned"),
        ({"facts": None}, "node.unknown"),
        ({"pool_ids": ()}, "pool.not_shared"),
        ({"bridges": ()}, "bridge.missing"),
        ({"memory_mib": 800}, "memory.short"),
        ({"drivers": ()}, "driver.missing"),
        ({"features": LIVE_FEATURES[1:]}, "driver.feature_missing"),
        ({"machine_types": ()}, "machine_type.missing"),
        ({"cpu_models": ()}, "cpu_model.missing"),
        ({"accelerator": Accelerator(name="kvm", reason="probed")}, "accelerator.differs"),
    ],
)
@pytest.mark.parametrize("asked_for", [True, False])
async def test_a_target_that_cannot_take_it_says_why_and_nothing_changes(
    api: Api, target: dict[str, Any], reason: str, asked_for: bool
) -> None:
    source, other = await _two_nodes(api)
    await _spoil(api, other, target)
    stored = await api.vm(node=source, status=MachineStatus.RUNNING)
    nic = Nic(id="n", mac="52:4e:43:00:00:01", network=NetworkKind.BRIDGE, bridge="br0")
    spec = msgspec.structs.replace(stored.record.spec, nics=(nic,))
    bridged = await api.records.change(VMS, stored.record.id, lambda vm: msgspec.structs.replace(vm, spec=spec))
    assert bridged is not None
    answer = await (_move(api, target_node="node-2") if asked_for else _move(api))
    problem = problem_of(answer, 507, "no_room")
    assert [(one["subject"], one["code"]) for one in problem["reasons"]] == [("node-2", reason)]
    assert api.records.all(MIGRATIONS) == []
    assert api.records.find(VMS, "web-1").modified == bridged.modified


async def _spoil(api: Api, node: Node, change: dict[str, Any]) -> None:
    from novacron.control.store.kinds import NODES

    def spoiled(old: Node) -> Node:
        own = {key: value for key, value in change.items() if key in Node.__struct_fields__}
        assert old.facts is not None
        driver = old.facts.drivers[0]
        of_driver = {key: value for key, value in change.items() if key in type(driver).__struct_fields__}
        facts = msgspec.structs.replace(old.facts, drivers=(msgspec.structs.replace(driver, **of_driver),))
        of_facts = {key: value for key, value in change.items() if key in type(facts).__struct_fields__}
        facts = msgspec.structs.replace(facts, **of_facts)
        return msgspec.structs.replace(old, **{"facts": facts, **own})

    await api.records.change(NODES, node.id, spoiled)


@pytest.mark.parametrize(
    ("vm", "kind", "code"),
    [
        ({"status": MachineStatus.STOPPED}, "live", "state_conflict"),
        ({"status": MachineStatus.STOPPED}, "warm", "state_conflict"),
        ({"status": MachineStatus.PAUSED}, "cold", "state_conflict"),
        ({"status": MachineStatus.PARKED}, None, "state_conflict"),
        ({"status": MachineStatus.STALLED}, None, "state_conflict"),
        ({"status": MachineStatus.CRASHED, "desired": Desired.RUNNING}, None, "state_conflict"),
        ({"status": MachineStatus.STOPPED, "desired": Desired.DELETED}, None, "state_conflict"),
        ({"status": MachineStatus.STOPPED, "parent_id": "p"}, None, "state_conflict"),
        ({"status": MachineStatus.STOPPED, "node_id": ""}, None, "state_conflict"),
        ({"status": MachineStatus.RUNNING, "node_lost": True}, None, "state_conflict"),
        ({"status": MachineStatus.RUNNING, "migration_id": "m"}, None, "busy"),
        ({"status": MachineStatus.RUNNING, "task": Task(id="t", kind=TaskKind.STOP, requested_at=NOW)}, None, "busy"),
    ],
)
async def test_a_vm_that_cannot_be_moved_now(api: Api, vm: dict[str, Any], kind: str | None, code: str) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, **vm)
    problem_of(await _move(api, kind=kind), 409, code)
    problem_of(await api.http.get("/api/v1/vms/web-1/migration-plan", params={"kind": kind} if kind else {}), 409, code)
    assert api.records.all(MIGRATIONS) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"vm": "nobody"}, "vm"),
        ({"vm": "../x"}, "vm"),
        ({"target_node": "nowhere"}, "target_node"),
        ({"target_node": "node-1"}, "target_node"),
        ({"max_downtime_ms": 0}, "max_downtime_ms"),
        ({"bandwidth_bytes_per_s": -1}, "bandwidth_bytes_per_s"),
        ({"finish_within_s": 0}, "finish_within_s"),
        ({"kind": "quantum"}, "kind"),
        ({"kind": "cold", "strategy": "hybrid"}, "strategy"),
        ({"never_postcopy": True, "strategy": "postcopy"}, "never_postcopy"),
        ({"max_slowdown_percent": 99}, "max_slowdown_percent"),
        ({"policy": "nobody"}, "policy"),
        ({"uri": "exec:sh"}, "uri"),
        ({"state": "completed"}, "state"),
    ],
)
async def test_a_wrong_field_is_named(api: Api, body: dict[str, Any], field: str) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, status=MachineStatus.RUNNING)
    assert fields_of(problem_of(await _move(api, **body), 422, "invalid_input")) == [field]


async def test_a_source_that_cannot_send_says_what_it_lacks(api: Api) -> None:
    source, _ = await _two_nodes(api)
    await _spoil(api, source, {"features": LIVE_FEATURES[:-1]})
    await api.vm(node=source, status=MachineStatus.RUNNING)
    problem = problem_of(await _move(api), 422, "unsupported")
    assert [reason["subject"] for reason in problem["reasons"]] == ["node-1"]
    assert LIVE_FEATURES[-1] in problem["reasons"][0]["message"]


@pytest.mark.parametrize(
    ("status", "asked", "kind", "at_rest"),
    [
        (MachineStatus.RUNNING, None, "live", False),
        (MachineStatus.RUNNING, "warm", "warm", False),
        (MachineStatus.RUNNING, "cold", "cold", False),
        (MachineStatus.PAUSED, None, "live", False),
        (MachineStatus.PAUSED, "warm", "warm", False),
        (MachineStatus.STOPPED, None, "cold", True),
        (MachineStatus.STOPPED, "cold", "cold", True),
    ],
)
async def test_the_kind_follows_from_the_request_and_what_runs(
    api: Api, status: MachineStatus, asked: str | None, kind: str, at_rest: bool
) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, status=status)
    answer = await _move(api, kind=asked)
    assert answer.status_code == 202, answer.text
    made = wire.Migration.model_validate_json(answer.content)
    assert (made.kind, made.at_rest, made.strategy) == (kind, at_rest, "precopy")


async def test_a_cold_move_asks_for_no_feature_that_only_memory_needs(api: Api) -> None:
    source, target = await _two_nodes(api)
    for node in (source, target):
        await _spoil(api, node, {"features": ()})
    await _spoil(api, target, {"accelerator": Accelerator(name="kvm", reason="probed")})
    await api.vm(node=source, status=MachineStatus.RUNNING)
    problem_of(await _move(api), 422, "unsupported")
    assert (await _move(api, kind="cold")).status_code == 202


async def test_of_many_at_once_one_wins(api: Api) -> None:
    source, _ = await _two_nodes(api)
    await api.node("node-3")
    await api.vm(node=source, status=MachineStatus.RUNNING)
    answers = await asyncio.gather(*(_move(api) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
    assert len(api.records.all(MIGRATIONS)) == 1


async def test_room_on_the_target_is_held_while_it_migrates(api: Api) -> None:
    source, _ = await api.node("node-1"), await api.node("node-2", memory_mib=512 + 600)
    await api.vm("web-1", node=source, status=MachineStatus.RUNNING)
    await api.vm("web-2", node=source, status=MachineStatus.RUNNING)
    assert (await _move(api)).status_code == 202
    problem = problem_of(await _move(api, vm="web-2"), 507, "no_room")
    assert problem["reasons"][0]["code"] == "memory.short"


async def test_cancel_until_the_commit(api: Api) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, status=MachineStatus.RUNNING)
    made = (await _move(api)).json()
    answer = await api.http.post(f"/api/v1/migrations/{made['id']}/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["may_cancel"]) == (202, "cancelling", True)
    again = await api.http.post(f"/api/v1/migrations/{made['id']}/cancel")
    assert (again.status_code, again.json()["revision"]) == (202, answer.json()["revision"])
    await api.records.change(
        MIGRATIONS, made["id"], lambda story: msgspec.structs.replace(story, state=MigrationState.COMPLETED)
    )
    problem_of(await api.http.post(f"/api/v1/migrations/{made['id']}/cancel"), 409, "state_conflict")
    problem_of(await api.http.post("/api/v1/migrations/nothing/cancel"), 404, "not_found")
    problem_of(await api.http.get("/api/v1/migrations/nothing"), 404, "not_found")


async def test_its_bandwidth_is_changed_while_something_of_it_is_still_to_stream(api: Api) -> None:
    source, _ = await _two_nodes(api)
    await api.vm(node=source, status=MachineStatus.RUNNING)
    path = f"/api/v1/migrations/{(await _move(api)).json()['id']}/set-bandwidth"
    answer = await api.http.post(path, json={"bandwidth_bytes_per_s": 10 << 20})
    made = answer.json()
    assert (answer.status_code, made["bandwidth_bytes_per_s"]) == (202, 10 << 20)
    assert made["explanation"][-1] == "bandwidth changed by admin: at most 10.0 MiB/s"
    again = await api.http.post(path, json={"bandwidth_bytes_per_s": 10 << 20})
    assert (again.status_code, again.json()["revision"]) == (202, made["revision"])
    for wrong in ({}, {"bandwidth_bytes_per_s": -1}, {"bandwidth_bytes_per_s": 1 << 41}):
        problem = problem_of(await api.http.post(path, json=wrong), 422, "invalid_input")
        assert fields_of(problem) == ["bandwidth_bytes_per_s"]
    await api.records.change(
        MIGRATIONS, made["id"], lambda story: msgspec.structs.replace(story, did=("accept", "send"))
    )
    problem_of(await api.http.post(path, json={"bandwidth_bytes_per_s": 0}), 409, "state_conflict")
    gone = await api.http.post("/api/v1/migrations/nothing/set-bandwidth", json={"bandwidth_bytes_per_s": 0})
    problem_of(gone, 404, "not_found")


async def test_lists_filter_by_vm_and_state(api: Api) -> None:
    source, _ = await _two_nodes(api)
    for name in ("web-1", "web-2"):
        await api.vm(name, node=source, status=MachineStatus.RUNNING)
        await _move(api, vm=name, labels={"of": name})
    vm_id = api.records.find(VMS, "web-1").record.id
    for query, names in (
        ("", ["web-1", "web-2"]),
        ("vm=web-1", ["web-1"]),
        (f"vm={vm_id}", ["web-1"]),
        ("vm=nobody", []),
        ("state=pending&label=of=web-2", ["web-2"]),
        ("state=failed", []),
    ):
        answer = await api.http.get(f"/api/v1/migrations?{query}")
        page = PageOf[wire.Migration].model_validate_json(answer.content)
        assert sorted(item.vm_name for item in page.items) == names
