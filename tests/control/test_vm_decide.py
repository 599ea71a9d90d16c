"""What a VM needs next, and what reports mean for it."""

from __future__ import annotations

import datetime

import msgspec
import pytest

from novacron.control.vms import asked as asked_for
from novacron.control.vms import decide
from novacron.errors import MachineDied, NoRoom, Reason
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.machine import MachineReport, MachineStatus, StopMode
from novacron.model.vm import Desired, Problem, Task, TaskKind, Vm, VmSpec, VmState, running_spec, state_of

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def vm(desired: str = "running", status: str | None = None, task: str | None = None, **change: object) -> Vm:
    made = Vm(
        id="v",
        name="web",
        spec=VmSpec(image_id="i"),
        desired=Desired(desired),
        created_at=NOW,
        updated_at=NOW,
        node_id="n",
        generation=3,
        observed=report(status) if status else None,
        task=Task(id="t", kind=TaskKind(task), requested_at=NOW, deadline_s=9.0) if task else None,
    )
    return msgspec.structs.replace(made, **change)


def report(status: str, generation: int = 3, reason: str = "") -> MachineReport:
    return MachineReport(vm_id="v", generation=generation, status=MachineStatus(status), since=NOW, reason=reason)


ASK = asked_for.Ask(task_id="t", by="me", now=NOW)
GRACEFUL = decide.Stop(StopMode.GRACEFUL, 9.0)


@pytest.mark.parametrize(
    ("desired", "status", "task", "action"),
    [
        ("running", None, "create", decide.Start()),
        ("running", "stopped", "start", decide.Start()),
        ("running", "crashed", "start", decide.Start()),
        ("running", "running", "start", decide.Done()),
        ("running", "paused", "resume", decide.Resume()),
        ("running", "stalled", "resume", decide.Resume()),
        ("paused", "running", "pause", decide.Pause()),
        ("paused", "paused", "pause", decide.Done()),
        ("stopped", "running", "stop", GRACEFUL),
        ("stopped", "unknown", "stop", GRACEFUL),
        ("stopped", "stopped", "stop", decide.Done()),
        ("stopped", None, "create", decide.Done()),
        ("running", "running", "restart", GRACEFUL),
        ("running", "stopped", "restart", decide.Halfway()),
        ("running", "running", "adjust", decide.Adjust()),
        ("paused", "paused", "adjust", decide.Adjust()),
        ("running", "stalled", "adjust", decide.Adjust()),
        ("running", "crashed", "adjust", decide.Done()),
        ("deleted", "running", "delete", decide.Stop(StopMode.FORCED, 0.0)),
        ("deleted", "stopped", "delete", decide.Remove()),
        ("running", "crashed", None, None),
        ("running", "running", None, None),
    ],
)
def test_next_action(desired: str, status: str | None, task: str | None, action: decide.Action | None) -> None:
    assert decide.next_action(vm(desired, status, task)) == action


def test_the_second_half_of_a_restart_starts() -> None:
    halted = vm("running", "stopped", "restart")
    assert halted.task is not None
    halted = msgspec.structs.replace(halted, task=msgspec.structs.replace(halted.task, halted=True))
    assert decide.next_action(halted) == decide.Start()
    assert state_of(halted) is VmState.STARTING


def test_hands_off_while_a_migration_holds_it_or_its_node_is_lost() -> None:
    assert decide.next_action(vm("stopped", "running", "stop", migration_id="m")) is None
    assert decide.next_action(vm("stopped", "running", "stop", node_lost=True)) is None


def test_a_guest_that_powered_off_is_wanted_off() -> None:
    seen = decide.observed(vm("running", "running"), report("stopped", reason=decide.GUEST_SHUTDOWN), NOW)
    assert seen.desired is Desired.STOPPED
    assert state_of(seen) is VmState.STOPPED


def test_a_crash_is_a_problem_with_a_remedy() -> None:
    seen = decide.observed(vm("running", "running"), report("crashed", reason="killed by signal 9"), NOW)
    assert seen.desired is Desired.RUNNING
    assert state_of(seen) is VmState.ERROR
    assert seen.problem is not None
    assert "signal 9" in seen.problem.message
    assert seen.problem.remedy == "novacron vm start web"


def test_a_machine_its_node_has_lost_is_a_problem() -> None:
    seen = decide.observed(vm("running", "running"), report("absent"), NOW)
    assert seen.problem is not None
    assert seen.problem.code == "machine.lost"


def test_an_end_during_a_task_is_the_task_s_business() -> None:
    seen = decide.observed(vm("running", "running", "restart"), report("stopped"), NOW)
    assert seen.desired is Desired.RUNNING
    assert seen.problem is None


def test_running_again_clears_the_problem() -> None:
    ill = vm("running", "crashed", problem=Problem(code="c", message="m", at=NOW))
    assert decide.observed(ill, report("running"), NOW).problem is None


def test_hardware_is_pinned_once() -> None:
    first = msgspec.structs.replace(report("running"), machine_type="pc-q35-7.2", cpu_model="Nehalem")
    later = msgspec.structs.replace(report("paused"), machine_type="pc-q35-9.0", cpu_model="Skylake")
    seen = decide.observed(decide.observed(vm(), first, NOW), later, NOW)
    assert (seen.pins.machine_type, seen.pins.cpu_model) == ("pc-q35-7.2", "Nehalem")


@pytest.mark.parametrize(
    ("node", "generation", "migration_id", "speaks"),
    [("n", 3, "", True), ("other", 3, "", False), ("n", 2, "", False), ("n", 3, "m", False)],
)
def test_only_the_owner_speaks(node: str, generation: int, migration_id: str, speaks: bool) -> None:
    assert decide.speaks_for(vm(migration_id=migration_id), node, report("running", generation)) is speaks


def test_a_failed_task_leaves_its_reasons() -> None:
    error = NoRoom("no node can take it", [Reason("memory.short", "a: 5 MiB free", remedy="ask for less")])
    failed = decide.task_failed(vm("running", None, "create"), "t", error, NOW)
    assert failed.task is None
    assert failed.problem is not None
    assert failed.problem.message == "no node can take it; a: 5 MiB free"
    assert failed.problem.remedy == "ask for less"
    assert state_of(failed) is VmState.ERROR


def test_an_older_task_s_end_changes_nothing() -> None:
    now_on = vm("running", None, "create")
    assert decide.task_done(now_on, "another", NOW) is now_on
    assert decide.task_failed(now_on, "another", NoRoom("x"), NOW) is now_on


def test_a_kernel_image_gets_both_command_lines() -> None:
    image = Image(
        id="i",
        name="guest",
        state=ImageState.READY,
        created_at=NOW,
        updated_at=NOW,
        cmdline="console=ttyS0",
        files=(ImageFile(role=FileRole.KERNEL, digest="d", size_bytes=1),),
    )
    spec = VmSpec(image_id="i", kernel_cmdline="novacron.ip=10.0.0.1/24")
    told = decide.machine_spec(vm(spec=spec), image)
    assert told.boot.cmdline == "console=ttyS0 novacron.ip=10.0.0.1/24"
    assert told.boot.kernel == "d"
    assert (told.vm_id, told.generation) == ("v", 3)


def test_what_runs_keeps_the_size_it_was_started_with() -> None:
    image = Image(id="i", name="g", state=ImageState.READY, created_at=NOW, updated_at=NOW)
    started = decide.booting(vm("running", "running", spec=VmSpec(image_id="i", memory_mib=512)))
    resized = msgspec.structs.replace(started, spec=VmSpec(image_id="i", memory_mib=1024))
    assert decide.machine_spec(resized, image).memory_mib == 512
    assert running_spec(resized).memory_mib == 512
    assert decide.machine_spec(decide.booting(resized), image).memory_mib == 1024
    assert running_spec(msgspec.structs.replace(resized, observed=report("stopped"))).memory_mib == 1024


def test_a_full_disk_is_named_with_what_to_do() -> None:
    full = msgspec.structs.replace(report("stalled", reason="no room for volume v1"), full_volumes=("v1",))
    seen = decide.observed(vm("running", "running"), full, NOW)
    assert seen.problem is not None
    assert (seen.problem.code, state_of(seen)) == ("disk.full", VmState.ERROR)
    assert "v1" in seen.problem.remedy
    again = decide.observed(seen, report("running"), NOW)
    assert (again.problem, state_of(again)) == (None, VmState.RUNNING)


def test_a_device_let_go_of_late_is_looked_at_again_when_something_waits() -> None:
    late = msgspec.structs.replace(report("running"), let_go=1)
    waits = {"booted": VmSpec(image_id="i"), "pending": (Reason("guest.keeps", "it keeps it", "n"),)}
    seen = decide.observed(vm("running", "running", **waits), late, NOW)
    assert seen.task is not None
    assert seen.task.kind is TaskKind.ADJUST
    assert decide.observed(vm("running", "running", booted=VmSpec(image_id="i")), late, NOW).task is None


def test_an_end_during_an_adjustment_is_judged_at_once() -> None:
    seen = decide.observed(vm("running", "running", "adjust"), report("crashed", reason="killed"), NOW)
    assert seen.problem is not None
    assert seen.problem.code == "machine.crashed"
    done = decide.task_done(seen, "t", NOW)
    assert (done.task, done.problem) == (None, seen.problem)


@pytest.mark.parametrize("was", ["running", "paused"])
def test_a_machine_that_could_not_be_parked_is_as_it_was_and_says_why(was: str) -> None:
    asked = asked_for.park(vm(was, was, spec=VmSpec(image_id="i", shared_memory=True)), ASK)
    assert asked is not None
    kept = decide.task_failed(asked, ASK.task_id, NoRoom("no room"), NOW)
    assert (kept.desired, kept.task, state_of(kept)) == (Desired(was), None, VmState(was))
    assert kept.problem is not None
    assert (kept.problem.message, kept.problem.refused) == ("no room", True)
    # it stood still while it was tried, and what the node says of that comes late
    late = decide.observed(decide.observed(kept, report("paused"), NOW), report("running"), NOW)
    assert (state_of(late), late.problem) == (VmState.RUNNING, kept.problem)
    ended = decide.observed(late, report("crashed", reason="killed"), NOW)
    assert (state_of(ended), ended.problem and ended.problem.code) == (VmState.ERROR, "machine.crashed")


def test_a_machine_that_ended_while_it_was_to_be_parked_is_no_refusal() -> None:
    died = decide.task_failed(vm("running", "crashed", "park"), "t", MachineDied("it died"), NOW)
    assert died.problem is not None
    assert (state_of(died), died.problem.refused) == (VmState.ERROR, False)


def test_a_parked_machine_is_wanted_off_from_then_on() -> None:
    done = decide.task_done(vm("running", "parked", "park"), "t", NOW)
    assert (done.desired, state_of(done)) == (Desired.STOPPED, VmState.PARKED)
