"""High availability on the command line: what the options send, and what is shown."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, node, said, vm

HA = {"policy": "restart", "min_fence_class": "timer", "priority": 80}


def test_what_becomes_of_a_vm_is_sent_as_it_is_said(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms", said(vm(ha=HA)))
    room.on("PATCH", "/vms/web-1", said(vm(ha={})))
    assert run("vm create web-1 --image tiny --ha restart --ha-min-fence timer --ha-priority 80").exit_code == 0
    assert run("vm update web-1 --ha none").exit_code == 0
    assert json.loads(room.bodies[0])["ha"] == HA
    assert json.loads(room.bodies[1])["ha"]["policy"] == "none"


def test_what_an_answer_warns_of_is_printed_beside(room: ControlRoom, run: Run) -> None:
    warning = {"code": "ha.no_spare", "message": "no room for web-1", "subject": "node-1", "remedy": "add a node"}
    warned = said(vm() | {"warnings": [warning]})
    for method, path in (("POST", "/vms"), ("PATCH", "/vms/web-1"), ("POST", "/vms/web-1/start")):
        room.on(method, path, warned)
    for command in ("create web-1 --image tiny", "update web-1 --ha restart", "start web-1"):
        shown = run(f"vm {command}")
        assert shown.stderr == "warning: no room for web-1 (ha.no_spare); add a node\n"
        assert "warning" not in shown.stdout
    assert json.loads(run("vm start web-1 -o json").stdout)["warnings"] == [warning]


def test_options_that_go_with_nothing_are_refused(room: ControlRoom, run: Run) -> None:
    result = run("vm create web-1 --image tiny --ha-priority 80")
    assert result.exit_code == 2
    assert "--ha restart" in result.output
    assert not room.asked


@pytest.mark.parametrize(("ha", "told"), [(HA, True), ({}, False)])
def test_what_would_become_of_it_is_shown(room: ControlRoom, run: Run, ha: dict[str, object], told: bool) -> None:
    room.on("GET", "/vms/web-1", said(vm(ha=ha)))
    shown = run("vm show web-1").stdout
    assert ("restart elsewhere from nodes of fence class timer or more, priority 80" in shown) is told


def test_a_node_says_how_surely_it_ends_machines(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/nodes/node-1", said(node()))
    shown = run("node show node-1").stdout
    assert "timer, epoch 3" in shown
    assert "none is set" in shown
