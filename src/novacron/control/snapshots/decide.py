"""What snapshots and schedules mean for records: pure; each refusal says what stands in the way.

take, revert, delete, export    may it begin? → the records as they are then
next_action                     what the worker has to do about a snapshot
taken, reverted, gone, failed   the records after it was done, or was not
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from novacron.control.vms import asked, hardware
from novacron.control.vms.asked import Ask
from novacron.errors import Busy, Conflict, InvalidInput, NovaCronError, Reason, StateConflict, Unsupported
from novacron.model.machine import ENDED, Disk, MachineReport, MachineStatus, Nic
from novacron.model.snapshot import Consistency, Snapshot, SnapshotState
from novacron.model.vm import Desired, Problem, Task, TaskKind, Vm, VmSpec, running_protection, running_spec, status_of
from novacron.wire.snapshot import SnapshotTaken

MAX_OF_A_VM = 128
RUNS = (MachineStatus.RUNNING, MachineStatus.PAUSED)
GUEST_AGENT = ("guest_agent.missing", "guest_agent.failed", "guest_agent.refused")
"""Codes of reasons that say: nobody in the guest freezes its file systems."""


class Action(StrEnum):
    """What is to be done about a snapshot now."""

    TAKE = "take"
    REVERT = "revert"
    DELETE = "delete"
    EXPORT = "export"
    WAIT = "wait"  # its node does not answer
    GIVE_UP = "give_up"  # other work has taken the VM
    FORGET = "forget"  # its VM is gone


_DOES = {
    SnapshotState.CREATING: Action.TAKE,
    SnapshotState.REVERTING: Action.REVERT,
    SnapshotState.DELETING: Action.DELETE,
    SnapshotState.EXPORTING: Action.EXPORT,
}


def next_action(snapshot: Snapshot, vm: Vm | None) -> Action | None:
    """None: nothing is under way."""
    action = _DOES.get(snapshot.state)
    if vm is None:
        return Action.FORGET
    if action is None:
        return None
    if action is not Action.EXPORT and (vm.task is None or vm.task.id != snapshot.task_id):
        return Action.GIVE_UP
    return Action.WAIT if vm.node_lost else action


# -- may it begin? -------------------------------------------------------------------------------------------


def wish(vm: Vm, *, memory: bool, quiesce: bool) -> Consistency:
    """How consistent a snapshot of the VM is to be.

    :raise InvalidInput, StateConflict, Unsupported: it cannot be so.
    """
    if memory and quiesce:
        raise InvalidInput.field("quiesce", "is of no use with memory, which has it all", "leave one of them out")
    status, spec = status_of(vm), running_spec(vm)
    if status not in ENDED and status not in RUNS:
        asked.refuse_state(vm, "take a snapshot of", "running, paused or stopped", "")
    if not spec.disks:
        reason = Reason("snapshot.no_disk", "it has no disk", vm.name, "attach a volume first")
        raise Unsupported(f"cannot take a snapshot of {vm.name}: it has no disk to keep it in", [reason])
    if status in ENDED:
        if memory:
            asked.refuse_state(vm, "take a snapshot with memory of", "running", f"novacron vm start {vm.name}")
        return Consistency.STOPPED
    if memory:
        return Consistency.MEMORY
    if quiesce and (not spec.guest_agent or status is not MachineStatus.RUNNING):
        lacks = "it has no guest agent" if not spec.guest_agent else "it stands still"
        reason = Reason(GUEST_AGENT[0], lacks, vm.name, "take it without quiesce")
        raise Unsupported(f"cannot freeze the file systems of {vm.name}: {lacks}", [reason])
    return Consistency.QUIESCED if quiesce else Consistency.CRASH


def check_free(vm: Vm, verb: str) -> None:
    """:raise Busy: a migration or other work holds it. :raise StateConflict: it is being deleted, or out of sight."""
    asked.check_free(vm, verb)
    if vm.task is not None:
        raise Busy(
            f"cannot {verb} {vm.name}: its task {vm.task.kind.value} is under way",
            [Reason("vm.task_under_way", vm.task.kind.value, subject=vm.task.id, remedy="wait until it has ended")],
        )
    if not vm.node_id:
        asked.refuse_state(vm, verb, "on a node", f"novacron vm start {vm.name}")


def check_new(vm: Vm, name: str, siblings: Sequence[Snapshot]) -> None:
    """:raise Conflict: the VM has a snapshot of that name, or too many."""
    if any(one.name == name for one in siblings):
        reason = Reason("name.taken", "the VM has a snapshot of that name", name, "choose another name")
        raise Conflict(f"{vm.name} has a snapshot {name!r} already", [reason])
    if len(siblings) >= MAX_OF_A_VM:
        reason = Reason("snapshot.too_many", f"it has {len(siblings)}", vm.name, "delete some, or keep fewer")
        raise Conflict(f"{vm.name} has {len(siblings)} snapshots, the most a VM may have", [reason])


def check_state(snapshot: Snapshot, verb: str, *states: SnapshotState) -> None:
    """:raise Busy: something is being done with it. :raise StateConflict: its state does not allow it."""
    if snapshot.state in states:
        return
    if snapshot.state in _DOES:
        reason = Reason("snapshot.busy", f"it is {snapshot.state.value}", snapshot.id, "wait until that has ended")
        raise Busy(f"cannot {verb} snapshot {snapshot.name}: it is {snapshot.state.value}", [reason])
    raise StateConflict.of(f"snapshot {snapshot.name}", snapshot.state.value, [one.value for one in states], verb)


def held(vm: Vm, kind: TaskKind, ask: Ask) -> Vm:
    """The VM with the task that holds it."""
    task = Task(id=ask.task_id, kind=kind, requested_at=ask.now, requested_by=ask.by)
    return msgspec.structs.replace(vm, task=task, updated_at=ask.now)


def spec_after(vm: Vm, snapshot: Snapshot) -> VmSpec:
    """The VM's spec once it has gone back: as it was then; its cards have kept the addresses they have now.

    Disks go back to the size they had. :raise Conflict: a disk, or for memory a card, came or went since; a reason
    for each, which says what to do.
    """
    then, now = snapshot.spec, vm.spec
    reasons = _differences("disk", then.disks, now.disks, "volume_id", vm)
    memory = snapshot.consistency is Consistency.MEMORY
    if memory:
        reasons += _differences("nic", then.nics, now.nics, "id", vm)
    if reasons:
        told = "; ".join(reason.message for reason in reasons[:5])
        raise Conflict(f"cannot go back to snapshot {snapshot.name}: {told}", reasons)
    nics = now.nics
    if memory:
        mine = {nic.id: nic for nic in now.nics}
        nics = tuple(_same_card(nic, mine[nic.id]) for nic in then.nics)
    return msgspec.structs.replace(then, nics=nics, ha=now.ha)


def _same_card(then: Nic, now: Nic) -> Nic:
    """The card in the place it had, with the network it has now."""
    return msgspec.structs.replace(
        then,
        network_id=now.network_id,
        addresses=now.addresses,
        security_groups=now.security_groups,
        forwards=now.forwards,
    )


def _differences(what: str, then: Iterable[Disk | Nic], now: Iterable[Disk | Nic], key: str, vm: Vm) -> list[Reason]:
    before, after = {getattr(one, key) for one in then}, {getattr(one, key) for one in now}
    noun = "volume" if what == "disk" else "card"
    gone = [
        Reason(
            f"snapshot.{noun}_detached",
            f"{noun} {name} was detached since",
            name,
            f"attach it again: novacron vm {what} attach {vm.name} {name}"
            if what == "disk"
            else "go back to a snapshot without memory",
        )
        for name in sorted(before - after)
    ]
    come = [
        Reason(
            f"snapshot.{noun}_attached",
            f"{noun} {name} was attached since",
            name,
            f"detach it: novacron vm {what} detach {vm.name} {name}",
        )
        for name in sorted(after - before)
    ]
    return gone + come


# -- after it was done ---------------------------------------------------------------------------------------


def taken(snapshot: Snapshot, vm: Vm, answer: SnapshotTaken, now: datetime.datetime) -> tuple[Snapshot, Vm]:
    """It is there; the VM stands on it."""
    snapshot = msgspec.structs.replace(
        snapshot,
        state=SnapshotState.READY,
        consistency=answer.consistency,
        size_bytes=answer.memory_bytes,
        stood_still_ms=answer.stood_still_ms,
        problem=None,
        updated_at=now,
    )
    return snapshot, hardware.settle(msgspec.structs.replace(vm, snapshot_id=snapshot.id), now)


def reverted(snapshot: Snapshot, vm: Vm, report: MachineReport, now: datetime.datetime) -> tuple[Snapshot, Vm]:
    """The VM stands on it again: running on from its moment, or stopped, or about to be started."""
    runs = report.status not in ENDED
    spec = spec_after(vm, snapshot)
    vm = msgspec.structs.replace(
        vm,
        spec=spec,
        booted=msgspec.structs.replace(spec, ha=running_protection(vm)) if runs else vm.booted,
        pending=(),
        desired=Desired.RUNNING if runs or snapshot.start else Desired.STOPPED,
        snapshot_id=snapshot.id,
        observed=report,
        problem=None,
        task=None,
        updated_at=now,
    )
    if snapshot.start and not runs:
        start = Task(id=snapshot.task_id, kind=TaskKind.START, requested_at=now)
        vm = msgspec.structs.replace(vm, task=start)
    return msgspec.structs.replace(snapshot, state=SnapshotState.READY, problem=None, updated_at=now), vm


def gone(snapshot: Snapshot, vm: Vm, children: Sequence[Snapshot], now: datetime.datetime) -> tuple[list[Snapshot], Vm]:
    """It is no more: its children are its parent's, and so is the VM if it stood on it."""
    adopted = [msgspec.structs.replace(one, parent_id=snapshot.parent_id, updated_at=now) for one in children]
    stands_on = snapshot.parent_id if vm.snapshot_id == snapshot.id else vm.snapshot_id
    vm = msgspec.structs.replace(vm, snapshot_id=stands_on)
    mine = vm.task is not None and vm.task.id == snapshot.task_id
    return adopted, hardware.settle(vm, now) if mine else vm


def exported(snapshot: Snapshot, now: datetime.datetime) -> Snapshot:
    """The image has its file."""
    return msgspec.structs.replace(snapshot, state=SnapshotState.READY, export=None, updated_at=now)


def failed(
    snapshot: Snapshot, vm: Vm | None, error: NovaCronError, now: datetime.datetime
) -> tuple[Snapshot, Vm | None]:
    """What was under way met a refusal: the problem says why, and the VM is let go."""
    words = "".join(f"; {reason.message}" for reason in error.reasons)
    remedy = next((reason.remedy for reason in error.reasons if reason.remedy), "")
    was = snapshot.state
    if was in (SnapshotState.CREATING, SnapshotState.DELETING):
        remedy = f"{remedy}; novacron snapshot delete {snapshot.id}".removeprefix("; ")
    problem = Problem(code=error.code, message=f"{error.message}{words}", at=now, remedy=remedy)
    broken = was in (SnapshotState.CREATING, SnapshotState.DELETING)
    snapshot = msgspec.structs.replace(
        snapshot,
        state=SnapshotState.ERROR if broken else SnapshotState.READY,
        problem=problem,
        export=None,
        updated_at=now,
    )
    if vm is None or vm.task is None or vm.task.id != snapshot.task_id:
        return snapshot, vm
    if was is SnapshotState.REVERTING:  # it was ended, and its disks may be half-way: it must not look healthy
        remedy = f"novacron snapshot revert {snapshot.id}"
        vm = msgspec.structs.replace(
            vm, desired=Desired.STOPPED, problem=msgspec.structs.replace(problem, remedy=remedy)
        )
    return snapshot, hardware.settle(vm, now)


def pushed_aside(snapshot: Snapshot) -> Conflict:
    """Why nothing came of it: somebody wanted something else of the VM, by force."""
    reason = Reason("snapshot.pushed_aside", "other work was forced upon its VM", snapshot.vm_id, "ask again")
    return Conflict(f"{snapshot.state.value} snapshot {snapshot.name} gave way to other work on its VM", [reason])


def wants_no_agent(snapshot: Snapshot, error: NovaCronError) -> bool:
    """Whether a schedule's snapshot is to be taken without quiesce after all."""
    quiet = snapshot.consistency is Consistency.QUIESCED and bool(snapshot.schedule_id)
    return quiet and any(reason.code in GUEST_AGENT for reason in error.reasons)


def without_quiesce(snapshot: Snapshot, why: str) -> Snapshot:
    """The snapshot as crash-consistent, with a note."""
    note = f"crash-consistent: {why}"
    description = f"{snapshot.description}; {note}" if snapshot.description else note
    return msgspec.structs.replace(snapshot, consistency=Consistency.CRASH, description=description[:1024])
