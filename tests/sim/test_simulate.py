"""`novacron simulate`: the real control plane over simulated nodes, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from novacron.cli.main import novacron
from novacron.clock import SystemClock
from novacron.model.machine import MachineStatus
from novacron.simulation import reading
from novacron.simulation.presence import Presence
from novacron.simulation.run import simulate
from novacron.simulation.summary import Report, spread
from novacron.simulation.world import PacedDriver
from novacron.testing.fake_world import FakeHost, FakeMachine

SMALL = """
name = "small"
duration_s = 120
servers = {servers}
[[nodes]]
name = "node"
count = 4
memory_mib = 8192
[[vms]]
name = "web"
count = 8
ha = {{ policy = "restart", min_fence_class = "timer" }}
[[vms]]
name = "plain"
count = 4
"""
LOSS = '[[events]]\nat_s = 20\ndo = "power_loss"\nnodes = ["node-1"]\n'


def played(root: Path, events: str, servers: int = 1) -> Report:
    scenario = reading.parse((SMALL.format(servers=servers) + events).encode())
    report = simulate(scenario, root, SystemClock())
    assert report.summary.violations == ()
    assert report.summary.cost.worker_failures == 0
    return report


def told(report: Report, kind: str, subject: str = "") -> list[str]:
    return [one.text for one in report.timeline if one.kind == kind and subject in ("", one.subject)]


def test_what_is_guarded_runs_elsewhere_after_a_power_loss_and_is_counted(tmp_path: Path) -> None:
    report = played(tmp_path, LOSS)
    summary = report.summary
    (fenced,) = [text for text in told(report, "node", "node-1") if "→ fenced" in text]
    assert "no heartbeat" in fenced
    assert summary.fences == 1
    taken = [text for text in told(report, "vm") if text.startswith("is taken over: node-1 →")]
    restarts = summary.availability.restarts
    assert len(taken) == summary.takeovers == restarts.count > 0
    assert 5 < restarts.p50_s <= restarts.p95_s <= restarts.max_s <= 40
    still = {one.vm for one in summary.availability.still_down}
    assert still
    assert all(vm.startswith("plain-") for vm in still)
    down_s = restarts.total_s + sum(one.for_s for one in summary.availability.still_down)
    assert summary.availability.downtime_s == pytest.approx(down_s)
    assert summary.availability.percent == pytest.approx(100 * (1 - down_s / summary.availability.wanted_s), abs=1e-3)
    assert summary.availability.wanted_s == pytest.approx(12 * 120, rel=0.05)


def test_the_same_seed_tells_the_same_story(tmp_path: Path) -> None:
    events = LOSS + '[[events]]\nat_s = 5\ndo = "arrivals"\ngroup = "plain"\nper_minute = 6\nfor_s = 60\n'
    one, other = (played(tmp_path / name, events) for name in "ab" if (tmp_path / name).mkdir() is None)
    assert one.timeline == other.timeline
    assert one.summary.availability == other.summary.availability


def test_a_node_that_is_cut_off_ends_what_is_guarded_before_it_runs_elsewhere(tmp_path: Path) -> None:
    report = played(tmp_path, '[[events]]\nat_s = 20\ndo = "partition"\nnodes = ["node-1"]\nfor_s = 60\n')
    assert report.summary.takeovers > 0
    assert report.summary.availability.still_down == ()
    assert 0 < report.summary.availability.restarts.max_s <= 25  # counted from its end on that node
    assert any("→ up" in text for text in told(report, "node", "node-1"))


def test_when_the_leader_dies_another_goes_on(tmp_path: Path) -> None:
    crash = '[[events]]\nat_s = 21\ndo = "server_crash"\nserver = "server-1"\n'
    report = played(tmp_path, LOSS + crash, servers=3)
    (leads,) = told(report, "server")
    assert leads == "leads"
    assert report.summary.takeovers > 0
    assert report.summary.availability.restarts.max_s <= 60


def test_nobody_answers_while_the_one_server_is_down(tmp_path: Path) -> None:
    crash = '[[events]]\nat_s = 10\ndo = "server_crash"\nfor_s = 10\n'
    asked = "".join(f'[[events]]\nat_s = {at}\ndo = "stop"\nvms = ["plain-1"]\n' for at in (15, 40))
    report = played(tmp_path, crash + asked)
    (refusal,) = report.summary.refusals
    assert (refusal.what, refusal.code) == ("stop plain-1", "unavailable")
    assert report.summary.requests["stop"] == 1
    assert report.summary.availability.restarts.count == 0  # asked to stop is not down


def test_a_node_is_emptied_worked_on_and_filled_again(tmp_path: Path) -> None:
    report = played(tmp_path, '[[events]]\nat_s = 5\ndo = "drain"\nnodes = ["node-2"]\nmaintenance_s = 20\n')
    away, back = told(report, "drain", "node-2")
    assert away.startswith("drain completed: ")
    assert away.endswith(" moved, 0 not")
    assert back == away.replace("drain completed", "bring_back completed")
    moves = report.summary.migrations
    assert moves.by_state == {"completed": 2 * int(away.split()[2])}
    assert moves.bytes_transferred == sum(moves.by_state.values()) << 30
    assert moves.durations.p50_s > 1024 / 1100


def test_what_no_node_can_take_is_refused_with_reasons(tmp_path: Path) -> None:
    report = played(tmp_path, '[[events]]\nat_s = 5\ndo = "create"\ngroup = "plain"\ncount = 30\n')
    refusals = report.summary.refusals
    assert refusals
    assert {one.code for one in refusals} == {"no_room"}
    assert len(refusals[0].reasons) == 4
    assert report.summary.vms + len(refusals) == 12 + 30


# -- the command ----------------------------------------------------------------------------------------------


def run(tmp_path: Path, text: str, *options: str) -> Result:
    file = tmp_path / "scenario.toml"
    file.write_text(text)
    return CliRunner().invoke(novacron, ["simulate", str(file), *options])


def test_the_command_prints_a_timeline_and_a_summary(tmp_path: Path) -> None:
    result = run(tmp_path, SMALL.format(servers=1) + LOSS, "--seed", "7")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["TIME", "KIND", "SUBJECT", "WHAT"]
    assert lines[1].split(maxsplit=3) == ["00:20.0", "fault", "node-1", "loses its power"]
    assert "scenario:       small, seed 7: 4 nodes, 12 VMs, 1 server, 02:00.0" in lines
    assert "ran twice:      never" in lines


def test_the_command_prints_json(tmp_path: Path) -> None:
    result = run(tmp_path, SMALL.format(servers=1), "-o", "json", "--brief")
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["scenario"], found["timeline"], found["summary"]["violations"]) == ("small", [], [])
    assert found["summary"]["cost"]["virtual_s"] == 120


def test_a_vm_that_was_to_run_twice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on nodes that declare a timer and have none."""

    async def spares(driver: PacedDriver, vm_id: str, reason: str) -> None:
        """Ends nothing."""

    async def never(host: FakeHost, machine: FakeMachine, deadline_s: float) -> None:
        """Does not fire."""

    monkeypatch.setattr(PacedDriver, "kill", spares)
    monkeypatch.setattr(FakeHost, "_fire", never)
    cut = '[[events]]\nat_s = 20\ndo = "partition"\nnodes = ["node-1"]\nfor_s = 60\n'
    result = run(tmp_path, SMALL.format(servers=1) + cut, "--brief")
    assert result.exit_code == 1
    assert "while it runs on node-1" in result.stdout


def test_a_scenario_that_is_wrong_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, SMALL.format(servers=0))
    assert result.exit_code == 5
    assert "servers" in result.stderr


# -- what is counted ------------------------------------------------------------------------------------------


def test_an_outage_is_when_one_that_is_wanted_and_has_run_does_not_run() -> None:
    presence = Presence()
    presence.wanted("vm", True, 0)
    assert presence.machine("a", "vm", MachineStatus.RUNNING, 10) is None  # its first start is no outage
    presence.machine("a", "vm", MachineStatus.CRASHED, 20)
    ended = presence.machine("b", "vm", MachineStatus.RUNNING, 27)
    assert ended is not None
    assert (ended.lasts_s(99), ended.pause) == (7, False)
    presence.machine("b", "vm", MachineStatus.HANDED_OFF, 30)
    presence.machine("c", "vm", MachineStatus.RUNNING, 31)
    presence.machine("b", "vm", MachineStatus.STOPPED, 32)  # the copy that is left behind counts for nothing
    presence.wanted("vm", False, 40)
    presence.machine("c", "vm", MachineStatus.STOPPED, 41)
    assert [(one.from_s, one.to_s, one.pause) for one in presence.outages(50)] == [(20, 27, False), (30, 31, True)]
    assert presence.wanted_s(50) == 30


def test_one_that_is_still_down_counts_until_now() -> None:
    presence = Presence()
    presence.wanted("vm", True, 0)
    presence.machine("a", "vm", MachineStatus.RUNNING, 0)
    presence.machine("a", "vm", MachineStatus.ABSENT, 5)
    (outage,) = presence.outages(9)
    assert (outage.to_s, outage.lasts_s(9)) == (None, 4)


def test_a_spread_is_by_rank() -> None:
    found = spread([float(one) for one in range(20, 0, -1)])
    assert (found.count, found.total_s, found.p50_s, found.p95_s, found.max_s) == (20, 210, 10, 19, 20)
    assert spread([]).max_s == 0
