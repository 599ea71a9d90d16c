"""Parking a VM and copying it on the command line."""

from __future__ import annotations

import json

from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, said, vm


def test_copy_sends_what_was_said(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/golden/copies", said({"items": [vm(name="w-1"), vm(name="w-2")]}, 202))
    line = "vm copy golden w --count 2 --nic user,forward=22 --label a=b -o name"
    assert run(line).stdout == "w-1\nw-2\n"
    assert json.loads(room.bodies[0]) == {
        "name": "w",
        "count": 2,
        "labels": {"a": "b"},
        "nics": [{"forwards": [{"guest_port": 22}]}],
    }


def test_park_says_what_becomes_of_it(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/golden/park", said(vm(name="golden", state="parked"), 200))
    assert run("vm park golden").stdout == "golden: parked on node-1\n"
