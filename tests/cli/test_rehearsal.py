"""Rehearsals at the command line: what is sent, what is said, and how it ends."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from novacron.wire.rest.rehearsals import Rehearsal
from tests.cli.conftest import Run
from tests.client.control_room import MIGRATION_ID, NODE_ID, NOW, VM_ID, ControlRoom, said

CHECK = {"name": "console", "outcome": "failed", "evidence": "its serial line is silent"}


def rehearsal(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": MIGRATION_ID, "vm_id": VM_ID, "vm_name": "web-1", "state": "copying", "source_node": "node-1",
        "source_node_id": NODE_ID, "target_node": "node-2", "target_node_id": NODE_ID, "copy_id": VM_ID,
        "copy_name": "rehearsal-web-1-0", "network_id": None, "keep_for_s": 600.0, "boot_within_s": 120.0,
        "watch_for_s": 10.0, "bandwidth_bytes_per_s": 0, "may_cancel": True, "labels": {}, "explanation": [],
        "figures": {"copied_bytes": 1 << 30, "copy_ms": 2000.0, "boot_ms": 400.0}, "verdict": None, "problem": None,
        "created_at": NOW, "updated_at": NOW, "booted_at": None, "kept_until": None, "finished_at": None,
        "revision": 80,
    }  # fmt: skip
    return json.loads(Rehearsal.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def ended(state: str) -> dict[str, Any]:
    outcome = "passed" if state == "passed" else "failed"
    verdict = {"at": NOW, "outcome": outcome, "checks": [CHECK | {"outcome": outcome}]}
    return rehearsal(state=state, verdict=verdict, finished_at=NOW)


def test_what_is_asked_for_is_sent(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/migration-rehearsals", said(rehearsal(), 202))
    result = run("migration rehearse web-1 --to node-2 --keep-for 10m --bandwidth 100MiB/s")
    assert result.exit_code == 0
    assert f"novacron migration rehearsal watch {MIGRATION_ID}" in result.stdout
    assert json.loads(room.bodies[0]) == {
        "vm": "web-1", "target_node": "node-2", "keep_for_s": 600.0, "bandwidth_bytes_per_s": 100 << 20,
        "boot_within_s": 120.0, "watch_for_s": 10.0,
    }  # fmt: skip


def test_waiting_ends_with_the_verdict(room: ControlRoom, run: Run) -> None:
    for state, code in (("passed", 0), ("failed", 1)):
        room.on("POST", "/migration-rehearsals", said(rehearsal(), 202))
        room.on("GET", f"/migration-rehearsals/{MIGRATION_ID}", said(ended(state)))
        result = run("migration rehearse web-1 --wait")
        assert result.exit_code == code
        assert f"{state}: its serial line is silent" in result.stdout
        assert "1 GiB in 2" in result.stdout


def test_they_are_listed_shown_called_off_and_forgotten(room: ControlRoom, run: Run) -> None:
    path = f"/migration-rehearsals/{MIGRATION_ID}"
    room.on("GET", "/migration-rehearsals", said({"items": [ended("failed")], "next_cursor": None}))
    assert run("migration rehearsal list --vm web-1").stdout.splitlines()[1].split()[1:5] == [
        "web-1", "node-2", "failed", "failed",
    ]  # fmt: skip
    room.on("GET", path, said(ended("failed")))
    assert "its serial line is silent" in run(f"migration rehearsal show {MIGRATION_ID}").stdout
    room.on("POST", f"{path}/cancel", said(rehearsal(state="cleaning"), 202))
    assert "web-1 runs on as before" in run(f"migration rehearsal cancel {MIGRATION_ID}").stdout
    room.on("DELETE", path, Response(None, 204))
    assert run(f"migration rehearsal delete {MIGRATION_ID}").exit_code == 0
