"""`novacron vm media`, and the options for growth: what is asked of the server, and what is said."""

from __future__ import annotations

import json

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
    assert run("vm media remove web-1").stdout == "web-1: 0 CD-ROM drives\n"


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
