"""Plans and policies on the command line: a line a node with why, goals sent as said, predictions beside figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from novacron.wire.rest.migration_plans import MigrationPlan
from novacron.wire.rest.policies import Policy
from tests.cli.conftest import Run
from tests.client.control_room import COMPLETED, MIGRATION_ID, NODE_ID, NOW, VM_ID, ControlRoom, migration, said

PREDICTED = {
    "total_ms": {"low": 1200.0, "expected": 2000.0, "high": 5200.0},
    "downtime_ms": {"low": 8.0, "expected": 33.0, "high": 120.0},
    "bytes_transferred": {"low": float(190 << 20), "expected": float(256 << 20), "high": float(400 << 20)},
}

MEASURED = {
    "at": NOW, "interval_s": 1.0, "dirtied_bytes": 3 << 20, "memory_used_bytes": 300 << 20, "memory_bytes": 2 << 30
}  # fmt: skip


def page(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": None}


def node(name: str, **changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "node": name, "node_id": NODE_ID, "is_here": False, "can": False, "chosen": False, "kind": None,
        "strategy": None, "predicted": None, "reasons": [], "explanation": [], "start": None,
    }  # fmt: skip
    return data | changes


def plan(*, target: str | None = "node-2") -> dict[str, Any]:
    goes = node(
        "node-2", can=True, chosen=True, kind="live", strategy="precopy", predicted=PREDICTED,
        explanation=["target node-2: chosen", "goal: downtime up to 50 ms: asked for"],
        start={"vm": "web-1", "target_node": "node-2", "kind": "live"},
    )  # fmt: skip
    reason = {"code": "memory.short", "message": "node-3: 2048 MiB asked for, 100 free", "remedy": "stop VMs"}
    data = {
        "vm": "web-1", "vm_id": VM_ID, "at_rest": False, "source_node": "node-1", "source_node_id": NODE_ID,
        "target_node": target, "target_node_id": NODE_ID if target else None, "not_before": None,
        "goals": {"max_downtime_ms": 50, "finish_within_s": 3600, "max_slowdown_percent": 0,
                  "bandwidth_bytes_per_s": 0, "may_pause": False, "never_postcopy": False, "transport": "auto"},
        "goals_said_by": {"max_downtime_ms": "asked for"},
        "measured": MEASURED,
        "note": "",
        "nodes": [node("node-1", is_here=True), *([goes] if target else []), node("node-3", reasons=[reason])],
    }  # fmt: skip
    return json.loads(MigrationPlan.model_validate(data).model_dump_json())  # type: ignore[no-any-return]


def policy(**changes: Any) -> dict[str, Any]:
    data = {
        "id": NODE_ID, "name": "database", "goals": {"max_downtime_ms": 50, "never_postcopy": True},
        "selector": {"tier": "db"}, "is_default": False, "windows": [], "labels": {}, "description": "",
        "created_at": NOW, "updated_at": NOW, "revision": 9,
    }  # fmt: skip
    return json.loads(Policy.model_validate(data | changes).model_dump_json())  # type: ignore[no-any-return]


def test_a_dry_run_answers_for_every_node_and_begins_nothing(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1/migration-plan", said(plan()))
    result = run("vm migrate web-1 --to node-2 --dry-run --max-downtime-ms 50 --finish-within 2m --no-may-pause")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NODE", "ANSWER", "HOW", "TOTAL", "DOWNTIME", "SENT"]
    assert lines[1].startswith("node-1  is here")
    assert (
        "would be taken  live, precopy  2.0 s (1.2s-5.2s)  33 ms (8ms-120ms)  256 MiB (190 MiB - 400 MiB)" in lines[2]
    )
    assert lines[3].startswith("node-3  cannot")
    assert "measured: 300 MiB in use, 3 MiB/s written, by sampling" in lines
    assert "node-3: 2048 MiB asked for, 100 free; try: stop VMs" in lines
    assert lines[-1] == "goal: downtime up to 50 ms: asked for"
    asked = dict(room.asked[0].query_params)
    assert asked == {
        "target_node": "node-2", "max_downtime_ms": "50", "finish_within_s": "120.0", "may_pause": "false",
    }  # fmt: skip
    assert len(room.asked) == 1


def test_a_dry_run_that_leads_nowhere_fails(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1/migration-plan", said(plan(target=None)))
    assert run("vm migrate web-1 --dry-run").exit_code == 1


def test_a_plan_for_programs_is_whole(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/vms/web-1/migration-plan", said(plan()))
    told = json.loads(run("vm migrate web-1 --dry-run -o json").stdout)
    assert told["nodes"][1]["predicted"]["total_ms"]["expected"] == 2000.0
    assert run("vm migrate web-1 --dry-run -o name").stdout == "node-2\n"


def test_migrate_sends_kind_strategy_policy_and_every_goal(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/migrations", said(migration(), 202))
    run(
        "vm migrate web-1 --kind live --strategy hybrid --policy database --max-slowdown 40 --may-pause "
        "--allow-postcopy --no-measure --label why=test"
    )
    assert json.loads(room.bodies[0]) == {
        "vm": "web-1", "kind": "live", "strategy": "hybrid", "policy": "database", "max_slowdown_percent": 40,
        "may_pause": True, "never_postcopy": False, "measure": False, "labels": {"why": "test"},
    }  # fmt: skip


def test_what_was_predicted_stands_beside_what_it_cost(room: ControlRoom, run: Run) -> None:
    error = {"total_percent": -71.5, "downtime_percent": 79.3, "bytes_percent": None}
    done = migration(**COMPLETED, predicted=PREDICTED, measured=MEASURED, prediction_error=error)
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(done))
    shown = run(f"migration show {MIGRATION_ID}").stdout
    assert "Measured:   300 MiB in use, 3 MiB/s written, by sampling" in shown
    assert "Predicted:  total 2.0 s (1.2s-5.2s), downtime 33 ms (8ms-120ms)" in shown
    assert "Off by:     total -71 %, downtime +79 % (above zero: more was predicted)" in shown or "-72 %" in shown
    assert "Goals:      downtime up to 100 ms, within 1h00m" in shown
    room.on("GET", "/migrations", said(page(done)))
    assert "downtime +79 %" in run("migration list -o wide").stdout


def test_the_verdict_is_shown_check_by_check(room: ControlRoom, run: Run) -> None:
    checks = [
        {"name": "only_there", "outcome": "passed", "evidence": "on node-1 it is gone"},
        {"name": "disks", "outcome": "failed", "evidence": "volume v is not as it was", "took_ms": 12.0},
        {"name": "clock", "outcome": "not_checked", "evidence": "nobody tells\x1b[2J"},
    ]
    verdict = {"at": NOW, "outcome": "failed", "checks": checks, "clock_off_ms": None, "clock_off_after_ms": None}
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(migration(**COMPLETED, verdict=verdict)))
    lines = [" ".join(line.split()) for line in run(f"migration show {MIGRATION_ID}").stdout.splitlines()]
    for line in (
        "Verdict: failed",
        "Only there: passed: on node-1 it is gone",
        "Disks: failed: volume v is not as it was",
    ):
        assert line in lines
    assert any(line.startswith("Clock: not checked: nobody tells") and "\x1b" not in line for line in lines)


def test_policies(room: ControlRoom, run: Run) -> None:
    room.on("POST", "/migration-policies", said(policy(), 201))
    made = run("migration-policy create database --vms tier=db --max-downtime-ms 50 --never-postcopy")
    assert made.stdout == "database: downtime up to 50 ms, never post-copy\n"
    assert json.loads(room.bodies[0]) == {
        "name": "database", "selector": {"tier": "db"}, "goals": {"max_downtime_ms": 50, "never_postcopy": True},
    }  # fmt: skip
    room.on("GET", "/migration-policies", said(page(policy(), policy(name="usual", selector={}, is_default=True))))
    lines = run("migration-policy list").stdout.splitlines()
    assert lines[1].startswith("database  tier=db")
    assert lines[2].startswith("usual     all others")
    room.on("GET", "/migration-policies/database", said(policy()))
    assert "Goals:    downtime up to 50 ms, never post-copy" in run("migration-policy show database").stdout


def test_a_goal_is_changed_beside_the_others_and_can_be_forgotten(room: ControlRoom, run: Run) -> None:
    room.on("GET", "/migration-policies/database", said(policy()))
    room.on("PATCH", "/migration-policies/database", said(policy()))
    run("migration-policy update database --may-pause --forget never_postcopy")
    assert json.loads(room.bodies[-1]) == {"goals": {"max_downtime_ms": 50, "may_pause": True}}
    assert room.asked[-1].headers["if-match"] == '"9"'


@pytest.mark.parametrize("line", ["update database", "update database --forget nonsense", "create a --max-slowdown 95"])
def test_what_is_no_change_or_no_goal_is_said(room: ControlRoom, run: Run, line: str) -> None:
    assert run(f"migration-policy {line}").exit_code == 2
    assert room.asked == []


def test_deleting_a_policy(room: ControlRoom, run: Run) -> None:
    from starlette.responses import Response

    room.on("DELETE", "/migration-policies/database", Response(status_code=204))
    assert run("migration-policy delete database --yes").stdout == "database: deleted\n"


def test_the_cpu_baseline_names_who_is_locked_in(room: ControlRoom, run: Run) -> None:
    found = {
        "baselines": [
            {"accelerator": "kvm", "nodes": ["node-1", "node-2"], "cpu_model": "Haswell", "cpu_models": ["Haswell"],
             "cpu_flags": ["sse2"], "lacks_flags": {"node-2": ["avx2"]}, "machine_types": ["pc-q35-7.2"]},
        ],
        "vms": [
            {"vm": "web-1", "vm_id": VM_ID, "node": "node-1", "cpu_model": "EPYC", "machine_type": "pc-q35-7.2",
             "accelerator": "kvm", "cannot": [{"code": "x", "message": "node-2: it cannot run CPU model EPYC"}],
             "could": [], "is_locked_in": True},
        ],
        "vms_left_off": 2, "unknown": [],
    }  # fmt: skip
    room.on("GET", "/cpu-baseline", said(found))
    shown = run("node cpu-baseline --without node-3 --without node-4").stdout
    assert "CPU model:    Haswell (all run: Haswell)" in shown
    assert "VM:           web-1: locked in on node-1: node-2: it cannot run CPU model EPYC" in shown
    assert "2 more" in shown
    assert room.asked[0].query_params.getlist("without") == ["node-3", "node-4"]


def test_changes_are_read_and_what_becomes_of_vms_is_shown(room: ControlRoom, run: Run, tmp_path: Path) -> None:
    flags = tmp_path / "cpuinfo"
    flags.write_text("processor\t: 0\nflags\t\t: fpu sse2\nprocessor\t: 1\nflags\t\t: fpu sse2\n")
    found = {
        "baselines": [],
        "vms": [
            {"vm": "web-1", "vm_id": VM_ID, "node": "node-1", "cpu_model": "EPYC", "machine_type": "pc-q35-7.2",
             "accelerator": "kvm", "could_now": ["node-2"], "could": [], "can_stay": False, "was_locked_in": False,
             "is_locked_in": True, "cannot": [{"code": "x", "message": "node-2: it cannot run CPU model EPYC"}],
             "remedy": "leave node-2 as it is"},
        ],
        "vms_left_off": 0, "vms_unchanged": 3, "unknown": [], "assumed": ["node-9 has the QEMU of node-1"],
    }  # fmt: skip
    room.on("POST", "/cpu-baseline-plans", said(found))
    after = ["node-1=Skylake-Server", "node-1:-avx512f,+pc-q35-9.0,qemu=9.0", f"node-2=@{flags}", "+node-9=EPYC"]
    after += ["vm/web-1=Haswell", "vm/*=Nehalem"]
    options = [word for change in after for word in ("--after", change)]
    shown = run(["node", "cpu-baseline", *options, "--without", "node-3"]).stdout
    assert json.loads(room.bodies[0]) == {
        "nodes": {
            "node-1": {
                "cpu_model": "Skylake-Server", "remove_cpu_flags": ["avx512f"], "qemu_version": "9.0",
                "add_machine_types": ["pc-q35-9.0"],
            },
            "node-2": {"cpu_flags": ["fpu", "sse2"]},
            "node-3": {"gone": True},
            "node-9": {"added": True, "cpu_model": "EPYC"},
        },
        "vms": {"web-1": "Haswell"},
        "every_vm": "Nehalem",
    }  # fmt: skip
    assert "web-1 (on node-1): could not start on node-1 again, could go nowhere; now: node-2" in shown
    assert "leave node-2 as it is" in shown
    assert "node-9 has the QEMU of node-1" in shown
    assert "nothing changes for 3" in shown


@pytest.mark.parametrize("text", ["node-1", "=EPYC", "node-1=", "node-1:avx512f", "node-1:-", "vm/=EPYC", "vm/a:-avx"])
def test_what_is_no_change_is_said(run: Run, text: str) -> None:
    refused = run(["node", "cpu-baseline", "--after", text])
    assert refused.exit_code == 2
    assert "is none of NODE=MODEL" in refused.stderr


def test_a_link_is_measured_and_what_is_known_of_links_is_listed(room: ControlRoom, run: Run) -> None:
    link = {
        "source_node": "node-1", "source_node_id": NODE_ID, "target_node": "node-2", "target_node_id": VM_ID,
        "measured_at": NOW, "age_s": 12.0, "rate_bytes_per_s": float(11 << 20), "rtt_ms": 40.2, "sent_bytes": 11 << 20,
        "is_capped": True, "why": "",
    }  # fmt: skip
    room.on("POST", "/link-probes", said(link))
    shown = run("node probe-link node-1 node-2 --bandwidth 11MiB/s").stdout
    assert json.loads(room.bodies[0]) == {
        "source_node": "node-1", "target_node": "node-2", "bandwidth_bytes_per_s": 11 << 20,
    }  # fmt: skip
    assert "11 MiB/s or more" in shown
    assert "40.2 ms" in shown
    unknown = {"measured_at": None, "age_s": None, "rate_bytes_per_s": None, "rtt_ms": None, "sent_bytes": 0}
    room.on("POST", "/link-probes", said(link | unknown | {"is_capped": False, "why": "nobody answers"}))
    shown = run("node probe-link node-1 node-2").stdout
    assert "unknown" in shown
    assert "nobody answers" in shown
    room.on("GET", "/nodes/node-1/links", said({"items": [link]}))
    assert "node-1  node-2  11 MiB/s or more" in run("node links node-1").stdout


def test_windows_are_read_shown_and_taken_away(room: ControlRoom, run: Run) -> None:
    night = {"days": ["fri", "sat", "sun", "mon"], "begins": "22:00", "ends": "05:00", "timezone": "Europe/Berlin"}
    room.on("POST", "/migration-policies", said(policy(windows=[night]), 201))
    run(["migration-policy", "create", "nightly", "--window", "fri-mon 22:00-05:00 Europe/Berlin"])
    assert json.loads(room.bodies[0])["windows"] == [night]
    run(["migration-policy", "create", "nightly", "--window", "daily 00:00-06:00"])
    assert len(json.loads(room.bodies[1])["windows"][0]["days"]) == 7
    room.on("GET", "/migration-policies/database", said(policy(windows=[night])))
    assert "Begins:   fri,sat,sun,mon 22:00-05:00 Europe/Berlin" in run("migration-policy show database").stdout
    room.on("PATCH", "/migration-policies/database", said(policy()))
    run("migration-policy update database --any-time")
    assert json.loads(room.bodies[-1]) == {"windows": []}


@pytest.mark.parametrize("text", ["", "someday 1:00-2:00", "mon", "mon 22:00", "mon 1:00-2:00 UTC more"])
def test_what_is_no_window_is_said(room: ControlRoom, run: Run, text: str) -> None:
    assert run(["migration-policy", "create", "nightly", "--window", text]).exit_code == 2
    assert room.asked == []


def test_a_migration_that_waits_says_until_when(room: ControlRoom, run: Run) -> None:
    later = "2026-11-23T22:00:00Z"
    room.on("POST", "/migrations", said(migration(not_before=later, began_at=None), 202))
    begun = run("vm migrate web-1 --starts-at 2026-11-23T22:00 --priority 90 --now")
    assert "from 2026-11-23 22:00 UTC on" in begun.stdout
    assert json.loads(room.bodies[0]) == {"vm": "web-1", "starts_at": later, "priority": 90, "now": True}
    room.on("GET", "/vms/web-1/migration-plan", said(plan() | {"not_before": later}))
    shown = run("vm migrate web-1 --dry-run --starts-at 2026-11-23T23:00+01:00")
    assert "it would wait until 2026-11-23 22:00 UTC; --now begins at once" in shown.stdout
    assert room.asked[-1].query_params["starts_at"] == "2026-11-23 23:00:00+01:00"
    assert run("vm migrate web-1 --starts-at tonight").exit_code == 2


def test_a_migration_whose_vm_is_free_says_so_and_for_what_it_is_held_up(room: ControlRoom, run: Run) -> None:
    later = "2026-11-23T22:00:00Z"
    free = migration(
        state="pending", not_before=later, began_at=None, holds_vm=False, steps_begun=[], steps_done=[], progress=None
    )  # fmt: skip
    room.on("POST", "/migrations", said(free, 202))
    assert (
        "from 2026-11-23 22:00 UTC on, free until then" in run("vm migrate web-1 --starts-at 2026-11-23T22:00").stdout
    )
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(free))
    shown = run(f"migration show {MIGRATION_ID}").stdout
    assert "Waits until: 2026-11-23 22:00:00 UTC; web-1 is free until then" in " ".join(shown.split())
    room.on("GET", "/migrations", said(page(free)))
    assert "waits until 2026-11-23 22:00" in run("migration list").stdout
    held_up = {"code": "busy", "message": "its task stop is under way", "at": later, "remedy": "wait for it"}
    room.on("GET", f"/migrations/{MIGRATION_ID}", said(free | {"held_up": held_up}))
    shown = " ".join(run(f"migration show {MIGRATION_ID}").stdout.split())
    assert "Held up: its task stop is under way (since 2026-11-23 22:00:00 UTC)" in shown
    assert "What to do: wait for it" in shown
    room.on("GET", "/migrations", said(page(free | {"held_up": held_up})))
    assert "waits, held up" in run("migration list").stdout
    over = free | {"state": "cancelled", "finished_at": later, "may_cancel": False}
    room.on("POST", f"/migrations/{MIGRATION_ID}/cancel", said(over))
    assert "cancelled; web-1 stays where it is" in run(f"migration cancel {MIGRATION_ID}").stdout


def test_copies_that_were_kept_are_shown_with_what_to_type(room: ControlRoom, run: Run) -> None:
    disk = {"volume_id": "v-1", "size_bytes": 1, "used_bytes": 1, "from_pool": "local", "from_pool_id": "p"}
    disks = [disk | {"to_pool": "local", "to_pool_id": "p"}]
    kept = {"node": "node-1", "node_id": "n", "volume_ids": ["v-1"], "discarded_at": None, "discarded_by": None}

    def shown(**told: Any) -> list[str]:
        done = migration(**COMPLETED, disks=disks, kept_copies=kept | told)
        room.on("GET", f"/migrations/{MIGRATION_ID}", said(done))
        return [" ".join(line.split()) for line in run(f"migration show {MIGRATION_ID}").stdout.splitlines()]

    lines = shown()
    assert "Kept copy: on node-1, volume v-1 in pool local" in lines
    assert f"What to do: once they are of no use: novacron migration discard-copies {MIGRATION_ID}" in lines
    lines = shown(discarded_at=NOW, discarded_by="ada")
    assert any(line.startswith("Kept copies: deleted on node-1 2026-") and line.endswith("by ada") for line in lines)
    assert not any("discard-copies" in line for line in lines)
