"""`novacron vm media`, and the options for growth: what is asked of the server, and what is said."""

from __future__ import annotations

import json

import pytest

from novacron.cli.disk_spec import BUSES, read_drive
from novacron.model.machine import DriveBus
from tests.cli.conftest import Run
from tests.client.control_room import VM_ID, ControlRoom, said, vm

DRIVE = {"id": VM_ID, "digest": "", "slot": 1}
WAITS = {"code": "vcpus.limit", "message": "it was started with at most 2 vCPUs", "subject": "vcpus"}


def test_a_medium_is_put_in_and_taken_out(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm(media=[DRIVE])))
    room.on("PATCH", f"/vms/web-1/media/{VM_ID}", said(vm(media=[DRIVE])))
    assert run("vm media insert web-1 tools").stdout == "web-1: 1 CD-ROM drive\n"
    assert run("vm media eject web-1 --drive 1").exit_code == 0
    assert [json.loads(body) for body in room.bodies if body] == [{"image": "tools"}, {"image": None}]


def test_a_drive_that_is_not_there_is_said(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm()))
    failed = run("vm media eject web-1")
    assert failed.exit_code != 0
    assert "novacron vm media add web-1" in failed.stderr


def test_drives_are_added_and_taken_away(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm(media=[DRIVE])))
    room.on("POST", "/vms/web-1/media", said(vm(media=[DRIVE])))
    room.on("DELETE", f"/vms/web-1/media/{VM_ID}", said(vm()))
    assert run("vm media add web-1 --image tools --boot-order 1").exit_code == 0
    assert json.loads(room.bodies[0]) == {"image": "tools", "boot_order": 1}
    assert run("vm media add web-1 --bus scsi").exit_code == 0
    assert json.loads(room.bodies[1]) == {"bus": "scsi"}
    assert run("vm media remove web-1").stdout == "web-1: 0 CD-ROM drives\n"


def test_a_vm_with_drives_and_its_starting_order(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(), 202))
    run("vm create web-1 --image tiny --cd tools --cd debian:dvd,bus=scsi,boot=2 --nic user,boot=1")
    sent = json.loads(room.bodies[0])
    assert sent["media"] == [{"image": "tools"}, {"image": "debian:dvd", "bus": "scsi", "boot_order": 2}]
    assert sent["nics"] == [{"boot_order": 1}]
    card = {"id": VM_ID, "mac": "52:54:00:00:00:01", "network": "user", "boot_order": 1}
    room.on("GET", "/vms/web-1", said(vm(media=[DRIVE | {"bus": "scsi", "boot_order": 2}], nics=[card])))
    shown = run("vm show web-1").stdout
    assert "1, scsi, empty, boots as number 2" in shown
    assert "MAC 52:54:00:00:00:01, boots as number 1" in shown


def test_a_cards_place_in_the_starting_order_changes(room: ControlRoom, run: Run) -> None:
    card = {"id": VM_ID, "mac": "52:54:00:00:00:01", "network": "user"}
    room.on("GET", "/vms/web-1", said(vm(nics=[card])))
    room.on("PATCH", f"/vms/web-1/nics/{VM_ID}", said(vm(nics=[card]), 202))
    for number in (3, 0):
        assert run(f"vm nic update web-1 52:54:00:00:00:01 --boot {number}").exit_code == 0
        assert json.loads([body for body in room.bodies if body][-1]) == {"boot_order": number}


def test_buses_are_the_models_words() -> None:
    assert list(BUSES) == list(DriveBus)


@pytest.mark.parametrize("text", ["", ",bus=scsi", "tools,bus=ide", "tools,boot=x", "tools,boot", "tools,scsi"])
def test_what_is_no_drive(text: str) -> None:
    with pytest.raises(ValueError):
        read_drive(text)


def test_growth_is_asked_for_and_what_waits_is_shown(room: ControlRoom, run: Run) -> None:
    room.on("PATCH", "/vms/web-1", said(vm(), 202))
    assert run("vm update web-1 --vcpus 4 --max-vcpus 8 --max-memory 8G --tpm --no-secure-boot").exit_code == 0
    assert json.loads(room.bodies[0]) == {
        "vcpus": 4, "max_vcpus": 8, "max_memory_mib": 8192, "tpm": True, "secure_boot": False,
    }  # fmt: skip
    room.on("GET", "/vms/web-1", said(vm(pending=[WAITS], max_vcpus=8, media=[DRIVE], tpm=True)))
    shown = run("vm show web-1").stdout
    assert "it was started with at most 2 vCPUs (vcpus)" in shown
    assert "can grow to 8 vCPU" in shown
    assert "TPM" in shown
