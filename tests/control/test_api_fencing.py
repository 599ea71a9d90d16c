"""Fencing over the API: devices whose passwords nobody gets to see, a person's word, and what HA could do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.control.store.kinds import FENCE_DEVICES, FENCES, MEMBERS, VMS
from novacron.model.ha import FenceClass, Fenced, FenceLog, HaPolicy, Protection
from novacron.model.machine import MachineStatus
from novacron.model.membership import Membership, MemberState
from novacron.model.node import NodeState
from novacron.model.vm import VmSpec
from tests.control.api import Api, fields_of, problem_of
from tests.control.bmc import PASSWORD, USER, Bmc, bmc

pytestmark = pytest.mark.anyio

TIMED = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Bmc]:
    (tmp_path / "bmc").mkdir()
    with bmc(tmp_path / "bmc") as made:
        yield made


def asked(there: Bmc, **changed: Any) -> dict[str, Any]:
    wish = {"kind": "redfish", "address": there.address, "user": USER, "password": PASSWORD}
    return wish | {"fingerprint": there.fingerprint} | changed


async def takes_part(api: Api, node_id: str, state: MemberState = MemberState.UP) -> None:
    member = Membership(
        id=node_id, state=state, epoch=1, beats=1, ttl_s=15.0, fence_class=FenceClass.TIMER, boot_id="b"
    )
    await api.records.create(MEMBERS, member)


async def test_a_device_is_set_shown_tested_and_removed_and_its_password_seen_by_nobody(
    api: Api, there: Bmc, capfd: pytest.CaptureFixture[str]
) -> None:
    node = await api.node()
    path = "/api/v1/nodes/node-1/fence-device"
    problem_of(await api.http.get(path), 404, "not_found")
    made = await api.http.put(path, json=asked(there))
    assert made.status_code == 200, made.text
    shown = await api.http.get(path)
    assert shown.json()["address"] == there.address
    assert shown.headers["etag"] == f'"{shown.json()["revision"]}"'
    tested = await api.http.get(f"{path}/power")
    assert tested.json() == {"node": "node-1", "node_id": node.id, "power": "on", "problem": None}
    assert there.asked == [], "nothing is switched"
    problem_of(await api.http.put(path, json=asked(there), headers={"if-match": '"1"'}), 412, "precondition_failed")
    kept = await api.records.store.get(FENCE_DEVICES.key(node.id))
    assert kept is not None
    told = "".join(capfd.readouterr())
    for text in (made.text, shown.text, tested.text, kept.value.decode(), told):
        assert PASSWORD not in text
    assert (await api.http.delete(path)).status_code == 204
    problem_of(await api.http.delete(path), 404, "not_found")


async def test_one_that_reads_off_while_its_node_heartbeats_is_another_machines(api: Api, there: Bmc) -> None:
    node = await api.node()
    await takes_part(api, node.id)
    await api.http.put("/api/v1/nodes/node-1/fence-device", json=asked(there))
    there.power = "Off"
    tested = (await api.http.get("/api/v1/nodes/node-1/fence-device/power")).json()
    assert tested["problem"]["code"] == "fence_device.other_machine"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"address": "http://bmc"}, "address"),
        ({"kind": "snmp"}, "kind"),
        ({"fingerprint": "ab"}, "fingerprint"),
        ({"password": ""}, "password"),
        ({"password": "p" * 300}, "password"),
        ({"user": "a b"}, "user"),
    ],
)
async def test_a_wrong_field_is_named_and_no_password_repeated(
    api: Api, there: Bmc, changed: dict[str, Any], field: str
) -> None:
    await api.node()
    answer = await api.http.put("/api/v1/nodes/node-1/fence-device", json=asked(there, **changed))
    assert fields_of(problem_of(answer, 422, "invalid_input")) == [field]
    assert PASSWORD not in answer.text
    assert "ppp" not in answer.text


async def test_a_device_goes_with_its_node(api: Api, there: Bmc) -> None:
    node = await api.node(state=NodeState.DOWN)
    await api.http.put("/api/v1/nodes/node-1/fence-device", json=asked(there))
    assert (await api.http.delete("/api/v1/nodes/node-1")).status_code == 204
    assert api.records.get(FENCE_DEVICES, node.id) is None


async def test_a_word_about_a_node_that_heartbeats_is_refused_about_a_barred_one_taken(api: Api) -> None:
    path = "/api/v1/nodes/node-1/confirm-off"
    node = await api.node()
    refused = problem_of(await api.http.post(path, json={}), 409, "state_conflict")
    assert refused["reasons"][0]["code"] == "node.no_member"
    await takes_part(api, node.id)
    refused = problem_of(await api.http.post(path, json={}), 409, "state_conflict")
    assert refused["reasons"][0]["code"] == "node.not_off"
    stored = api.records.find(MEMBERS, node.id)
    await api.records.change(
        MEMBERS, node.id, lambda now: msgspec.structs.replace(now, state=MemberState.FENCING, epoch=2)
    )
    taken = (await api.http.post(path, json={"with_unprotected": True})).json()
    assert (taken["proof"], taken["with_unprotected"]) == ("operator", True)
    now = api.records.find(MEMBERS, node.id)
    assert (now.record.state, now.record.epoch) == (MemberState.FENCED, stored.record.epoch + 2)
    assert (await api.http.post(path, json={})).json() == taken, "once said is said"


async def test_what_ha_could_do_names_vms_that_have_no_room_and_those_nobody_vouches_for(api: Api) -> None:
    one, two = await api.node("node-1"), await api.node("node-2", memory_mib=2048)
    await takes_part(api, one.id)
    await takes_part(api, two.id)
    guarded = VmSpec(image_id="i", memory_mib=1024, ha=TIMED)
    sure = msgspec.structs.replace(guarded, ha=Protection(policy=HaPolicy.RESTART))
    running = MachineStatus.RUNNING
    for name, spec in (("web-1", guarded), ("web-2", guarded), ("sure", sure)):
        await api.vm(name, node=one, status=running, spec=spec, booted=spec)
    await api.vm("plain", node=one, status=running)
    entry = Fenced(number=1, node_id=one.id, epoch=1, reason="r")
    await api.records.create(FENCES, FenceLog(last_number=1, recent=(entry,)))
    said = (await api.http.get("/api/v1/ha")).json()
    assert said["survives_any_node"] is False
    assert (said["recent_fences"], said["fence_limit"], said["brake"]) == (1, 4, None)
    assert said["by_fence_class"] == {"timer": 2}
    first, second = said["nodes"]
    assert (first["guarded"], first["unguaranteed"]) == (3, ["sure"])
    assert first["stranded"] == ["web-1", "web-2"], "node-2 has room for one, and `sure` sorts first"
    assert (second["guarded"], second["stranded"]) == (0, [])
    small = msgspec.structs.replace(guarded, memory_mib=256)
    for name in ("web-1", "web-2", "sure"):
        vm_id = api.records.find(VMS, name).record.id
        await api.records.change(VMS, vm_id, lambda vm: msgspec.structs.replace(vm, spec=small, booted=small))
    said = (await api.http.get("/api/v1/ha")).json()
    assert said["survives_any_node"] is True


async def test_a_device_makes_a_node_vouch_for_what_its_class_does_not(api: Api, there: Bmc) -> None:
    one = await api.node("node-1")
    await api.node("node-2")
    await takes_part(api, one.id)
    sure = VmSpec(image_id="i", memory_mib=256, ha=Protection(policy=HaPolicy.RESTART))
    await api.vm("sure", node=one, status=MachineStatus.RUNNING, spec=sure, booted=sure)
    assert (await api.http.get("/api/v1/ha")).json()["nodes"][0]["unguaranteed"] == ["sure"]
    await api.http.put("/api/v1/nodes/node-1/fence-device", json=asked(there))
    node = (await api.http.get("/api/v1/ha")).json()["nodes"][0]
    assert (node["unguaranteed"], node["fence_device"]) == ([], "redfish")
