"""A VM's hardware over the API: growth, drives, TPM and Secure Boot; what waits, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from novacron.control.store.kinds import VMS
from novacron.errors import Reason
from novacron.model.image import FileRole, ImageFile
from novacron.model.machine import Disk, MachineStatus, Media, Nic
from novacron.model.vm import TaskKind, Vm
from tests.control.api import GIB, Api, fields_of, problem_of

pytestmark = pytest.mark.anyio

ASKED = {"name": "web-2", "image": "tiny"}
VM = "/api/v1/vms/web-1"
ISO = (ImageFile(role=FileRole.CDROM, digest="c" * 64, size_bytes=GIB),)


async def test_a_changed_size_of_a_vm_that_runs_is_an_adjustment(api: Api) -> None:
    await running(api)
    answer = await api.http.patch(VM, json={"vcpus": 3})
    assert (answer.status_code, answer.json()["task"]["kind"]) == (202, TaskKind.ADJUST)
    again = await api.http.patch(VM, json={"vcpus": 3})
    assert again.json()["task"]["id"] == answer.json()["task"]["id"]


async def test_of_a_stopped_vm_it_counts_from_the_next_start(api: Api) -> None:
    await api.vm()
    answer = await api.http.patch(VM, json={"vcpus": 3, "max_vcpus": 8, "max_memory_mib": 8192})
    assert answer.status_code == 200
    seen = answer.json()
    assert (seen["vcpus"], seen["max_vcpus"], seen["max_memory_mib"], seen["task"]) == (3, 8, 8192, None)


async def test_it_cannot_grow_beyond_its_node(api: Api) -> None:
    await running(api)
    problem = problem_of(await api.http.patch(VM, json={"memory_mib": 1 << 20}), 507, "no_room")
    assert problem["reasons"][0]["code"] == "memory.short"


async def test_what_waits_is_shown_while_it_runs(api: Api) -> None:
    await running(api)
    reason = Reason("board.leaves_at_end", "it leaves at the next start", "x", "novacron vm restart")
    await api.records.change(VMS, (await vm_of(api)).id, lambda vm: msgspec.structs.replace(vm, pending=(reason,)))
    assert (await api.http.get(VM)).json()["pending"] == [msgspec.to_builtins(reason)]


async def test_drives_are_added_loaded_emptied_and_taken_away(api: Api) -> None:
    await api.vm()
    await api.image("install", files=ISO)
    added = await api.http.post(f"{VM}/media", json={"image": "install", "boot_order": 1})
    (drive,) = added.json()["media"]
    assert (drive["digest"], drive["boot_order"], drive["slot"]) == ("c" * 64, 1, 1)
    path = f"{VM}/media/{drive['id']}"
    assert (await api.http.patch(path, json={"image": None})).json()["media"][0]["digest"] == ""
    assert (await api.http.patch(path, json={"image": "install"})).json()["media"][0]["digest"] == "c" * 64
    assert (await api.http.delete(path)).json()["media"] == []
    problem_of(await api.http.patch(path, json={"image": None}), 404, "not_found")


async def test_what_is_in_a_drive_changes_as_it_runs(api: Api) -> None:
    await running(api)
    await api.image("install", files=ISO)
    vm = await vm_of(api)
    media = (Media(id=api.records.new_id(), slot=1),)
    with_drive = msgspec.structs.replace(vm.spec, media=media)
    await api.records.change(VMS, vm.id, lambda one: msgspec.structs.replace(one, spec=with_drive, booted=with_drive))
    answer = await api.http.patch(f"{VM}/media/{media[0].id}", json={"image": "install"})
    assert (answer.status_code, answer.json()["task"]["kind"]) == (202, TaskKind.ADJUST)


async def test_a_drive_takes_images_with_an_iso_alone(api: Api) -> None:
    await api.vm()
    for image in ("tiny", "none"):
        problem = problem_of(await api.http.post(f"{VM}/media", json={"image": image}), 422, "invalid_input")
        assert fields_of(problem) == ["image"]
    for _ in range(4):
        assert (await api.http.post(f"{VM}/media", json={})).status_code == 200
    problem_of(await api.http.post(f"{VM}/media", json={}), 409, "conflict")


async def test_a_vm_made_from_an_iso_has_it_in_its_drive(api: Api) -> None:
    await api.node()
    await api.image("install", files=ISO)
    made = await api.http.post(
        "/api/v1/vms",
        json={"name": "new", "image": "install", "disks": [{"size_bytes": GIB}], "media": [{}], "desired": "stopped"},
    )
    assert made.status_code == 201
    assert [(drive["digest"], drive["slot"], drive["bus"]) for drive in made.json()["media"]] == [
        ("c" * 64, 1, "sata"),
        ("", 2, "sata"),
    ]


KERNEL = (ImageFile(role=FileRole.KERNEL, digest="e" * 64, size_bytes=GIB),)


@pytest.mark.parametrize(
    ("image", "memory_mib", "asked", "bus"),
    [
        ("linux", 512, {}, "scsi"),
        ("linux", 64, {}, "sata"),
        ("linux", 512, {"bus": "sata"}, "sata"),
        ("tiny", 512, {}, "sata"),
        ("tiny", 512, {"bus": "scsi"}, "scsi"),
    ],
)
async def test_a_drive_is_where_its_guest_knows_it(
    api: Api, image: str, memory_mib: int, asked: dict[str, str], bus: str
) -> None:
    await api.node()
    await api.image()
    await api.image("linux", files=KERNEL)
    body = {"name": "web-1", "image": image, "memory_mib": memory_mib, "media": [asked], "desired": "stopped"}
    made = await api.http.post("/api/v1/vms", json=body)
    assert [drive["bus"] for drive in made.json()["media"]] == [bus]
    added = await api.http.post(f"{VM}/media", json=asked)
    assert [drive["bus"] for drive in added.json()["media"]] == [bus, bus]


async def test_a_small_machine_has_no_drives_on_scsi(api: Api) -> None:
    await api.node()
    await api.image("linux", files=KERNEL)
    body = {"name": "web-1", "image": "linux", "memory_mib": 64, "desired": "stopped"}
    refused = await api.http.post("/api/v1/vms", json=body | {"media": [{}, {"bus": "scsi"}]})
    assert fields_of(problem_of(refused, 422, "invalid_input")) == ["media.1.bus"]
    assert (await api.http.post("/api/v1/vms", json=body | {"memory_mib": 128, "media": [{}]})).status_code == 201
    refused = await api.http.patch(VM, json={"memory_mib": 64})
    assert fields_of(problem_of(refused, 422, "invalid_input")) == ["memory_mib"]
    assert (await api.http.patch(VM, json={"memory_mib": 256})).status_code == 200


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"disks": [{"size_bytes": GIB, "boot_order": 2}], "nics": [{}, {"boot_order": 2}]}, "nics.1.boot_order"),
        ({"media": [{"boot_order": 1}], "nics": [{"boot_order": 1}]}, "nics.0.boot_order"),
        ({"disks": [{"size_bytes": GIB, "boot_order": 1}], "media": [{}, {"boot_order": 1}]}, "media.1.boot_order"),
        ({"nics": [{"boot_order": 1}], "machine": "microvm"}, "nics.0.boot_order"),
        ({"nics": [{"boot_order": 65}]}, "nics.0.boot_order"),
    ],
)
async def test_a_place_in_the_starting_order_is_one_devices_alone(
    api: Api, wrong: dict[str, object], field: str
) -> None:
    await api.node()
    await api.image()
    problem = problem_of(await api.http.post("/api/v1/vms", json=ASKED | wrong), 422, "invalid_input")
    assert fields_of(problem) == [field]


async def test_a_device_that_is_attached_takes_nobodys_place(api: Api) -> None:
    await api.vm()
    stored = await vm_of(api)
    parts = {
        "disks": (Disk(volume_id="d1", size_bytes=GIB, boot_order=1),),
        "media": (Media(id="m1", boot_order=2),),
        "nics": (Nic(id="n1", mac="52:54:00:00:00:01", boot_order=3), Nic(id="n2", mac="52:54:00:00:00:02")),
    }
    with_parts = msgspec.structs.replace(stored.spec, **parts)
    await api.records.change(VMS, stored.id, lambda one: msgspec.structs.replace(one, spec=with_parts))
    for noun, more in (("disks", {"size_bytes": GIB}), ("media", {}), ("nics", {})):
        for taken in (1, 2, 3):
            refused = await api.http.post(f"{VM}/{noun}", json={**more, "boot_order": taken})
            assert fields_of(problem_of(refused, 422, "invalid_input")) == ["boot_order"]
    refused = await api.http.patch(f"{VM}/nics/n2", json={"boot_order": 1})
    assert fields_of(problem_of(refused, 422, "invalid_input")) == ["boot_order"]
    for number in (3, 4, 0):
        changed = await api.http.patch(f"{VM}/nics/n1", json={"boot_order": number})
        assert (changed.status_code, changed.json()["nics"][0]["boot_order"]) == (200, number)


async def test_a_cards_place_changes_as_it_runs_by_an_adjustment(api: Api) -> None:
    await running(api)
    vm = await vm_of(api)
    spec = msgspec.structs.replace(vm.spec, nics=(Nic(id="n1", mac="52:54:00:00:00:01"),))
    await api.records.change(VMS, vm.id, lambda one: msgspec.structs.replace(one, spec=spec, booted=spec))
    answer = await api.http.patch(f"{VM}/nics/n1", json={"boot_order": 1})
    assert (answer.status_code, answer.json()["task"]["kind"]) == (202, TaskKind.ADJUST)
    vm = await vm_of(api)
    assert vm.booted is not None
    assert (vm.spec.nics[0].boot_order, vm.booted.nics[0].boot_order) == (1, 0)


async def test_a_node_without_a_rom_for_cards_is_passed_over_unless_uefi_boots(api: Api) -> None:
    await api.node()
    await api.image()
    asked = ASKED | {"nics": [{"boot_order": 1}], "desired": "stopped"}
    problem = problem_of(await api.http.post("/api/v1/vms", json=asked), 507, "no_room")
    assert "network-boot" in problem["reasons"][0]["message"]
    assert (await api.http.post("/api/v1/vms", json=asked | {"firmware": "uefi"})).status_code == 201


@pytest.mark.parametrize(
    "wrong",
    [
        {"vcpus": 4, "max_vcpus": 2},
        {"memory_mib": 1024, "max_memory_mib": 512},
        {"secure_boot": True},
        {"tpm": True, "machine": "microvm"},
    ],
)
async def test_what_does_not_go_together_is_refused(api: Api, wrong: dict[str, object]) -> None:
    await api.node()
    await api.image()
    problem_of(await api.http.post("/api/v1/vms", json=ASKED | wrong), 422, "invalid_input")


async def test_a_node_without_a_tpm_emulator_is_passed_over(api: Api) -> None:
    await api.node()
    await api.image()
    problem = problem_of(await api.http.post("/api/v1/vms", json=ASKED | {"tpm": True}), 507, "no_room")
    assert problem["reasons"][0]["code"] == "driver.feature_missing"
    problem = problem_of(
        await api.http.post("/api/v1/vms", json=ASKED | {"secure_boot": True, "firmware": "uefi"}), 507, "no_room"
    )
    assert "secure-boot" in problem["reasons"][0]["message"]


async def vm_of(api: Api) -> Vm:
    return api.records.find(VMS, "web-1").record


async def running(api: Api) -> None:
    """web-1, as it runs with its spec."""
    node = await api.node()
    stored = await api.vm(node=node, status=MachineStatus.RUNNING)
    await api.records.change(VMS, stored.record.id, lambda vm: msgspec.structs.replace(vm, booted=vm.spec))
