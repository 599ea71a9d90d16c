"""Security groups through the API, what they come to on a card, and how cards change theirs."""

from __future__ import annotations

from typing import Any

import pytest

from novacron.control.networks.filters import compile_filter, members_of
from novacron.control.networks.states import snapshot, states
from novacron.control.store.kinds import NETWORKS
from novacron.model.machine import NetworkKind, Nic
from novacron.model.network import Direction, PortFilter, Protocol, Rule, SecurityGroup
from tests.control.api import NOW, Api, fields_of, problem_of
from tests.control.test_api_networks import VMS_PATH, network, overlay_node, vm

pytestmark = pytest.mark.anyio

GROUPS = "/api/v1/security_groups"
WEB = {"direction": "in", "protocol": "tcp", "port_first": 443}
HEX = "52:4e:43:00:00:"


async def group(api: Api, name: str, *rules: dict[str, Any]) -> dict[str, Any]:
    response = await api.http.post(GROUPS, json={"name": name, "rules": list(rules)})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def test_a_group_is_made_read_changed_listed_and_deleted(api: Api) -> None:
    made = await group(api, "web", WEB, WEB, {"direction": "out"})
    assert made["rules"] == [
        {"direction": "in", "protocol": "tcp", "port_first": 443, "port_last": 443, "cidr": "", "group": None},
        {"direction": "out", "protocol": "any", "port_first": 0, "port_last": 0, "cidr": "", "group": None},
    ]
    assert (await api.http.get(f"{GROUPS}/{made['id']}")).json() == made
    changed = await api.http.patch(f"{GROUPS}/web", json={"rules": made["rules"][:1], "labels": {"a": "b"}})
    assert changed.json()["rules"] == made["rules"][:1]
    assert [one["name"] for one in (await api.http.get(f"{GROUPS}?label=a=b")).json()["items"]] == ["web"]
    assert (await api.http.delete(f"{GROUPS}/web")).status_code == 204
    problem_of(await api.http.get(f"{GROUPS}/web"), 404, "not_found")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({}, "rules.1.direction"),
        ({"direction": "both"}, "rules.1.direction"),
        ({"direction": "in", "protocol": "sctp"}, "rules.1.protocol"),
        ({"direction": "in", "port_first": 80}, "rules.1"),
        ({"direction": "in", "protocol": "icmp", "port_first": 80}, "rules.1"),
        ({"direction": "in", "protocol": "tcp", "port_first": 80, "port_last": 79}, "rules.1"),
        ({"direction": "in", "protocol": "tcp", "port_last": 79}, "rules.1"),
        ({"direction": "in", "protocol": "tcp", "port_first": 65536}, "rules.1.port_first"),
        ({"direction": "in", "cidr": "10.0.0.1/24"}, "rules.1.cidr"),
        ({"direction": "in", "cidr": "everybody"}, "rules.1.cidr"),
        ({"direction": "in", "cidr": "10.0.0.0/24", "group": "web"}, "rules.1"),
        ({"direction": "in", "group": "nobody"}, "rules.1.group"),
    ],
)
async def test_a_wrong_rule_is_refused_by_its_field(api: Api, rule: dict[str, Any], field: str) -> None:
    response = await api.http.post(GROUPS, json={"name": "web", "rules": [WEB, rule]})
    assert fields_of(problem_of(response, 422, "invalid_input")) == [field]


async def test_a_rule_may_name_its_own_group_and_others(api: Api) -> None:
    made = await group(api, "web", {"direction": "in", "group": "web"})
    assert made["rules"][0]["group"] == made["id"]
    other = await group(api, "db", {"direction": "in", "group": "web"})
    assert other["rules"][0]["group"] == made["id"]
    refused = problem_of(await api.http.delete(f"{GROUPS}/web"), 409, "conflict")
    assert "db" in refused["detail"]
    assert (await api.http.delete(f"{GROUPS}/db")).status_code == 204
    assert (await api.http.delete(f"{GROUPS}/web")).status_code == 204  # that it names itself holds nobody up


async def test_a_group_with_cards_in_it_is_kept(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    made = await group(api, "web", WEB)
    nic = (await vm(api, "one", {"security_groups": ["web", made["id"]]}))["nics"][0]
    assert nic["security_groups"] == [made["id"]]  # named twice, in it once
    refused = problem_of(await api.http.delete(f"{GROUPS}/web"), 409, "conflict")
    assert "one" in refused["detail"]
    path = f"{VMS_PATH}/one/nics/{nic['id']}"
    changed = (await api.http.patch(path, json={"security_groups": []})).json()
    assert changed["nics"][0]["security_groups"] == []
    assert (await api.http.delete(f"{GROUPS}/web")).status_code == 204


async def test_a_cards_groups_change_while_it_runs_without_a_task(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    made = await group(api, "web", WEB)
    one = await vm(api, "one", desired="stopped")
    path = f"{VMS_PATH}/one/nics/{one['nics'][0]['id']}"
    changed = await api.http.patch(path, json={"security_groups": ["web"], "anti_spoofing": False})
    assert changed.status_code == 200
    assert changed.json()["task"] is None
    (nic,) = changed.json()["nics"]
    assert (nic["security_groups"], nic["anti_spoofing"]) == ([made["id"]], False)
    unknown = await api.http.patch(path, json={"security_groups": ["web", "nobody"]})
    assert fields_of(problem_of(unknown, 422, "invalid_input")) == ["security_groups.1"]
    stale = await api.http.patch(path, json={"security_groups": []}, headers={"if-match": '"1"'})
    problem_of(stale, 412, "precondition_failed")
    problem_of(await api.http.patch(f"{VMS_PATH}/one/nics/none", json={"anti_spoofing": True}), 404, "not_found")


async def test_a_card_elsewhere_has_no_groups(api: Api) -> None:
    await api.node()
    await api.image()
    made = (await api.http.post(VMS_PATH, json={"name": "one", "image": "tiny"})).json()
    path = f"{VMS_PATH}/one/nics/{made['nics'][0]['id']}"
    assert fields_of(problem_of(await api.http.patch(path, json={"security_groups": []}), 422, "invalid_input"))


# -- what they come to: pure -------------------------------------------------------------------------------


def card(last: int, *groups: str, **more: Any) -> Nic:
    return Nic(
        id=f"nic-{last}",
        mac=f"{HEX}{last:02x}",
        network=NetworkKind.OVERLAY,
        network_id="n",
        addresses=(f"10.20.0.{last}", f"fd20::{last:x}"),
        security_groups=groups,
        **more,
    )


def known(**rules: tuple[Rule, ...]) -> dict[str, SecurityGroup]:
    return {
        name: SecurityGroup(id=name, name=name, created_at=NOW, updated_at=NOW, rules=given)
        for name, given in rules.items()
    }


def test_a_card_in_no_group_is_only_kept_from_spoofing() -> None:
    compiled = compile_filter(card(2), {}, {})
    assert compiled == PortFilter(addresses=("10.20.0.2", "fd20::2"), anti_spoofing=True, stateful=False)
    assert not compile_filter(card(2, anti_spoofing=False), {}, {}).anti_spoofing


def test_a_card_in_an_empty_group_lets_nothing_begin() -> None:
    compiled = compile_filter(card(2, "a"), known(a=()), {})
    assert (compiled.stateful, compiled.rules) == (True, ())


def test_a_card_in_groups_has_each_of_their_rules_once() -> None:
    web = Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=443, port_last=443)
    out = Rule(direction=Direction.OUT)
    assert compile_filter(card(2, "a", "b"), known(a=(web, out), b=(out,)), {}).rules == (web, out)


def test_a_named_group_becomes_its_members_addresses_joined_where_they_are_neighbours() -> None:
    rule = Rule(direction=Direction.IN, protocol=Protocol.TCP, port_first=5432, port_last=5432, group_id="web")
    members = members_of([card(4, "web"), card(5, "web", "db"), card(9, "web"), card(6, "db"), card(7)])
    compiled = compile_filter(card(6, "db"), known(db=(rule,), web=()), members)
    assert [one.cidr for one in compiled.rules] == ["10.20.0.4/31", "10.20.0.9/32", "fd20::4/127", "fd20::9/128"]
    assert {one.group_id for one in compiled.rules} == {""}
    assert {(one.port_first, one.protocol) for one in compiled.rules} == {(5432, Protocol.TCP)}


def test_a_group_nobody_is_in_lets_nobody_in() -> None:
    rule = Rule(direction=Direction.IN, group_id="web")
    assert compile_filter(card(6, "db"), known(db=(rule,), web=()), {}).rules == ()


async def test_a_group_stands_for_its_members_on_the_same_network_alone(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    other = await network(api, "other", ipv4="10.20.0.0/24", addressing="static")
    await group(api, "web", {"direction": "in", "group": "web"})
    mine = {"security_groups": ["web"], "addresses": ["10.20.0.5"]}
    await vm(api, "here", mine)
    await vm(api, "there", {**mine, "net": "other", "addresses": ["10.20.0.66"]})
    found = api.records.find(NETWORKS, "web").record
    (state,) = states(snapshot(api.records, found)).values()
    assert [rule.cidr for one in state.filters.values() for rule in one.rules] == ["10.20.0.5/32"]
    assert len(state.locations) == 1
    assert other["vni"] == 4097
