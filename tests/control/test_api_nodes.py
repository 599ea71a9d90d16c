"""Nodes over the API: what they have and use, cordoning, forgetting."""

from __future__ import annotations

import pytest

from novacron.control.store.kinds import NODES
from novacron.model.machine import MachineStatus
from novacron.model.node import NodeState
from novacron.wire.rest import nodes as wire
from novacron.wire.rest.common import PageOf
from tests.control.api import Api, fields_of, problem_of

pytestmark = pytest.mark.anyio


async def test_a_node_shows_what_it_has_uses_and_has_promised(api: Api) -> None:
    node = await api.node()
    await api.vm("on", node=node, status=MachineStatus.RUNNING)
    await api.vm("off", node=node)
    for ref in (node.id, node.name):
        shown = wire.Node.model_validate_json((await api.http.get(f"/api/v1/nodes/{ref}")).content)
        assert (shown.vm_count, shown.memory_committed_mib, shown.state) == (2, 512, "up")
        assert shown.facts is not None
        assert shown.facts.drivers[0].accelerator is not None
        assert shown.usage is not None
        assert shown.heard_ago_s == 0.5
    api.agents.connected.clear()
    silent = (await api.http.get(f"/api/v1/nodes/{node.id}")).json()
    assert (silent["usage"], silent["heard_ago_s"]) == (None, None)


async def test_what_a_node_uses_is_never_answered_with_not_modified(api: Api) -> None:
    node = await api.node()
    first = await api.http.get(f"/api/v1/nodes/{node.id}")
    again = await api.http.get(f"/api/v1/nodes/{node.id}", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 200


async def test_a_node_that_has_not_reported_is_shown_too(api: Api) -> None:
    await api.node(facts=None, state=NodeState.JOINING)
    page = PageOf[wire.Node].model_validate_json((await api.http.get("/api/v1/nodes")).content)
    assert page.items[0].facts is None


async def test_lists_filter_by_name_state_and_label(api: Api) -> None:
    await api.node("node-1", labels={"rack": "a"})
    await api.node("node-2", state=NodeState.DOWN)
    for query, names in (
        ("state=down", ["node-2"]),
        ("label=rack=a", ["node-1"]),
        ("name=node-2", ["node-2"]),
        ("label=rack=b", []),
    ):
        items = (await api.http.get(f"/api/v1/nodes?{query}")).json()["items"]
        assert [node["name"] for node in items] == names
    problem_of(await api.http.get("/api/v1/nodes?state=flying"), 422, "invalid_input")


async def test_a_cordoned_node_is_given_nothing(api: Api) -> None:
    await api.node()
    await api.image()
    answer = await api.http.patch("/api/v1/nodes/node-1", json={"cordoned": True, "labels": {"rack": "a"}})
    assert (answer.status_code, answer.json()["cordoned"], answer.json()["labels"]) == (200, True, {"rack": "a"})
    problem = problem_of(await api.http.post("/api/v1/vms", json={"name": "a", "image": "tiny"}), 507, "no_room")
    assert problem["reasons"][0]["code"] == "node.cordoned"
    await api.http.patch("/api/v1/nodes/node-1", json={"cordoned": False})
    assert (await api.http.post("/api/v1/vms", json={"name": "a", "image": "tiny"})).status_code == 202


@pytest.mark.parametrize("body", [{"name": "other"}, {"state": "up"}, {"cordoned": "perhaps"}, {"facts": {}}])
async def test_only_labels_and_cordon_may_be_changed(api: Api, body: dict[str, object]) -> None:
    await api.node()
    problem = problem_of(await api.http.patch("/api/v1/nodes/node-1", json=body), 422, "invalid_input")
    assert fields_of(problem) == list(body)


async def test_a_stale_if_match_changes_nothing(api: Api) -> None:
    node = await api.node()
    stale = {"if-match": '"1"'}
    problem_of(
        await api.http.patch(f"/api/v1/nodes/{node.id}", json={"cordoned": True}, headers=stale),
        412,
        "precondition_failed",
    )
    assert not api.records.find(NODES, node.id).record.cordoned


async def test_only_a_node_that_is_down_and_empty_is_forgotten(api: Api) -> None:
    await api.node("living")
    full = await api.node("full", state=NodeState.DOWN)
    await api.vm(node=full)
    await api.node("empty", state=NodeState.DOWN)
    problem_of(await api.http.delete("/api/v1/nodes/living"), 409, "state_conflict")
    problem_of(await api.http.delete("/api/v1/nodes/full"), 409, "conflict")
    answer = await api.http.delete("/api/v1/nodes/empty")
    assert (answer.status_code, answer.content) == (204, b"")
    problem_of(await api.http.get("/api/v1/nodes/empty"), 404, "not_found")
    problem_of(await api.http.delete("/api/v1/nodes/empty"), 404, "not_found")
    problem_of(await api.http.patch("/api/v1/nodes/empty", json={}), 404, "not_found")


async def test_without_a_cluster_there_are_no_tokens_and_nothing_to_revoke(api: Api) -> None:
    node = await api.node()
    problem = problem_of(await api.http.post("/api/v1/node-tokens", json={}), 409, "conflict")
    assert "novacron cluster init" in problem["reasons"][0]["remedy"]
    problem = problem_of(await api.http.post(f"/api/v1/nodes/{node.name}/revoke"), 409, "conflict")
    assert problem["reasons"][0]["code"] == "certificate.none"
    problem_of(await api.http.post("/api/v1/nodes/node-9/revoke"), 404, "not_found")


@pytest.mark.parametrize("body", [{"lasts_s": 9}, {"lasts_s": 86_401}, {"node": "../x"}, {"nodes": "x"}])
async def test_what_a_token_may_be_asked_for(api: Api, body: dict[str, object]) -> None:
    problem = problem_of(await api.http.post("/api/v1/node-tokens", json=body), 422, "invalid_input")
    assert fields_of(problem) == list(body)
