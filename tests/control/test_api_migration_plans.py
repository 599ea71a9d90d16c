"""Plans over the API: every node with all its reasons, what it would cost, and the same answer when it is begun."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from novacron.control.migrations.decide import LIVE_FEATURES, POSTCOPY
from novacron.control.store.kinds import MIGRATIONS, NODES, VMS
from novacron.model.machine import MachineStatus
from novacron.model.migration import Figures, MigrationState
from novacron.model.migration_steps import finished
from novacron.model.node import Node
from novacron.model.prediction import Measurement
from novacron.model.vm import Vm
from novacron.wire.moving import Measure
from novacron.wire.rest import migration_plans
from novacron.wire.rest import migrations as wire
from tests.control.api import NOW, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio
MIB = 1 << 20


def measured(dirty_mib: float, used_mib: int = 400) -> Measurement:
    return Measurement(
        at=NOW,
        interval_s=1.0,
        dirtied_bytes=int(dirty_mib * MIB),
        memory_used_bytes=used_mib * MIB,
        memory_bytes=512 * MIB,
    )


async def _world(api: Api, dirty_mib: float | None = 1.0) -> tuple[Node, Node]:
    source, target = await api.node("node-1"), await api.node("node-2")
    await api.vm(node=source, status=MachineStatus.RUNNING, labels={"tier": "db"})
    api.agents.measured = None if dirty_mib is None else measured(dirty_mib)
    return source, target


async def _plan(api: Api, **query: Any) -> migration_plans.MigrationPlan:
    answer = await api.http.get("/api/v1/vms/web-1/migration-plan", params=query)
    assert answer.status_code == 200, answer.text
    return migration_plans.MigrationPlan.model_validate_json(answer.content)


async def _begin(api: Api, **body: Any) -> Any:
    return await api.http.post("/api/v1/migrations", json={"vm": "web-1", **body})


async def _give(api: Api, node: Node, *features: str, **facts: Any) -> None:
    def given(old: Node) -> Node:
        assert old.facts is not None
        driver = msgspec.structs.replace(old.facts.drivers[0], features=(*LIVE_FEATURES, *features))
        return msgspec.structs.replace(old, facts=msgspec.structs.replace(old.facts, **{"drivers": (driver,), **facts}))

    await api.records.change(NODES, node.id, given)


async def test_every_node_is_answered_for_with_all_its_reasons(api: Api) -> None:
    await _world(api)
    small = await api.node("node-3", memory_mib=600, cordoned=True)
    await _give(api, small, pool_ids=())
    plan = await _plan(api)
    assert (plan.vm, plan.source_node, plan.target_node, plan.at_rest) == ("web-1", "node-1", "node-2", False)
    here, goes, cannot = plan.nodes
    assert (here.is_here, here.can, here.reasons, here.start) == (True, False, [], None)
    assert (goes.can, goes.chosen, goes.kind, goes.strategy) == (True, True, "live", "precopy")
    assert goes.predicted is not None
    assert goes.predicted.downtime_ms.low <= goes.predicted.downtime_ms.expected <= goes.predicted.downtime_ms.high
    assert [one.code for one in cannot.reasons] == ["node.cordoned", "pool.not_shared", "memory.short"]
    assert all(one.subject == "node-3" for one in cannot.reasons)
    assert (cannot.can, cannot.predicted) == (False, None)
    assert plan.measured is not None
    assert api.records.all(MIGRATIONS) == []


async def test_what_the_plan_says_is_what_is_begun(api: Api) -> None:
    source, target = await _world(api, 400)
    for node in (source, target):
        await _give(api, node, POSTCOPY)
    plan = await _plan(api, finish_within_s=600, may_pause=False)
    node = plan.nodes[1]
    assert (node.kind, node.strategy) == ("live", "hybrid")
    assert node.start is not None
    assert (node.start.target_node, node.start.vm) == (node.node_id, plan.vm_id)
    answer = await api.http.post("/api/v1/migrations", json=node.start.model_dump(mode="json", exclude_none=True))
    assert answer.status_code == 202, answer.text
    made = wire.Migration.model_validate_json(answer.content)
    assert (made.kind, made.strategy, made.target_node, made.finish_within_s) == ("live", "hybrid", "node-2", 600)
    assert made.predicted == node.predicted
    assert [one for one in api.agents.calls if isinstance(one, Measure)] == [api.agents.calls[0]]  # once for both


async def test_without_postcopy_on_both_sides_it_is_refused_in_advance_and_says_what_helps(api: Api) -> None:
    source, target = await _world(api, 400)
    await _give(api, source, POSTCOPY)
    plan = await _plan(api)
    assert [one.code for one in plan.nodes[1].reasons] == ["goal.never_ends"]
    assert plan.target_node is None
    problem = problem_of(await _begin(api, measure=True), 422, "goals_unmet")
    assert problem["reasons"][0]["subject"] == "node-2"
    assert "may_pause" in problem["reasons"][0]["remedy"]
    problem = problem_of(await _begin(api, strategy="postcopy"), 422, "goals_unmet")
    assert "node-2" in problem["reasons"][0]["message"]
    await _give(api, target, POSTCOPY)
    assert (await _begin(api)).json()["strategy"] == "hybrid"


async def test_one_taken_back_while_it_was_paused_is_to_be_resumed_first(api: Api) -> None:
    """Its hypervisor would not send it: nothing is begun. Stopped, or with its disks alone, it may move."""
    source, _ = await _world(api)
    await api.vm("web-2", node=source, status=MachineStatus.PAUSED)

    def taken_back(vm: Vm) -> Vm:
        assert vm.observed is not None
        return msgspec.structs.replace(vm, observed=msgspec.structs.replace(vm.observed, resume_first=True))

    await api.records.change(VMS, api.records.find(VMS, "web-2").record.id, taken_back)
    asked = api.http.get("/api/v1/vms/web-2/migration-plan"), _begin(api, vm="web-2")
    for answer in asked:
        problem = problem_of(await answer, 409, "state_conflict")
        (reason,) = problem["reasons"]
        assert reason["code"] == "vm.resume_first"
        assert reason["remedy"].startswith("novacron vm resume web-2 ")
    assert api.records.all(MIGRATIONS) == []


async def test_a_downtime_ceiling_is_measured_for_and_never_raised(api: Api) -> None:
    await _world(api, 400)
    problem = problem_of(await _begin(api, max_downtime_ms=50, may_pause=True), 422, "goals_unmet")
    assert {one["code"] for one in problem["reasons"]} == {"goal.never_ends", "goal.max_downtime_ms"}
    assert any(isinstance(one, Measure) for one in api.agents.calls)
    made = (await _begin(api, may_pause=True)).json()
    assert made["may_pause"] is True
    assert any("nobody asked for one" in one for one in made["explanation"])


async def test_a_plain_request_does_not_wait_for_a_measurement(api: Api) -> None:
    await _world(api)
    made = (await _begin(api)).json()
    assert not any(isinstance(one, Measure) for one in api.agents.calls)
    assert any("not measured" in one for one in made["explanation"])
    assert made["predicted"]["ends"] is True


async def test_a_node_that_cannot_measure_refuses_nothing(api: Api) -> None:
    await _world(api, None)
    plan = await _plan(api)
    assert plan.measured is None
    assert "does not measure" in plan.note
    assert plan.nodes[1].can


async def test_a_plan_asked_for_one_target_still_tells_of_the_others(api: Api) -> None:
    await _world(api)
    await api.node("node-3")
    plan = await _plan(api, target_node="node-3", measure=False)
    assert plan.target_node == "node-3"
    assert [(one.node, one.can, one.chosen) for one in plan.nodes] == [
        ("node-1", False, False), ("node-2", True, False), ("node-3", True, True),
    ]  # fmt: skip
    assert "another was asked for" in plan.nodes[1].explanation[0]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"target_node": "nowhere"}, "target_node"),
        ({"target_node": "node-1"}, "target_node"),
        ({"kind": "quantum"}, "kind"),
        ({"max_downtime_ms": 0}, "max_downtime_ms"),
        ({"downtime": 5}, "downtime"),
        ({"policy": "nobody"}, "policy"),
        ({"strategy": "hybrid", "kind": "warm"}, "strategy"),
    ],
)
async def test_a_wrong_query_is_named(api: Api, query: dict[str, Any], field: str) -> None:
    await _world(api)
    answer = await api.http.get("/api/v1/vms/web-1/migration-plan", params=query)
    assert fields_of(problem_of(answer, 422, "invalid_input")) == [field]


async def test_no_such_vm_is_not_found(api: Api) -> None:
    problem_of(await api.http.get("/api/v1/vms/nobody/migration-plan"), 404, "not_found")


async def test_a_completed_migration_shows_how_wrong_its_prediction_was_and_the_next_learns_from_it(api: Api) -> None:
    _, target = await _world(api)
    made = (await _begin(api)).json()
    figures = Figures(
        transfer_ms=1000.0, downtime_stopped_ms=10.0, bytes_transferred=200 * MIB, rate_bytes_per_s=210.0 * MIB
    )

    def done(old: Any) -> Any:
        ended = finished(old, MigrationState.COMPLETED, old.created_at)
        return msgspec.structs.replace(
            ended, figures=msgspec.structs.replace(figures, total_ms=old.predicted.total_ms.expected / 2)
        )

    await api.records.change(MIGRATIONS, made["id"], done)
    shown = (await api.http.get(f"/api/v1/migrations/{made['id']}")).json()
    assert shown["prediction_error"]["total_percent"] == pytest.approx(100)
    assert shown["prediction_error"]["downtime_percent"] > 0
    await api.vm("web-2", node=target, status=MachineStatus.RUNNING)
    answer = await api.http.get("/api/v1/vms/web-2/migration-plan", params={"measure": False})
    assert any("210 MiB/s, as 1 earlier" in one for one in answer.json()["nodes"][0]["explanation"])


async def test_what_was_measured_stays_on_the_record_and_the_next_plan_knows_what_was_blank(api: Api) -> None:
    await _world(api, 0.0)
    made = (await _begin(api, measure=True)).json()
    assert made["measured"]["memory_used_bytes"] == 400 * MIB

    def done(old: Any) -> Any:
        figures = Figures(transfer_ms=3000.0, bytes_transferred=300 * MIB)
        return msgspec.structs.replace(finished(old, MigrationState.COMPLETED, old.created_at), figures=figures)

    await api.records.change(MIGRATIONS, made["id"], done)
    await api.records.change(VMS, made["vm_id"], lambda vm: msgspec.structs.replace(vm, migration_id=""))
    node = next(one for one in (await _plan(api)).nodes if one.can)
    assert node.predicted is not None
    assert node.predicted.bytes_transferred.expected == 300 * MIB
    assert any("100 MiB of it are blank" in one for one in node.explanation)
    unasked = (await _begin(api)).json()
    assert unasked["measured"] is not None  # the plan's measurement, which is still fresh


# -- policies ----------------------------------------------------------------------------------------------


async def _policy(api: Api, name: str, **body: Any) -> Any:
    return await api.http.post("/api/v1/migration-policies", json={"name": name, "goals": {}, **body})


async def test_a_policy_lives(api: Api) -> None:
    made = await _policy(api, "database", goals={"max_downtime_ms": 40}, selector={"tier": "db"})
    assert made.status_code == 201
    assert made.headers["location"] == f"/api/v1/migration-policies/{made.json()['id']}"
    problem_of(await _policy(api, "database"), 409, "name_taken")
    assert (await api.http.get("/api/v1/migration-policies?name=database")).json()["items"] == [made.json()]
    path = "/api/v1/migration-policies/database"
    changed = await api.http.patch(
        path, json={"goals": {"may_pause": True}}, headers={"if-match": made.headers["etag"]}
    )
    assert changed.json()["goals"] == {
        "max_downtime_ms": None, "finish_within_s": None, "max_slowdown_percent": None,
        "bandwidth_bytes_per_s": None, "may_pause": True, "never_postcopy": None, "transport": None,
        "verify_disks": None,
    }  # fmt: skip
    assert changed.json()["selector"] == {"tier": "db"}
    stale = await api.http.patch(path, json={"name": "x"}, headers={"if-match": made.headers["etag"]})
    problem_of(stale, 412, "precondition_failed")
    assert (await api.http.delete(path)).status_code == 204
    problem_of(await api.http.get(path), 404, "not_found")


async def test_there_is_one_default(api: Api) -> None:
    assert (await _policy(api, "usual", is_default=True)).status_code == 201
    problem = problem_of(await _policy(api, "other", is_default=True), 409, "conflict")
    assert "usual" in problem["reasons"][0]["remedy"]
    await _policy(api, "other")
    problem_of(await api.http.patch("/api/v1/migration-policies/other", json={"is_default": True}), 409, "conflict")
    assert (await api.http.patch("/api/v1/migration-policies/usual", json={"is_default": True})).status_code == 200
    assert (await api.http.patch("/api/v1/migration-policies/usual", json={"is_default": False})).status_code == 200
    assert (await api.http.patch("/api/v1/migration-policies/other", json={"is_default": True})).status_code == 200


async def test_policies_say_what_a_request_leaves_open_and_bind(api: Api) -> None:
    source, target = await _world(api, 400)
    for node in (source, target):
        await _give(api, node, POSTCOPY)
    await _policy(api, "database", goals={"never_postcopy": True, "max_downtime_ms": 70}, selector={"tier": "db"})
    await _policy(api, "usual", goals={"finish_within_s": 500.0}, is_default=True)
    await _policy(api, "patient", goals={"may_pause": True, "max_downtime_ms": 60_000})
    plan = await _plan(api)
    assert plan.goals.never_postcopy
    assert plan.goals_said_by == {
        "max_downtime_ms": "policy database, which selects it",
        "never_postcopy": "policy database, which selects it",
        "finish_within_s": "policy usual, the default",
    }
    assert "policy database" in plan.nodes[1].reasons[0].remedy
    problem_of(await _begin(api), 422, "goals_unmet")
    answer = await _begin(api, policy="patient")
    assert answer.status_code == 202, answer.text
    made = wire.Migration.model_validate_json(answer.content)
    assert (made.max_downtime_ms, made.finish_within_s, made.never_postcopy, made.may_pause) == (
        60_000,
        500,
        True,
        True,
    )
    assert "goal: never post-copy: policy database, which selects it" in made.explanation
    assert "goal: may be paused: policy patient, which was named" in made.explanation


NIGHT = {"days": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"], "begins": "02:00", "ends": "02:01"}


async def test_a_plan_and_a_migration_say_until_when_they_wait(api: Api) -> None:
    await _world(api)
    policy = {"name": "nightly", "goals": {}, "windows": [NIGHT | {"timezone": "Pacific/Kiritimati"}]}
    made = await api.http.post("/api/v1/migration-policies", json=policy)
    assert made.status_code == 201, made.text
    assert made.json()["windows"] == policy["windows"]
    assert (await _plan(api, policy="nightly", now=True)).not_before is None
    plan = await _plan(api, policy="nightly")
    assert plan.not_before is not None
    assert (plan.not_before.hour, plan.not_before.minute) == (12, 0)  # fourteen hours ahead
    begun = (await _begin(api, policy="nightly", priority=7)).json()
    assert (begun["state"], begun["began_at"], begun["priority"]) == ("pending", None, 7)
    assert begun["not_before"].replace("Z", "+00:00") == plan.not_before.isoformat()
    assert "windows of policy nightly" in begun["explanation"][-1]


async def test_a_time_asked_for_is_kept_to_and_says_so(api: Api) -> None:
    await _world(api)
    then = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=2)
    elsewhere = then.astimezone(datetime.timezone(datetime.timedelta(hours=9)))
    begun = (await _begin(api, starts_at=elsewhere.isoformat())).json()
    assert begun["not_before"] == f"{then:%Y-%m-%dT%H:%M:%SZ}"
    assert begun["explanation"][-1] == f"waits until {then:%Y-%m-%d %H:%M} UTC: starts_at was asked for"
    for wrong in ("2099-01-02T03:04:00", "9999-12-31T23:59:59-14:00"):
        problem = problem_of(await _begin(api, starts_at=wrong), 422, "invalid_input")
        assert fields_of(problem) == ["starts_at"]


@pytest.mark.parametrize(
    ("window", "field"),
    [
        ({"days": []}, "windows"),
        ({"days": ["monday"]}, "windows"),
        ({"begins": "24:00"}, "windows"),
        ({"timezone": "Middle/Earth"}, "windows"),
        ({"timezone": "../etc/passwd"}, "windows"),
    ],
)
async def test_a_window_that_is_none_is_refused(api: Api, window: dict[str, Any], field: str) -> None:
    body = {"name": "nightly", "goals": {}, "windows": [NIGHT | window]}
    problem = problem_of(await api.http.post("/api/v1/migration-policies", json=body), 422, "invalid_input")
    assert all(one.startswith(field) for one in fields_of(problem))
