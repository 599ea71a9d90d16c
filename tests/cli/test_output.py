"""What commands print, in every format; what nobody may make them print."""

from __future__ import annotations

import json

import pytest
import yaml

from novacron.cli.output import as_text
from tests.cli.conftest import Run
from tests.client.control_room import (
    COMPLETED,
    IMAGE_ID,
    MIGRATION_ID,
    NODE_ID,
    VM_ID,
    ControlRoom,
    image,
    migration,
    node,
    said,
    vm,
)

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202eevil\x9b31m\nState: fine"


def page(*items: object) -> dict[str, object]:
    return {"items": list(items), "next_cursor": None}


def test_a_plain_table(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page(vm(), vm(name="database-1", state="stopped", node=None, memory_mib=512))))
    assert run("vm list").stdout == (
        "NAME        STATE    NODE    VCPUS  MEMORY   AGE\n"
        "web-1       running  node-1  2      2 GiB    5m\n"
        "database-1  stopped  -       2      512 MiB  5m\n"
    )


def test_a_wide_table(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page(vm())))
    header, row = run("vm list -o wide").stdout.splitlines()
    assert header.split() == [
        "NAME",
        "STATE",
        "NODE",
        "VCPUS",
        "MEMORY",
        "AGE",
        "TASK",
        "ACCEL",
        "REACHABLE",
        "LABELS",
        "ID",
    ]
    assert "127.0.0.1:40022 -> guest port 22" in row
    assert "tier=web" in row
    assert VM_ID in row


def test_an_empty_list_is_its_head(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page()))
    assert run("vm list").stdout == "NAME  STATE  NODE  VCPUS  MEMORY  AGE\n"
    assert json.loads(run("vm list -o json").stdout) == []


def test_json_and_yaml_hold_every_field(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page(vm())))
    room.on("GET", "/vms/web-1", said(vm()))
    assert json.loads(run("vm list -o json").stdout) == [vm()]
    assert json.loads(run("vm show web-1 -o json").stdout) == vm()
    assert yaml.safe_load(run("vm show web-1 -o yaml").stdout) == vm()


def test_names_alone(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page(vm(), vm(name="b"))))
    room.on("GET", "/migrations", said(page(migration())))
    assert run("vm list -o name").stdout == "web-1\nb\n"
    assert run("migration list -o name").stdout == f"{MIGRATION_ID}\n"


def test_filters_are_sent(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page()))
    run("vm list -l tier=web -l stage!=test --state running --node n1")
    query = room.asked[0].query_params
    assert query.getlist("label") == ["tier=web", "stage!=test"]
    assert (query["state"], query["node"]) == ("running", "n1")


def test_one_vm(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1", said(vm(state="stopped", desired="running", description="first\nsecond", pid=None)))
    assert run("vm show web-1").stdout == (
        "Name:         web-1\n"
        f"Id:           {VM_ID}\n"
        "Description:  first\n"
        "              second\n"
        "State:        stopped (wanted running)\n"
        "Node:         node-1\n"
        "Size:         2 vCPU, 2 GiB memory\n"
        "Machine:      pc-q35-7.2, firmware auto, tcg\n"
        f"Image:        {IMAGE_ID}\n"
        f"Disk:         10 GiB, volume {VM_ID}\n"
        "Network:      user network, MAC 52:54:00:00:00:01, forwards any:22\n"
        "Reachable:    127.0.0.1:40022 -> guest port 22\n"
        "Labels:       tier=web\n"
        "Created:      2026-11-23 12:00:00 UTC\n"
    )


def test_a_problem_is_shown_with_its_remedy(room: ControlRoom, run: Run) -> None:
    problem = {"code": "machine.crashed", "message": "QEMU ended", "at": vm()["created_at"], "remedy": "start it"}
    room.on("GET", "/vms/web-1", said(vm(state="error", problem=problem)))
    shown = run("vm show web-1").stdout
    assert "Problem:     QEMU ended (machine.crashed)\n" in shown
    assert "What to do:  start it\n" in shown


def test_nodes(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/nodes", said(page(node(), node(name="n2", cordoned=True, facts=None, heard_ago_s=None))))
    room.on("GET", "/nodes/node-1", said(node()))
    assert run("node list").stdout == (
        "NAME    STATE     VMS  CPUS  MEMORY  COMMITTED  ACCEL  HEARD      AGE\n"
        "node-1  up        1    4     16 GiB  2 GiB      tcg    0.5 s ago  5m\n"
        "n2      cordoned  1    -     -       2 GiB      -      -          5m\n"
    )
    assert "Accelerator:  tcg: no kvm\n" in run("node show node-1").stdout


def test_images(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/images", said(page(image())))
    room.on("GET", "/images/debian-12", said(image()))
    assert run("image list").stdout == (
        "NAME       STATE  FILES  SIZE     TAGS  AGE\n"
        "debian-12  ready  disk   300 MiB  -     5m\n"
    )  # fmt: skip
    assert f"sha256 {'ab' * 32}" in run("image show debian-12").stdout


def test_migrations(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/migrations", said(page(migration(), migration(**COMPLETED))))
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration()))
    lines = run("migration list").stdout.splitlines()
    assert lines[1].split() == [MIGRATION_ID, "web-1", "node-1", "node-2", "transferring", "-", "-", "5m"]
    assert lines[2].split()[4:] == ["completed", "7.0", "s", "12", "ms", "5m"]
    shown = run(f"migration show {MIGRATION_ID}").stdout
    assert "128 MiB sent, 384 MiB left, 64 MiB/s, round 1, about 6.0 s to go" in shown
    assert "accept, send (under way)" in shown
    assert "Because:   shared storage: disks stay\n" in shown


@pytest.mark.parametrize("format_", ["table", "wide", "json", "yaml", "name"])
@pytest.mark.parametrize("command", ["vm list", "vm show web-1"])
def test_nothing_from_a_server_reaches_the_terminal(room: ControlRoom, run: Run, command: str, format_: str) -> None:
    evil = vm() | {"name": HOSTILE, "node": HOSTILE, "description": HOSTILE, "labels": {"a": HOSTILE}}
    room.on("GET", "/vms", said(page(evil)))
    room.on("GET", "/vms/web-1", said(evil))
    shown = run(f"{command} -o {format_}").stdout
    assert shown.replace("\n", "").isprintable()
    assert "evil" in shown
    if format_ == "json":
        found = json.loads(shown)
        assert (found[0] if isinstance(found, list) else found)["name"] == HOSTILE
    if format_ == "yaml":
        found = yaml.safe_load(shown)
        assert (found[0] if isinstance(found, list) else found)["description"] == HOSTILE


def test_a_name_cannot_make_itself_two_rows(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms", said(page(vm() | {"name": "a\nb"})))
    assert len(run("vm list").stdout.splitlines()) == 2


@pytest.mark.parametrize("text", ["plain", "Grüße", "日本", "\U0001f600", "a\x7fb", "\ud83d\ude00", "tab\tline\n"])
def test_json_and_yaml_come_back_as_they_were(text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    assert json.loads(as_text({"a": text}, "json")) == {"a": text}
    assert yaml.safe_load(as_text({"a": text}, "yaml")) == {"a": text}


def test_letters_that_show_are_left_as_they_are() -> None:
    assert "Grüße" in as_text({"a": "Grüße"}, "json")
    assert "Grüße" in as_text({"a": "Grüße"}, "yaml")


def test_a_label_is_added_to_what_is_there(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/nodes/node-1", said(node(labels={"rack": "a", "old": "1"})))
    room.on("PATCH", "/nodes/node-1", said(node(labels={"rack": "a", "tier": "web"})))
    assert run("node label node-1 tier=web old-").stdout == "node-1: rack=a, tier=web\n"
    assert json.loads(room.bodies[1]) == {"labels": {"rack": "a", "tier": "web"}}
    assert room.asked[1].headers["if-match"] == '"20"'


def test_cordoning(room: ControlRoom, run: Run) -> None:
    room.on("PATCH", "/nodes/node-1", said(node(cordoned=True)), said(node()))
    assert run("node cordon node-1").stdout == "node-1: cordoned\n"
    assert run("node uncordon node-1").stdout == "node-1: up\n"
    assert [json.loads(body) for body in room.bodies] == [{"cordoned": True}, {"cordoned": False}]
    assert NODE_ID not in room.asked[0].url.path
