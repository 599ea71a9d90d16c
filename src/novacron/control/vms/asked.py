"""What a request to act on a VM means for its record: pure; each refusal says what stands in the way.

Every verb takes the record as it is and answers with the record as it is to be, or None when it already is so.
"""

from __future__ import annotations

import datetime
from typing import NoReturn

import msgspec

from novacron.errors import Busy, Reason, StateConflict, Unsupported
from novacron.model import rehearsal
from novacron.model.machine import ENDED, MachineStatus
from novacron.model.vm import Desired, Task, TaskKind, Vm, running_spec, state_of, status_of

STILL = frozenset({MachineStatus.PAUSED, MachineStatus.STALLED})
LIVING = STILL | {MachineStatus.RUNNING, MachineStatus.UNKNOWN}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, when; force: do not ask the guest, and push aside other work; deadline_s: of a graceful stop."""

    task_id: str
    by: str
    now: datetime.datetime
    force: bool = False
    deadline_s: float = 60.0


def start(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict, Busy"""
    if _under_way(vm, ask, TaskKind.START, TaskKind.CREATE):
        return None
    if status_of(vm) in ENDED:
        return _with_task(vm, ask, TaskKind.START, Desired.RUNNING)
    if status_of(vm) is not MachineStatus.RUNNING:
        remedy = f"novacron vm resume {vm.name}" if status_of(vm) in STILL else f"novacron vm stop --force {vm.name}"
        raise _conflict(vm, "start", "stopped", remedy)
    return None if _is_so(vm, Desired.RUNNING) else _with_task(vm, ask, TaskKind.START, Desired.RUNNING)


def stop(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict, Busy"""
    if _under_way(vm, ask, TaskKind.STOP):
        return None
    if status_of(vm) in ENDED and _is_so(vm, Desired.STOPPED):
        return None
    return _with_task(vm, ask, TaskKind.STOP, Desired.STOPPED)


def restart(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict, Busy"""
    if _under_way(vm, ask, TaskKind.RESTART):
        return None
    if status_of(vm) not in LIVING:
        raise _conflict(vm, "restart", "running", f"novacron vm start {vm.name}")
    return _with_task(vm, ask, TaskKind.RESTART, Desired.RUNNING)


def pause(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict, Busy"""
    if _under_way(vm, ask, TaskKind.PAUSE):
        return None
    if status_of(vm) not in (MachineStatus.RUNNING, MachineStatus.PAUSED):
        raise _conflict(vm, "pause", "running", f"novacron vm start {vm.name}")
    if status_of(vm) is MachineStatus.PAUSED and _is_so(vm, Desired.PAUSED):
        return None
    return _with_task(vm, ask, TaskKind.PAUSE, Desired.PAUSED)


def resume(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict, Busy"""
    if _under_way(vm, ask, TaskKind.RESUME):
        return None
    if status_of(vm) is MachineStatus.RUNNING and _is_so(vm, Desired.RUNNING):
        return None
    if status_of(vm) not in STILL and status_of(vm) is not MachineStatus.RUNNING:
        raise _conflict(vm, "resume", "paused", f"novacron vm start {vm.name}")
    return _with_task(vm, ask, TaskKind.RESUME, Desired.RUNNING)


def park(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict: it does not run, or has cards. :raise Unsupported: not made for it. :raise Busy"""
    if _under_way(vm, ask, TaskKind.PARK):
        return None
    if status_of(vm) is MachineStatus.PARKED:
        return None
    if status_of(vm) not in (MachineStatus.RUNNING, MachineStatus.PAUSED):
        raise _conflict(vm, "park", "running", f"novacron vm start {vm.name}")
    runs = running_spec(vm)
    if not runs.shared_memory:
        reason = Reason("memory.not_shared", "its memory is its own", vm.name, "make it with shared_memory")
        raise Unsupported(f"{vm.name} cannot be parked: it does not run with shared memory", [reason])
    if runs.nics:
        remedy = f"novacron vm nic remove {vm.name} {runs.nics[0].id}"
        reason = Reason("nics.present", "copies would share its addresses", vm.name, remedy)
        raise StateConflict(f"{vm.name} cannot be parked: it has network cards", [reason])
    return _with_task(vm, ask, TaskKind.PARK, vm.desired)


def delete(vm: Vm, ask: Ask) -> Vm | None:
    """:raise StateConflict: it is not stopped and `force` is not asked for. :raise Busy"""
    if vm.desired is Desired.DELETED or _under_way(vm, ask, TaskKind.DELETE):
        return None
    if status_of(vm) not in ENDED and not ask.force:
        raise _conflict(vm, "delete", "stopped", f"stop it first, or: novacron vm delete --force {vm.name}")
    return _with_task(vm, ask, TaskKind.DELETE, Desired.DELETED)


def check_free(vm: Vm, verb: str) -> None:
    """:raise StateConflict: it is being deleted or its node is lost. :raise Busy: a migration holds it."""
    if vm.desired is Desired.DELETED:
        raise _conflict(vm, verb, "not being deleted", "")
    if vm.migration_id:
        what = "rehearsal" if vm.labels.get(rehearsal.LABEL) == vm.migration_id else "migration"
        cancel = "migration rehearsal cancel" if what == "rehearsal" else "migration cancel"
        raise Busy(
            f"cannot {verb} {vm.name}: {what} {vm.migration_id} holds it",
            [
                Reason(
                    "vm.migrating",
                    f"a {what} holds it",
                    subject=vm.migration_id,
                    remedy=f"wait until it has ended, or: novacron {cancel} {vm.migration_id}",
                )
            ],
        )
    if vm.node_lost:
        raise _conflict(vm, verb, "seen by its node", "its node does not answer: bring the node back")


def _under_way(vm: Vm, ask: Ask, kind: TaskKind, *same: TaskKind) -> bool:
    """Whether this very work is being done already. :raise Busy: other work is, and is not to be pushed aside."""
    check_free(vm, kind.value)
    if vm.task is None:
        return False
    if vm.task.kind in (kind, *same) and (vm.task.force or not ask.force):
        return True
    if ask.force:
        return False
    raise Busy(
        f"cannot {kind.value} {vm.name}: its task {vm.task.kind.value} is under way",
        [
            Reason(
                "vm.task_under_way",
                f"{vm.task.kind.value} was asked for by {vm.task.requested_by or 'someone'}",
                subject=vm.task.id,
                remedy="wait until it has ended; stop, restart and delete with force push it aside",
            )
        ],
    )


def _is_so(vm: Vm, desired: Desired) -> bool:
    return vm.desired is desired and vm.problem is None and vm.task is None


def _with_task(vm: Vm, ask: Ask, kind: TaskKind, desired: Desired) -> Vm:
    task = Task(
        id=ask.task_id,
        kind=kind,
        requested_at=ask.now,
        requested_by=ask.by,
        force=ask.force,
        deadline_s=ask.deadline_s,
    )
    return msgspec.structs.replace(vm, desired=desired, task=task, problem=None, updated_at=ask.now)


def refuse_state(vm: Vm, verb: str, required: str, remedy: str) -> NoReturn:
    """:raise StateConflict: the VM must be `required`, and is not."""
    raise _conflict(vm, verb, required, remedy)


def _conflict(vm: Vm, verb: str, required: str, remedy: str) -> StateConflict:
    seen = state_of(vm).value
    reason = Reason("state.conflict", f"state is {seen}", vm.name, remedy or f"wait until it is {required}")
    return StateConflict(f"cannot {verb} {vm.name}: it is {seen}, and must be {required}", [reason])
