"""Networks through the API: what is asked is checked, cards get addresses, and nothing in use goes away."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.control.store.kinds import NODES, VMS
from novacron.model.machine import MachineStatus
from novacron.model.node import Node
from tests.control.api import Api, another, fields_of, problem_of

pytestmark = pytest.mark.anyio

NETWORKS = "/api/v1/networks"
VMS_PATH = "/api/v1/vms"


async def overlay_node(api: Api, name: str = "node-1") -> Node:
    """A node that spans networks."""
    plain = await api.node(name)
    assert plain.facts is not None
    number = len(api.agents.connected)
    facts = msgspec.structs.replace(
        plain.facts, abilities=("overlay",), tunnel_address=f"192.0.2.{number}", migration_address=f"192.0.2.{number}"
    )
    stored = await api.records.change(NODES, plain.id, lambda old: msgspec.structs.replace(old, facts=facts))
    assert stored is not None
    return stored.record


async def network(api: Api, name: str = "web", **asked: Any) -> dict[str, Any]:
    body = {"name": name, "ipv4": "10.20.0.0/24"} | asked
    response = await api.http.post(NETWORKS, json=body)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{NETWORKS}/{made['id']}"
    return made


async def vm(api: Api, name: str, *nics: dict[str, Any], **asked: Any) -> dict[str, Any]:
    cards = [{"network": "overlay", "net": "web"} | nic for nic in nics or ({},)]
    response = await api.http.post(VMS_PATH, json={"name": name, "image": "tiny", "nics": cards} | asked)
    assert response.status_code in (201, 202), response.text
    made: dict[str, Any] = response.json()
    return made


# -- networks ----------------------------------------------------------------------------------------------


async def test_a_network_is_made_read_changed_listed_and_deleted(api: Api) -> None:
    made = await network(api, ipv6="fd20::/64", mode="nat", dns=["9.9.9.9"], labels={"tier": "web"})
    assert made["vni"] == 4096
    assert made["mtu"] == 1450
    assert made["gateways"] == ["10.20.0.1", "fd20::1"]
    assert (await api.http.get(f"{NETWORKS}/web")).json() == made
    changed = (await api.http.patch(f"{NETWORKS}/web", json={"mode": "routed", "dns": ["fd20::53"]})).json()
    assert (changed["mode"], changed["dns"]) == ("routed", ["fd20::53"])
    assert [one["name"] for one in (await api.http.get(f"{NETWORKS}?label=tier=web")).json()["items"]] == ["web"]
    stale = await api.http.delete(f"{NETWORKS}/web", headers={"if-match": '"1"'})
    problem_of(stale, 412, "precondition_failed")
    assert (await api.http.delete(f"{NETWORKS}/web")).status_code == 204
    problem_of(await api.http.get(f"{NETWORKS}/web"), 404, "not_found")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"ipv4": "10.20.0.7/24"}, "ipv4"),  # host bits
        ({"ipv4": "10.20.0.0/31"}, "ipv4"),
        ({"ipv4": "10.0.0.0/7"}, "ipv4"),
        ({"ipv4": "127.0.0.0/24"}, "ipv4"),
        ({"ipv4": "169.254.0.0/24"}, "ipv4"),
        ({"ipv4": "224.0.0.0/24"}, "ipv4"),
        ({"ipv4": "0.0.0.0/8"}, "ipv4"),
        ({"ipv4": "fd20::/64"}, "ipv4"),
        ({"ipv4": "10.20.0.0"}, "ipv4"),
        ({"ipv6": "fd20::/63"}, "ipv6"),
        ({"ipv6": "fe80::/64"}, "ipv6"),
        ({"ipv6": "ff00::/64"}, "ipv6"),
        ({"ipv6": "::/64"}, "ipv6"),
        ({"mtu": 9200}, "mtu"),
        ({"vni": 1 << 24}, "vni"),
        ({"vni": 0}, "vni"),
        ({"dns": ["dns.example"]}, "dns.0"),
        ({"dns": ["9.9.9.300"]}, "dns.0"),
        ({"ipv4": "", "addressing": "managed"}, "body"),
        ({"ipv4": "", "addressing": "none", "mode": "nat"}, "body"),
        ({"ipv6": "fd20::/64", "mtu": 1200}, "body"),
        ({"subnet": "10.0.0.0/24"}, "subnet"),
    ],
)
async def test_what_no_network_can_have_is_refused_by_its_field(api: Api, asked: dict[str, Any], field: str) -> None:
    response = await api.http.post(NETWORKS, json={"name": "web", "ipv4": "10.20.0.0/24"} | asked)
    assert fields_of(problem_of(response, 422, "invalid_input")) == [field]


async def test_a_network_must_not_hold_the_nodes_own_addresses(api: Api) -> None:
    await overlay_node(api)
    response = await api.http.post(NETWORKS, json={"name": "web", "ipv4": "192.0.2.0/24"})
    assert "node-1" in problem_of(response, 422, "invalid_input")["detail"]


async def test_subnets_overlap_only_where_nodes_have_no_address_in_both(api: Api) -> None:
    await network(api, "one")
    await network(api, "two", ipv4="10.20.0.0/16", addressing="static")
    await network(api, "three", ipv4="10.20.0.0/16", addressing="static")
    same = {"name": "four", "ipv4": "10.20.0.0/25"}
    problem_of(await api.http.post(NETWORKS, json=same), 409, "conflict")  # isolated too, but nodes answer DHCP there
    refused = problem_of(await api.http.patch(f"{NETWORKS}/two", json={"mode": "nat"}), 409, "conflict")
    assert refused["reasons"][0]["subject"] == "one"
    problem_of(
        await api.http.post(NETWORKS, json={"name": "five", "ipv4": "10.20.0.0/26", "mode": "routed"}), 409, "conflict"
    )
    await network(api, "six", ipv4="10.21.0.0/24", mode="nat")


async def test_vnis_are_unique_also_when_chosen_at_once(api: Api) -> None:
    bodies = [{"name": f"n{number}", "ipv4": f"10.{number}.0.0/24"} for number in range(8)]
    made = await asyncio.gather(*(api.http.post(NETWORKS, json=body) for body in bodies))
    assert sorted(one.json()["vni"] for one in made) == list(range(4096, 4104))
    taken = await api.http.post(NETWORKS, json={"name": "n9", "ipv4": "10.9.0.0/24", "vni": 4100})
    assert problem_of(taken, 409, "conflict")["reasons"][0]["code"] == "vni.taken"


async def test_two_servers_at_once_give_nothing_twice(api: Api, tmp_path: Path) -> None:
    await overlay_node(api)
    await api.image()
    async with another(api, tmp_path) as other:
        bodies = [{"name": f"n{number}", "ipv4": f"10.{number}.0.0/24"} for number in range(8)]
        both = zip(itertools.cycle([api, other]), bodies)
        made = await asyncio.gather(*(one.http.post(NETWORKS, json=body) for one, body in both))
        assert sorted(one.json()["vni"] for one in made) == list(range(4096, 4104))
        both = zip(itertools.cycle([api, other]), [f"vm-{number}" for number in range(8)])
        born = await asyncio.gather(*(vm(one, name, {"net": "n1"}, memory_mib=16) for one, name in both))
    assert {one["nics"][0]["addresses"][0] for one in born} == {f"10.1.0.{last}" for last in range(2, 10)}


async def test_names_are_unique_and_a_repeat_with_a_key_is_done_once(api: Api) -> None:
    key = {"idempotency-key": "k"}
    body = {"name": "web", "ipv4": "10.20.0.0/24"}
    first = await api.http.post(NETWORKS, json=body, headers=key)
    assert (await api.http.post(NETWORKS, json=body, headers=key)).json() == first.json()
    problem_of(await api.http.post(NETWORKS, json=body | {"ipv4": "10.21.0.0/24"}), 409, "name_taken")


async def test_a_network_with_cards_on_it_is_kept(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    await vm(api, "one", desired="stopped")
    await vm(api, "two", desired="stopped")
    refused = problem_of(await api.http.delete(f"{NETWORKS}/web"), 409, "conflict")
    assert "one, two" in refused["detail"]
    refused = problem_of(await api.http.patch(f"{NETWORKS}/web", json={"ipv4": "10.30.0.0/24"}), 409, "conflict")
    assert "one, two" in refused["detail"]
    assert (await api.http.patch(f"{NETWORKS}/web", json={"mode": "nat"})).status_code == 200
    for name in ("one", "two"):
        stored = api.records.find(VMS, name)
        await api.records.change(
            VMS,
            stored.record.id,
            lambda old: msgspec.structs.replace(old, spec=msgspec.structs.replace(old.spec, nics=())),
        )
    assert (await api.http.patch(f"{NETWORKS}/web", json={"ipv4": "10.30.0.0/24"})).json()["ipv4"] == "10.30.0.0/24"
    assert (await api.http.delete(f"{NETWORKS}/web")).status_code == 204


async def test_a_managed_network_keeps_a_subnet(api: Api) -> None:
    await network(api)
    assert fields_of(problem_of(await api.http.patch(f"{NETWORKS}/web", json={"ipv4": ""}), 422, "invalid_input"))


# -- cards -------------------------------------------------------------------------------------------------


async def test_cards_get_addresses_of_their_own(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    made = await network(api, ipv6="fd20::/64")
    first = (await vm(api, "one", {"mac": "52:4e:43:00:00:01"}))["nics"][0]
    assert (first["network_id"], first["net"]) == (made["id"], "web")
    await api.http.patch(f"{NETWORKS}/web", json={"name": "www"})
    assert (await api.http.get(f"{VMS_PATH}/one")).json()["nics"][0]["net"] == "www"
    await api.http.patch(f"{NETWORKS}/www", json={"name": "web"})
    assert first["addresses"] == ["10.20.0.2", "fd20::504e:43ff:fe00:1"]
    two = (await vm(api, "two", {"addresses": ["10.20.0.9"]}, {}))["nics"]
    assert [nic["addresses"][0] for nic in two] == ["10.20.0.9", "10.20.0.3"]
    refused = await api.http.post(
        VMS_PATH,
        json={"name": "x", "image": "tiny", "nics": [{"network": "overlay", "net": "web", "addresses": ["10.20.0.3"]}]},
    )
    assert problem_of(refused, 409, "conflict")["reasons"][0]["code"] == "address.taken"


async def test_vms_born_at_once_never_share_an_address(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    made = await asyncio.gather(*(vm(api, f"vm-{number}", {}, {}, memory_mib=16) for number in range(8)))
    given = [nic["addresses"][0] for one in made for nic in one["nics"]]
    assert sorted(given, key=lambda text: int(text.split(".")[3])) == [f"10.20.0.{n}" for n in range(2, 18)]


async def test_a_full_network_says_so(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api, ipv4="10.20.0.0/30")
    await vm(api, "one")
    refused = await api.http.post(
        VMS_PATH, json={"name": "two", "image": "tiny", "nics": [{"network": "overlay", "net": "web"}]}
    )
    assert problem_of(refused, 507, "no_room")["reasons"][0]["code"] == "network.full"


@pytest.mark.parametrize(
    ("nic", "field"),
    [
        ({"network": "overlay", "net": "none"}, "nics.0.net"),
        ({"network": "overlay", "net": "web", "addresses": ["10.20.0.1"]}, "nics.0.addresses.0"),
        ({"network": "overlay", "net": "web", "addresses": ["10.20.0.0"]}, "nics.0.addresses.0"),
        ({"network": "overlay", "net": "web", "addresses": ["10.20.0.255"]}, "nics.0.addresses.0"),
        ({"network": "overlay", "net": "web", "addresses": ["10.21.0.5"]}, "nics.0.addresses.0"),
        ({"network": "overlay", "net": "web", "addresses": ["10.20.0.5", "10.20.0.6"]}, "nics.0.addresses.1"),
        ({"network": "overlay", "net": "web", "addresses": ["10.20.0.555"]}, "nics.0.addresses.0"),
        ({"network": "overlay", "net": "web", "security_groups": ["none"]}, "nics.0.security_groups.0"),
        ({"network": "overlay", "net": "web", "bridge": "br0"}, "nics.0"),
        ({"network": "overlay", "net": "web", "forwards": [{"guest_port": 22}]}, "nics.0"),
        ({"network": "overlay"}, "nics.0"),
        ({"network": "user", "net": "web"}, "nics.0"),
        ({"network": "user", "security_groups": ["a"]}, "nics.0"),
    ],
)
async def test_a_card_that_asks_wrongly_is_refused_by_its_field(api: Api, nic: dict[str, Any], field: str) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    refused = await api.http.post(VMS_PATH, json={"name": "x", "image": "tiny", "nics": [nic]})
    assert fields_of(problem_of(refused, 422, "invalid_input")) == [field]


async def test_a_node_without_the_ability_or_a_tunnel_is_passed_over(api: Api) -> None:
    await api.node("plain")
    await api.image()
    await network(api)
    body = {"name": "x", "image": "tiny", "nics": [{"network": "overlay", "net": "web"}]}
    refused = problem_of(await api.http.post(VMS_PATH, json=body), 507, "no_room")
    assert [reason["code"] for reason in refused["reasons"]] == ["overlay.missing"]
    able = await overlay_node(api, "able")
    assert (await vm(api, "x"))["node_id"] == able.id


async def test_who_manages_nothing_gives_nothing(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api, addressing="none", ipv4="")
    assert (await vm(api, "one"))["nics"][0]["addresses"] == []


async def test_a_static_network_is_told_to_cloud_init(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api, addressing="static", ipv6="fd20::/64", mode="nat", dns=["9.9.9.9"], mtu=1400)
    made = await vm(api, "one", {"mac": "52:4e:43:00:00:01"}, desired="stopped")
    assert made["cloud_init"] is True
    seed = api.records.find(VMS, "one").record.spec.cloud_init
    assert seed is not None
    card = json.loads(seed.network_config)["ethernets"]["nic0"]
    assert card == {
        "match": {"macaddress": "52:4e:43:00:00:01"},
        "mtu": 1400,
        "addresses": ["10.20.0.2/24", "fd20::504e:43ff:fe00:1/64"],
        "routes": [{"to": "0.0.0.0/0", "via": "10.20.0.1"}, {"to": "::/0", "via": "fd20::1"}],
        "nameservers": {"addresses": ["9.9.9.9"]},
    }


async def test_a_managed_network_is_told_only_where_there_is_a_seed(api: Api) -> None:
    await overlay_node(api)
    await api.image()
    await network(api)
    assert (await vm(api, "one"))["cloud_init"] is False
    await vm(api, "two", cloud_init={"user_data": "#cloud-config\n"})
    seed = api.records.find(VMS, "two").record.spec.cloud_init
    assert seed is not None
    card = json.loads(seed.network_config)["ethernets"]["nic0"]
    assert (card["dhcp4"], card["dhcp6"]) == (True, False)
    await vm(api, "three", cloud_init={"network_config": "version: 2\n"})
    seed = api.records.find(VMS, "three").record.spec.cloud_init
    assert seed is not None
    assert seed.network_config == "version: 2\n"  # its owner's word stands


# -- cards that come and go --------------------------------------------------------------------------------


async def test_a_card_is_attached_and_detached(api: Api) -> None:
    node = await overlay_node(api)
    await network(api)
    await api.vm("off", node=node)
    changed = await api.http.post(f"{VMS_PATH}/off/nics", json={"network": "overlay", "net": "web"})
    assert changed.status_code == 200, changed.text
    (nic,) = changed.json()["nics"]
    assert nic["addresses"] == ["10.20.0.2"]
    gone = await api.http.delete(f"{VMS_PATH}/off/nics/{nic['id']}")
    assert gone.json()["nics"] == []
    problem_of(await api.http.delete(f"{VMS_PATH}/off/nics/{nic['id']}"), 404, "not_found")


async def test_a_running_machine_is_adjusted_and_the_address_kept_until_the_card_is_gone(api: Api) -> None:
    node = await overlay_node(api)
    await network(api)
    running = (await api.vm("on", node=node, status=MachineStatus.RUNNING)).record
    await api.records.change(VMS, running.id, lambda old: msgspec.structs.replace(old, booted=old.spec))
    attached = await api.http.post(f"{VMS_PATH}/on/nics", json={"network": "overlay", "net": "web"})
    assert attached.status_code == 202
    assert attached.json()["task"]["kind"] == "adjust"

    def plugged(old: Any) -> Any:  # as the reconciler writes once the node has done it
        return msgspec.structs.replace(old, booted=old.spec, task=None)

    await api.records.change(VMS, running.id, plugged)
    nic = attached.json()["nics"][0]
    assert (await api.http.delete(f"{VMS_PATH}/on/nics/{nic['id']}")).status_code == 202
    await api.vm("off", node=node)
    second = await api.http.post(f"{VMS_PATH}/off/nics", json={"network": "overlay", "net": "web"})
    assert second.json()["nics"][0]["addresses"] == ["10.20.0.3"]  # the first card may still send
    await api.records.change(VMS, running.id, plugged)
    third = await api.http.post(f"{VMS_PATH}/off/nics", json={"network": "overlay", "net": "web"})
    assert third.json()["nics"][1]["addresses"] == ["10.20.0.2"]


async def test_a_card_is_not_attached_where_its_network_cannot_be(api: Api) -> None:
    node = await api.node("plain")
    await network(api)
    await api.vm("off", node=node)
    refused = await api.http.post(f"{VMS_PATH}/off/nics", json={"network": "overlay", "net": "web"})
    assert problem_of(refused, 507, "no_room")["reasons"][0]["code"] == "overlay.missing"
