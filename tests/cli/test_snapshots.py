"""`novacron snapshot` and `novacron schedule`: what is sent, and how trees and schedules are shown."""

from __future__ import annotations

import json
from typing import Any

from novacron.wire.rest import images as wire_images
from novacron.wire.rest import snapshots as wire
from tests.cli.conftest import Run
from tests.client.control_room import ControlRoom, said

ID = "0190b36e-7c1a-7000-8000-000000000021"


def snapshot(**changes: Any) -> dict[str, Any]:
    return _example(wire.Snapshot, changes)


def schedule(**changes: Any) -> dict[str, Any]:
    return _example(wire.Schedule, changes)


def _example(model: Any, changes: dict[str, Any]) -> dict[str, Any]:
    made = model.model_validate(model.model_config["json_schema_extra"]["examples"][0] | changes)
    told: dict[str, Any] = json.loads(made.model_dump_json())
    return told


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def test_create_sends_what_was_asked(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/snapshots", said(snapshot(state="creating", stood_still_ms=0), 202))
    result = run("snapshot create web-1 before --memory --label a=b --description x")
    assert result.stdout == "web-1/before-upgrade: creating\n"
    assert json.loads(room.bodies[0]) == {"name": "before", "memory": True, "labels": {"a": "b"}, "description": "x"}


def test_create_and_wait_says_how_long_the_guest_stood(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/vms/web-1/snapshots", said(snapshot(state="creating"), 202))
    room.on("GET", f"/snapshots/{ID}", said(snapshot(state="ready")))
    result = run("snapshot create web-1 --wait")
    assert result.stdout == "web-1/before-upgrade: ready; the guest stood still for 212.5 ms\n"


def test_a_snapshot_that_failed_fails(room: ControlRoom, run: Run) -> None:
    problem = {"code": "no_room", "message": "the pool is full", "at": "2026-01-02T03:10:01Z", "remedy": "make room"}
    room.on("POST", "/vms/web-1/snapshots", said(snapshot(state="creating"), 202))
    room.on("GET", f"/snapshots/{ID}", said(snapshot(state="error", problem=problem)))
    result = run("snapshot create web-1 --wait")
    assert result.exit_code != 0
    assert "the pool is full" in result.stderr
    assert "make room" in result.stderr


def test_a_list_is_a_tree(room: ControlRoom, run: Run) -> None:
    a, b, c, d = (f"0190b36e-7c1a-7000-8000-00000000003{number}" for number in range(4))
    found = [
        snapshot(id=a, name="root", current=False, size_bytes=0, consistency="crash"),
        snapshot(id=b, name="left", parent_id=a, current=False),
        snapshot(id=c, name="right", parent_id=a, current=True),
        snapshot(id=d, name="leaf", parent_id=b, current=False),
    ]
    room.on("GET", "/snapshots", said(page(*found)))
    lines = run("snapshot list --vm web-1").stdout.splitlines()
    assert [line[7:17].rstrip() for line in lines[1:]] == ["root", "  left", "    leaf", "  right *"]
    assert room.asked[0].query_params["vm"] == "web-1"


def test_a_name_is_looked_up_within_its_vm(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/snapshots", said(page(snapshot())))
    room.on("DELETE", f"/snapshots/{ID}", said(snapshot(state="deleting"), 202))
    assert run("snapshot delete web-1/before-upgrade --yes").stdout == "web-1/before-upgrade: is being deleted\n"
    room.on("GET", "/snapshots", said(page()))
    missing = run("snapshot show web-1/none")
    assert missing.exit_code == 3
    assert "has no snapshot 'none'" in missing.stderr


def test_revert_and_export(room: ControlRoom, run: Run) -> None:
    room.on("GET", f"/snapshots/{ID}", said(snapshot()))
    room.on("POST", f"/snapshots/{ID}/revert", said(snapshot(state="reverting"), 202))
    assert run(f"snapshot revert {ID} --start --yes").stdout == "web-1/before-upgrade: web-1 goes back\n"
    assert json.loads(room.bodies[-1]) == {"start": True}
    image = _example(wire_images.Image, {"name": "golden", "state": "pending"})
    room.on("POST", f"/snapshots/{ID}/export", said(image, 202))
    assert run(f"snapshot export {ID} golden").stdout == "image golden: is being made\n"
    assert json.loads(room.bodies[-1]) == {"image": "golden"}


def test_show(room: ControlRoom, run: Run) -> None:
    room.on("GET", f"/snapshots/{ID}", said(snapshot()))
    told = run(f"snapshot show {ID}").stdout
    for words in ("before-upgrade", "stands on this one", "memory", "212.5 ms", "2 vCPUs"):
        assert words in told
    assert json.loads(run(f"snapshot show {ID} -o json").stdout)["id"] == ID


def test_schedules(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/schedules", said(schedule(), 201))
    made = run("schedule create hourly --vms tier=db --every 1h --keep 24 --no-quiesce")
    assert made.stdout == "hourly: next at 2026-01-02 04:00:00 UTC\n"
    assert json.loads(room.bodies[0]) == {
        "name": "hourly", "selector": {"tier": "db"}, "every_s": 3600, "keep": 24, "quiesce": False,
    }  # fmt: skip
    room.on("GET", "/schedules", said(page(schedule())))
    assert "tier=db" in run("schedule list").stdout
    room.on("PATCH", "/schedules/hourly", said(schedule(paused=True, next_at=None)))
    assert run("schedule pause hourly").stdout == "hourly: paused\n"
    assert json.loads(room.bodies[-1]) == {"paused": True}
    assert run("schedule update hourly --every 2h").exit_code == 0
    assert json.loads(room.bodies[-1]) == {"every_s": 7200}
    assert run("schedule update hourly").exit_code == 2
