"""High availability over the API: what is asked, shown, changed and refused."""

from __future__ import annotations

import pytest

from novacron.control.store.kinds import VMS
from novacron.model.ha import FenceClass, HaPolicy, Protection
from tests.control.api import Api, fields_of, problem_of

pytestmark = pytest.mark.anyio

TINY = {"name": "web-1", "image": "tiny", "memory_mib": 256, "nics": []}
NONE = {"policy": "none", "min_fence_class": "watchdog", "priority": 50}


async def test_a_policy_is_asked_for_shown_and_changed_as_a_whole(api: Api) -> None:
    await api.node("node-1")
    await api.image()
    wish = {"policy": "restart", "min_fence_class": "timer", "priority": 80}
    made = (await api.http.post("/api/v1/vms", json=TINY | {"ha": wish, "desired": "stopped"})).json()
    assert made["ha"] == wish
    kept = api.records.find(VMS, "web-1").record.spec.ha
    assert kept == Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER, priority=80)
    changed = (await api.http.patch("/api/v1/vms/web-1", json={"ha": {"policy": "restart"}})).json()
    assert changed["ha"] == NONE | {"policy": "restart"}
    assert (await api.http.patch("/api/v1/vms/web-1", json={"ha": {}})).json()["ha"] == NONE


async def test_without_a_word_of_it_a_vm_has_none(api: Api) -> None:
    await api.node("node-1")
    await api.image()
    assert (await api.http.post("/api/v1/vms", json=TINY)).json()["ha"] == NONE


@pytest.mark.parametrize(
    ("ha", "field"),
    [
        ({"policy": "always"}, "ha.policy"),
        ({"policy": "restart", "min_fence_class": "none"}, "ha.min_fence_class"),
        ({"policy": "restart", "priority": 101}, "ha.priority"),
        ({"restart": True}, "ha.restart"),
    ],
)
async def test_what_cannot_be_promised_is_refused_by_name(api: Api, ha: dict[str, object], field: str) -> None:
    await api.node("node-1")
    await api.image()
    refused = problem_of(await api.http.post("/api/v1/vms", json=TINY | {"ha": ha}), 422, "invalid_input")
    assert fields_of(refused) == [field]
