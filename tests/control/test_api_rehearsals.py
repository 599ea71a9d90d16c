"""Migration rehearsals over the API: what one request records, what is refused and why; and the verdict, as decided."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from novacron.control.rehearsals import decide
from novacron.control.rehearsals.copy import name_of
from novacron.control.store.kinds import NETWORKS, NODES, REHEARSALS, VMS, VOLUMES
from novacron.model.identity import MAX_NAME, check_name
from novacron.model.machine import CloudInit, Firmware, MachineReport, MachineStatus, NetworkKind, Nic
from novacron.model.node import Node
from novacron.model.rehearsal import LABEL, Rehearsal, RehearsalState
from novacron.model.verdict import CLOCK, HEARTBEAT, Check, Outcome, Signs
from novacron.model.vm import Task, TaskKind, Vm, VmSpec
from novacron.wire.rest import rehearsals as wire
from tests.control.api import NOW, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio
PATH = "/api/v1/migration-rehearsals"
MAC = "52:4e:43:00:00:07"


def _with(record: Any, **changed: Any) -> Any:
    return msgspec.structs.replace(record, **changed)


async def _world(api: Api, **spec: Any) -> tuple[list[Node], Vm]:
    """Two nodes with networks of ours; `web-1` runs on the first."""
    nodes = []
    for name in ("node-1", "node-2"):
        made = await api.node(name)
        facts = made.facts
        assert facts is not None
        await api.records.change(
            NODES,
            made.id,
            lambda now, facts=facts: _with(now, facts=_with(facts, abilities=("overlay",), tunnel_address="192.0.2.1")),
        )
        nodes.append(made)
    image = await api.image()
    wish = VmSpec(image_id=image.id, memory_mib=512, **spec)
    stored = await api.vm("web-1", node=nodes[0], status=MachineStatus.RUNNING, spec=wish, labels={"tier": "web"})
    return nodes, stored.record


async def test_one_request_records_all_that_is_made(api: Api) -> None:
    nodes, vm = await _world(
        api,
        nics=(Nic(id="01890000-0000-7000-8000-0000000000c1", mac=MAC, slot=3),),
        cloud_init=CloudInit(user_data="#cloud-config\n"),
    )
    answer = await api.http.post(PATH, json={"vm": "web-1", "keep_for_s": 600})
    assert answer.status_code == 202, answer.text
    made = wire.Rehearsal.model_validate_json(answer.content)
    assert answer.headers["location"] == f"{PATH}/{made.id}"
    assert (made.state, made.target_node, made.keep_for_s, made.may_cancel) == ("copying", "node-2", 600, True)
    copy = api.records.find(VMS, made.copy_id).record
    (network,) = [one.record for one in api.records.all(NETWORKS)]
    assert (copy.node_id, copy.labels, copy.migration_id) == (nodes[1].id, {LABEL: made.id}, made.id)
    assert copy.pins == vm.pins
    (card,) = copy.spec.nics
    assert (card.mac, card.network, card.network_id, card.slot) == (MAC, NetworkKind.OVERLAY, network.id, 3)
    assert (network.spec.mode, network.spec.ipv4, network.spec.ipv6) == ("isolated", "", "")
    assert copy.spec.cloud_init is not None
    assert copy.spec.cloud_init.meta_data == f"instance-id: {vm.id}\n"  # to cloud-init it is no new instance
    held = api.records.find(VMS, vm.id).record
    assert held.task is not None
    assert held.task.kind is TaskKind.REHEARSE
    assert _with(held, task=None) == vm
    listed = (await api.http.get(PATH, params={"vm": "web-1"})).json()["items"]
    assert [one["id"] for one in listed] == [made.id]
    problem_of(await api.http.post(PATH, json={"vm": "web-1"}), 409, "busy")
    held_too = problem_of(await api.http.post(f"/api/v1/vms/{made.copy_id}/start"), 409, "busy")
    assert f"novacron migration rehearsal cancel {made.id}" in held_too["reasons"][0]["remedy"]
    problem_of(await api.http.delete(f"{PATH}/{made.id}"), 409, "state_conflict")
    called_off = await api.http.post(f"{PATH}/{made.id}/cancel")
    assert (called_off.status_code, called_off.json()["state"]) == (202, "cleaning")


async def test_disks_are_counted_before_they_are_made(api: Api) -> None:
    nodes = [await api.node(name) for name in ("node-1", "node-2")]
    image = await api.image()
    vm = await api.vm("web-1", node=nodes[0], status=MachineStatus.RUNNING)
    await api.records.change(VMS, vm.record.id, lambda now: _with(now, spec=_with(now.spec, image_id=image.id)))
    made = await api.http.post(PATH, json={"vm": "web-1"})
    assert made.status_code == 202, made.text
    copy = api.records.find(VMS, made.json()["copy_id"]).record
    (disk,) = copy.spec.disks
    volume = api.records.find(VOLUMES, disk.volume_id).record
    assert (volume.vm_id, volume.with_vm, volume.source_volume_id, disk.source_volume_id) == (copy.id, True, "", "")
    assert disk.volume_id != vm.record.spec.disks[0].volume_id
    assert copy.spec.nics == ()
    assert api.records.all(NETWORKS) == []  # no card, no network


@pytest.mark.parametrize(
    ("change", "status", "code", "words"),
    [
        ({"observed": None}, 409, "state_conflict", "novacron vm start web-1"),
        ({"task": Task(id="t", kind=TaskKind.STOP, requested_at=NOW)}, 409, "busy", "wait until it has ended"),
        ({"firmware": Firmware.UEFI}, 422, "unsupported", "BIOS"),
        ({"tpm": True}, 422, "unsupported", "BIOS"),
    ],
)
async def test_what_stands_in_the_way_is_told(
    api: Api, change: dict[str, Any], status: int, code: str, words: str
) -> None:
    _, vm = await _world(api)

    def changed(now: Vm) -> Vm:
        of_spec = {name: value for name, value in change.items() if name in VmSpec.__struct_fields__}
        return _with(now, spec=_with(now.spec, **of_spec)) if of_spec else _with(now, **change)

    await api.records.change(VMS, vm.id, changed)
    before = api.records.revision
    problem = problem_of(await api.http.post(PATH, json={"vm": "web-1"}), status, code)
    assert any(words in reason["remedy"] for reason in problem["reasons"]), problem
    assert api.records.revision == before


async def test_fields_that_name_nothing_are_named(api: Api) -> None:
    await _world(api)
    for body, field in (
        ({"vm": "nobody"}, "vm"),
        ({"vm": "web-1", "target_node": "nowhere"}, "target_node"),
        ({"vm": "web-1", "target_node": "node-1"}, "target_node"),
        ({"vm": "web-1", "keep_for_s": -1}, "keep_for_s"),
    ):
        assert fields_of(problem_of(await api.http.post(PATH, json=body), 422, "invalid_input")) == [field]


async def test_a_node_that_has_no_room_for_it_too_is_refused(api: Api) -> None:
    nodes, _ = await _world(api)
    await api.vm("other", node=nodes[1], status=MachineStatus.RUNNING, spec=VmSpec(image_id="x", memory_mib=7800))
    problem = problem_of(await api.http.post(PATH, json={"vm": "web-1", "target_node": "node-2"}), 507, "no_room")
    assert "memory" in problem["detail"]
    assert {one.record.name for one in api.records.all(VMS)} == {"web-1", "other"}


async def test_one_that_has_ended_can_be_forgotten(api: Api) -> None:
    made = Rehearsal(
        id=api.records.new_id(), vm_id="v", vm_name="web-1", state=RehearsalState.PASSED, source_node="a",
        target_node="b", generation=1, task_id="t", copy_id="c", copy_name="rehearsal-web-1", created_at=NOW,
        updated_at=NOW,
    )  # fmt: skip
    await api.records.create(REHEARSALS, made)
    problem_of(await api.http.post(f"{PATH}/{made.id}/cancel"), 409, "state_conflict")
    assert (await api.http.delete(f"{PATH}/{made.id}")).status_code == 204
    assert (await api.http.get(f"{PATH}/{made.id}")).status_code == 404


def test_the_longest_name_of_a_vm_makes_a_legal_one() -> None:
    name = name_of("w" * MAX_NAME, "01890000-0000-7000-8000-0000000000c1")
    assert check_name(name, "name") == name
    assert name.endswith("-0000000000c1")


# -- the verdict ---------------------------------------------------------------------------------------------

RUNNING = MachineReport(vm_id="v", generation=2, status=MachineStatus.RUNNING, since=NOW)
BEAT = Check(name=HEARTBEAT, outcome=Outcome.PASSED, evidence="its vCPUs ran")
NO_CLOCK = Check(name=CLOCK, outcome=Outcome.NOT_CHECKED, evidence="nobody tells it")


def _seen(**changed: Any) -> decide.Seen:
    alive = decide.Seen(age_s=5.0, node="node-2", report=RUNNING, signs=Signs(checks=(BEAT, NO_CLOCK)))
    return _with(alive, **changed)


def _failed(seen: decide.Seen) -> list[str]:
    return [check.name for check in decide.looked_at(seen) if check.outcome is Outcome.FAILED]


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({}, []),
        ({"console": "login:"}, []),
        ({"speaks": True}, ["console"]),
        ({"console": "GRUB\r\nKernel panic - not syncing: VFS\r\n"}, ["console"]),
        ({"has_agent": True}, ["heartbeat"]),
        ({"has_agent": True, "signs": Signs(checks=(BEAT,), clock_off_ms=3.0)}, []),
        ({"report": None, "signs": None}, ["runs"]),
    ],
)
def test_what_was_seen_makes_the_verdict(changed: dict[str, Any], failed: list[str]) -> None:
    assert _failed(_seen(**changed)) == failed


@pytest.mark.parametrize(
    ("seen", "enough"),
    [
        (_seen(age_s=5.0), False),  # it is to live for ten seconds
        (_seen(age_s=10.0), True),
        (_seen(age_s=10.0, speaks=True), False),  # it may say something yet
        (_seen(age_s=60.0, speaks=True), True),
        (_seen(age_s=1.0, report=_with(RUNNING, status=MachineStatus.CRASHED)), True),
    ],
)
def test_it_is_looked_at_for_as_long_as_that_can_change_anything(seen: decide.Seen, enough: bool) -> None:
    assert decide.is_enough(seen, decide.looked_at(seen), watch_for_s=10, boot_within_s=60) is enough
