"""Room kept for the loss of a node: what is warned of, what is refused, and what is not minded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from novacron.control.ha import admission
from novacron.control.store.kinds import VMS
from novacron.model.ha import HaAdmission
from tests.control.api import Api, an_api, problem_of

pytestmark = pytest.mark.anyio

HA = {"policy": "restart", "min_fence_class": "timer"}
NODE_MIB = 2560
"""Room for two VMs of 1 GiB beside what is kept for the host itself."""


def wish(name: str, node: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "tiny", "memory_mib": 1024, "nics": [], "node": node} | more


async def made(api: Api, name: str, node: str, **more: Any) -> dict[str, Any]:
    answer = await api.http.post("/api/v1/vms", json=wish(name, node, **more))
    assert answer.is_success, answer.text
    return dict(answer.json())


def told(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """Of each warning the node, and whom its loss would strand."""
    assert {one["code"] for one in answer.get("warnings", [])} <= {"ha.no_spare"}
    return [(one["subject"], one["message"].partition("room for ")[2]) for one in answer.get("warnings", [])]


@pytest.fixture
async def pair(api: Api) -> Api:
    """Two nodes, each with a guarded VM, and room on each for the other's."""
    await api.image()
    for name in ("node-1", "node-2"):
        await api.node(name, memory_mib=NODE_MIB)
    assert told(await made(api, "a", "node-1", ha=HA)) == []
    assert told(await made(api, "b", "node-2", ha=HA)) == []
    return api


async def test_a_guarded_vm_that_no_other_node_would_have_room_for_is_warned_of(pair: Api) -> None:
    answer = await made(pair, "c", "node-1", ha=HA)
    assert told(answer) == [("node-1", "c"), ("node-2", "b")]
    assert "novacron ha status" in answer["warnings"][0]["remedy"]
    shown = (await pair.http.get("/api/v1/vms/c")).json()
    assert "warnings" not in shown


async def test_a_vm_without_a_policy_that_takes_the_room_is_warned_of_too(pair: Api) -> None:
    assert told(await made(pair, "c", "node-1")) == [("node-2", "b")]


async def test_one_that_is_to_stay_off_takes_no_room_until_it_is_started(pair: Api) -> None:
    assert told(await made(pair, "c", "node-1", desired="stopped")) == []
    started = await pair.http.post("/api/v1/vms/c/start")
    assert (started.status_code, told(started.json())) == (202, [("node-2", "b")])


async def test_what_was_so_before_is_not_told_again(pair: Api) -> None:
    await made(pair, "c", "node-1", ha=HA)
    assert told(await made(pair, "d", "node-2")) == [("node-1", "a")]


async def test_growing_and_a_policy_switched_on_are_warned_of(pair: Api) -> None:
    grown = await pair.http.patch("/api/v1/vms/a", json={"memory_mib": 1536})
    assert told(grown.json()) == [("node-1", "a"), ("node-2", "b")]
    shrunk = await pair.http.patch("/api/v1/vms/a", json={"memory_mib": 1024})
    assert told(shrunk.json()) == []


async def test_a_policy_switched_on_is_warned_of_and_one_switched_off_is_not(api: Api) -> None:
    await api.image()
    await api.node("node-1", memory_mib=NODE_MIB)
    assert told(await made(api, "a", "node-1")) == []
    on = await api.http.patch("/api/v1/vms/a", json={"ha": HA})
    assert told(on.json()) == [("node-1", "a")]
    assert told((await api.http.patch("/api/v1/vms/a", json={"ha": {"policy": "none"}})).json()) == []


async def test_a_repeat_is_warned_as_the_first_was(pair: Api) -> None:
    key = {"idempotency-key": "once"}
    first = await pair.http.post("/api/v1/vms", json=wish("c", "node-1"), headers=key)
    again = await pair.http.post("/api/v1/vms", json=wish("c", "node-1"), headers=key)
    assert told(first.json()) == told(again.json()) == [("node-2", "b")]


async def test_vms_of_a_template_are_judged_together(pair: Api) -> None:
    body = {"name": "web", "vm": {"image": "tiny", "memory_mib": 512, "nics": [], "ha": HA}}
    assert (await pair.http.post("/api/v1/templates", json=body)).status_code == 201
    answer = await pair.http.post("/api/v1/templates/web/instantiate", json={"name": "w", "count": 4})
    assert sorted(one for one, _ in told(answer.json())) == ["node-1", "node-2"]


async def test_what_is_looked_at_is_bounded_and_begins_with_the_own_node(
    pair: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LOOKED_AT", 1)
    assert told(await made(pair, "c", "node-1", ha=HA)) == [("node-1", "c")]


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Api]:
    async with an_api(tmp_path, ha_admission=HaAdmission.REFUSE) as api:
        await api.image()
        for name in ("node-1", "node-2"):
            await api.node(name, memory_mib=NODE_MIB)
        yield api


async def test_where_the_setting_is_to_refuse_nothing_is_made(strict: Api) -> None:
    await made(strict, "a", "node-1", ha=HA)
    await made(strict, "b", "node-2", ha=HA)
    refused = problem_of(await strict.http.post("/api/v1/vms", json=wish("c", "node-1", ha=HA)), 507, "no_room")
    assert [(one["code"], one["subject"]) for one in refused["reasons"]] == [
        ("ha.no_spare", "node-1"), ("ha.no_spare", "node-2"),
    ]  # fmt: skip
    grown = await strict.http.patch("/api/v1/vms/a", json={"memory_mib": 1536})
    assert problem_of(grown, 507, "no_room")["reasons"][0]["code"] == "ha.no_spare"
    assert sorted(stored.record.name for stored in strict.records.all(VMS)) == ["a", "b"]
    assert strict.records.find(VMS, "a").record.spec.memory_mib == 1024
