"""The balancer over the API: its settings, and what it would do, of records that are there."""

from __future__ import annotations

import msgspec
import pytest

from novacron.control.store.kinds import MIGRATIONS, NODES
from novacron.model.machine import MachineStatus
from novacron.model.placement import Taint
from tests.control.api import Api, fields_of, problem_of

pytestmark = pytest.mark.anyio
PATH = "/api/v1/balancer"


async def test_it_is_off_until_it_is_set_and_says_so(api: Api) -> None:
    told = await api.http.get(PATH)
    assert told.status_code == 200
    assert (told.json()["mode"], told.json()["revision"], told.headers["etag"]) == ("off", 0, '"0"')
    plan = (await api.http.get(f"{PATH}/plan")).json()
    assert (plan["moves"], [reason["code"] for reason in plan["reasons"]]) == ([], ["balancer.off"])


async def test_it_is_set_as_a_whole_by_whom_holds_its_revision(api: Api) -> None:
    first = await api.http.put(PATH, json={"mode": "propose", "margin": 0.2}, headers={"if-match": '"0"'})
    assert first.status_code == 200, first.text
    assert (first.json()["margin"], first.json()["max_moves"]) == (0.2, 2)
    stale = await api.http.put(PATH, json={"mode": "act"}, headers={"if-match": '"0"'})
    problem_of(stale, 412, "precondition_failed")
    again = await api.http.put(PATH, json={"mode": "propose", "margin": 0.2})
    assert again.json() == first.json()
    assert (await api.http.get(PATH)).json() == first.json()


async def test_a_wrong_setting_is_refused_by_name(api: Api) -> None:
    wrong = await api.http.put(PATH, json={"mode": "auto", "margin": 2, "max_moves": 0})
    assert set(fields_of(problem_of(wrong, 422, "invalid_input"))) == {"mode", "margin", "max_moves"}


async def test_what_it_would_do_is_shown_with_reasons_and_costs_and_nothing_is_done(api: Api) -> None:
    one, other = await api.node("n1"), await api.node("n2")
    for number in range(4):
        await api.vm(f"vm-{number}", node=one, status=MachineStatus.RUNNING)
    await api.http.put(PATH, json={"mode": "propose", "max_moves": 1})
    plan = (await api.http.get(f"{PATH}/plan")).json()
    (move,) = plan["moves"]
    assert (move["source_node"], move["target_node"], move["why"], move["kind"]) == ("n1", "n2", "load", "live")
    assert move["total_s"] > 0
    assert move["after"]["imbalance"] < move["before"]["imbalance"]
    assert plan["cpu_by"] == "promises"
    assert [reason["code"] for reason in plan["reasons"]] == ["balance.max_moves"]
    assert api.records.all(MIGRATIONS) == []
    await api.records.change(NODES, other.id, lambda node: msgspec.structs.replace(node, cordoned=True))
    plan = (await api.http.get(f"{PATH}/plan")).json()
    assert (plan["moves"], [reason["code"] for reason in plan["reasons"]]) == ([], ["balance.alone"])


async def test_a_taint_that_came_later_moves_who_minds_it(api: Api) -> None:
    one = await api.node("n1", taints=(Taint(key="gpu"),))
    await api.node("n2")
    await api.vm("runs", node=one, status=MachineStatus.RUNNING)
    await api.vm("left", node=one, status=MachineStatus.RUNNING, labels={"novacron.io/balancer": "never"})
    await api.http.put(PATH, json={"mode": "propose"})
    plan = (await api.http.get(f"{PATH}/plan")).json()
    assert [(move["vm"], move["why"]) for move in plan["moves"]] == [("runs", "hard_rule")]
    assert "vm.not_to_be_moved" in [reason["code"] for reason in plan["reasons"]]
