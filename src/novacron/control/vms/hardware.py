"""A VM's hardware while it runs: what a changed spec asks for, what came of it, and where devices are plugged in. Pure.

wish      a changed spec → the record, with an ADJUST task when a machine runs
adjusted  a node's answer → the record: what runs now, and why the rest waits
free_*    the slot a device gets when it is attached
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from novacron.control.vms.asked import Ask
from novacron.errors import Conflict, Reason
from novacron.model.machine import (
    BOARD_DISKS,
    BOARD_NICS,
    DRIVES,
    ENDED,
    HOT_DISKS,
    HOT_NICS,
    HOT_SLOT,
    MachineSpec,
    MachineStatus,
)
from novacron.model.vm import Task, TaskKind, Vm, VmSpec, status_of
from novacron.wire.agent import Adjusted

STARTS_WITH = {
    "machine": "its virtual hardware",
    "firmware": "its firmware",
    "kernel_cmdline": "its kernel's command line",
    "cloud_init": "its cloud-init documents",
    "guest_agent": "its channel for the guest agent",
    "max_vcpus": "how many vCPUs it can grow to",
    "max_memory_mib": "how much memory it can grow to",
    "tpm": "its TPM",
    "secure_boot": "Secure Boot",
    "shared_memory": "its memory",
    "ha": "what becomes of it when its node fails",
}
"""Fields of a spec that nothing changes while it runs."""

LIVE = ("size_bytes", "qos", "digest", "boot_order")
"""What a node may say of a disk, card or drive that runs otherwise than it was told."""

UNTOLD = ("vcpus", "memory_mib", "disks", "nics", "media")


Part = TypeVar("Part", bound=msgspec.Struct)


def wish(vm: Vm, spec: VmSpec, ask: Ask) -> Vm:
    """The record with another spec. What runs is to be made like it; other work under way is done first.

    When nothing runs the spec counts from the next start.
    """
    if spec == vm.spec:
        return vm
    vm = msgspec.structs.replace(vm, spec=spec, pending=(), updated_at=ask.now)
    if not _runs(vm) or (vm.task is not None and vm.task.kind is not TaskKind.ADJUST):
        return vm  # `decide.task_done` looks again
    return _with_adjustment(vm, ask.task_id, ask.by, ask.now)


def settle(vm: Vm, now: datetime.datetime) -> Vm:
    """The record when a task has ended: what was wished meanwhile is next."""
    ended = vm.task
    vm = msgspec.structs.replace(vm, task=None, updated_at=now)
    if ended is None or ended.kind is TaskKind.ADJUST or vm.pending or not _runs(vm) or vm.booted == vm.spec:
        return vm
    return _with_adjustment(vm, ended.id, ended.requested_by, now)


def look_again(vm: Vm, task_id: str, now: datetime.datetime) -> Vm:
    """The record when a guest has let go of something it was asked for in vain: what waited may be done."""
    if vm.task is not None or not vm.pending or not _runs(vm):
        return vm
    return _with_adjustment(vm, task_id, "", now)


def adjusted(vm: Vm, task_id: str, asked: tuple[VmSpec, MachineSpec], answer: Adjusted, now: datetime.datetime) -> Vm:
    """The record after a node has done what it could. asked: the wish, and what the node was told of it.

    What was told and not done stays as it was booted; what an answer says of anything else is not believed.
    """
    if vm.task is None or vm.task.id != task_id or vm.booted is None:
        return vm
    runs = _merged(vm.booted, *asked, answer.now)
    pending = (*answer.pending, *_untold(runs, vm.spec, answer.pending))
    problem = None if answer.report.status in (MachineStatus.RUNNING, MachineStatus.PAUSED) else vm.problem
    changes = {"booted": runs, "dimms_mib": answer.now.dimms_mib, "pending": pending, "problem": problem}
    return msgspec.structs.replace(vm, task=None, updated_at=now, **changes)


def _merged(booted: VmSpec, wished: VmSpec, told: MachineSpec, runs: MachineSpec) -> VmSpec:
    return msgspec.structs.replace(
        booted,
        vcpus=runs.vcpus,
        memory_mib=runs.memory_mib,
        disks=_parts(booted.disks, wished.disks, told.disks, runs.disks, "volume_id"),
        nics=_parts(booted.nics, wished.nics, told.nics, runs.nics, "id"),
        media=_parts(booted.media, wished.media, told.media, runs.media, "id"),
    )


def _parts(
    booted: Iterable[Part], wished: Iterable[Part], told: Iterable[Part], runs: Iterable[Part], key: str
) -> tuple[Part, ...]:
    """What runs, in the record's own words: a node is told more of a card, and less, than the record holds.

    One that runs as the node was told is as wished; one that runs otherwise is as it was (a new one: as wished), with
    what the node may have changed of it since: a size, a limit, a medium, a place in the starting order.
    """
    named = {getattr(part, key): part for part in wished}
    before = {getattr(part, key): part for part in booted}
    as_told = {getattr(part, key): part for part in told}
    found = []
    for part in runs:
        name = getattr(part, key)
        if as_told.get(name) == part and name in named:
            found.append(named[name])
        elif name in before:
            found.append(_changed(before[name], part))
        elif name in named:
            found.append(_changed(named[name], part))
    return tuple(found)


def _changed(before: Part, runs: Part) -> Part:
    live = {field: getattr(runs, field) for field in LIVE if hasattr(runs, field)}
    return msgspec.structs.replace(before, **live)


def _untold(runs: VmSpec, spec: VmSpec, told: Iterable[Reason]) -> Iterable[Reason]:
    """Reasons for what differs and the node gave none for."""
    for field, name in STARTS_WITH.items():
        if getattr(runs, field) != getattr(spec, field):
            yield Reason("restart.needed", f"{name} changes at the next start", field, "novacron vm restart")
    if not tuple(told):
        for field in UNTOLD:
            if getattr(runs, field) != getattr(spec, field):
                yield Reason("restart.needed", f"its {field} count from the next start", field, "novacron vm restart")


def _runs(vm: Vm) -> bool:
    return vm.booted is not None and status_of(vm) not in ENDED


def _with_adjustment(vm: Vm, task_id: str, by: str, now: datetime.datetime) -> Vm:
    task = Task(id=task_id, kind=TaskKind.ADJUST, requested_at=now, requested_by=by)
    return msgspec.structs.replace(vm, task=task)


# -- slots -------------------------------------------------------------------------------------------------


def free_disk_slot(vm: Vm) -> int:
    """Where a disk that is attached now is plugged in: a place it can leave as it runs, if one is left.

    :raise Conflict: the machine is full.
    """
    return _free(vm, "disks", HOT_DISKS, BOARD_DISKS, "disks")


def free_nic_slot(vm: Vm) -> int:
    """As `free_disk_slot`, for a network card."""
    return _free(vm, "nics", HOT_NICS, BOARD_NICS, "network cards")


def free_drive_slot(vm: Vm) -> int:
    """As `free_disk_slot`, for a CD-ROM drive: all are on the board."""
    return _free(vm, "media", 0, DRIVES, "CD-ROM drives")


def _free(vm: Vm, field: str, hot: int, board: int, name: str) -> int:
    specs = [spec for spec in (vm.spec, vm.booted) if spec is not None]
    taken = {part.slot or at for spec in specs for at, part in enumerate(getattr(spec, field), 1)}
    places: tuple[int, ...] = (*range(HOT_SLOT, HOT_SLOT + hot), *range(1, board + 1))
    for slot in places:
        if slot not in taken:
            return slot
    reason = Reason("slots.short", f"it has {len(taken)} {name}", vm.name, "detach one first")
    raise Conflict(f"{vm.name} takes no more {name}", [reason])
