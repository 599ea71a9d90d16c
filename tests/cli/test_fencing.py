"""Fencing on the command line: what is sent, and that no password is in sight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import Run
from tests.client.control_room import NODE_ID, NOW, ControlRoom, said

DEVICE: dict[str, Any] = {
    "node": "node-1", "node_id": NODE_ID, "kind": "redfish", "address": "https://bmc-1", "user": "novacron",
    "system": "", "fingerprint": "ab" * 32, "created_at": NOW, "updated_at": NOW, "revision": 5,
}  # fmt: skip
READING: dict[str, Any] = {"node": "node-1", "node_id": NODE_ID, "power": "on", "problem": None}
SET = "node fence-device set node-1 --kind redfish --address https://bmc-1 --user novacron --password-file"


def test_a_device_is_set_with_a_password_from_a_file(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    room.on("PUT", "/nodes/node-1/fence-device", said(DEVICE))
    (tmp_path / "pw").write_text("correct horse\n")
    result = run(f"{SET} {tmp_path / 'pw'} --fingerprint {'ab' * 32}")
    assert result.exit_code == 0
    sent = json.loads(room.bodies[0])
    assert (sent["password"], sent["fingerprint"]) == ("correct horse", "ab" * 32)
    assert "correct horse" not in result.output
    assert run(f"{SET} {tmp_path / 'none'}").exit_code == 2
    (tmp_path / "empty").write_text("\n")
    assert run(f"{SET} {tmp_path / 'empty'}").exit_code == 2
    assert len(room.bodies) == 1


def test_a_device_is_shown_tested_and_removed(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/nodes/node-1/fence-device", said(DEVICE))
    room.on("DELETE", "/nodes/node-1/fence-device", said(None, 204))
    room.on("GET", "/nodes/node-1/fence-device/power", said(READING))
    assert "https://bmc-1" in run("node fence-device show node-1").stdout
    assert run("node fence-device test node-1").stdout == "node-1: on\n"
    assert run("node fence-device remove node-1 --yes").exit_code == 0


def test_a_device_of_another_machine_fails_its_test(room: ControlRoom, run: Run) -> None:
    wrong = {"code": "fence_device.other_machine", "message": "this is another machine's power"}
    room.on("GET", "/nodes/node-1/fence-device/power", said(READING | {"power": "off", "problem": wrong}))
    result = run("node fence-device test node-1")
    assert result.exit_code == 1
    assert "another machine's" in result.stdout


def test_a_node_is_off_only_once_somebody_says_yes(room: ControlRoom, run: Run) -> None:
    answer = {"node": "node-1", "node_id": NODE_ID, "proof": "operator", "reason": "ada said that it is off"}
    room.on("POST", "/nodes/node-1/confirm-off", said(answer | {"with_unprotected": True}))
    assert run("node confirm-off node-1").exit_code == 2, "a script says it on purpose"
    assert not room.asked
    result = run("node confirm-off node-1 --with-unprotected --yes")
    assert "ada said that it is off" in result.stdout
    assert json.loads(room.bodies[0]) == {"with_unprotected": True}


def test_a_node_is_put_on_hold(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/nodes/node-1/hold", said({"node": "node-1", "node_id": NODE_ID, "for_s": 600.0}))
    assert "left alone for" in run("node hold node-1 --for 10m").stdout
    assert json.loads(room.bodies[0]) == {"for_s": 600.0}


def test_what_ha_could_do_is_told_node_by_node(room: ControlRoom, run: Run) -> None:
    node = {"node": "node-1", "node_id": NODE_ID, "state": "up", "fence_class": "timer", "fence_device": "redfish",
            "proof": None, "guarded": 3, "stranded": ["web-1"], "unguaranteed": ["sure"]}  # fmt: skip
    brake = {"code": "fence.storm", "message": "2 of 3 nodes fell silent together"}
    status = {"brake": brake, "recent_fences": 1, "fence_limit": 4, "fence_window_s": 600.0,
              "by_fence_class": {"timer": 1}, "survives_any_node": False, "nodes": [node]}  # fmt: skip
    room.on("GET", "/ha", said(status))
    shown = run("ha status").stdout
    assert "2 of 3 nodes fell silent together" in shown
    assert "up, timer, power by redfish, 3 guarded VMs" in shown
    assert "no room elsewhere for web-1" in shown
    assert "fence class is too low for sure" in shown
    assert json.loads(run("ha status -o json").stdout)["nodes"][0]["stranded"] == ["web-1"]
