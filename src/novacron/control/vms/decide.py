"""What a VM needs next, and what a report means for it: pure functions over its record."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from novacron.control.networks.states import UNWIRED, Wiring
from novacron.control.vms import hardware
from novacron.errors import NovaCronError, Reason
from novacron.model.image import FileRole, Image
from novacron.model.machine import ENDED, BootFiles, MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.pool import PoolSpec
from novacron.model.vm import Desired, Pins, Problem, Task, TaskKind, Vm, VmSpec, is_broken, is_wanted, status_of

GUEST_SHUTDOWN = "guest_shutdown"
"""The reason in a report when the guest powered itself off."""

OTHERS = frozenset({TaskKind.SNAPSHOT, TaskKind.REVERT, TaskKind.REHEARSE})
"""Tasks that hold the VM while workers of their own do them."""

BESIDE = frozenset({TaskKind.ADJUST, TaskKind.SNAPSHOT, TaskKind.REHEARSE})
"""Tasks that do not end a machine: an end seen meanwhile is one that nobody asked for."""


class Start(msgspec.Struct, frozen=True):
    """Boot it on its node."""


class Stop(msgspec.Struct, frozen=True):
    mode: StopMode
    deadline_s: float


class Pause(msgspec.Struct, frozen=True):
    """Stand still, memory kept."""


class Resume(msgspec.Struct, frozen=True):
    """Go on."""


class Adjust(msgspec.Struct, frozen=True):
    """Make what runs as the spec now says."""


class Park(msgspec.Struct, frozen=True):
    """Keep its memory for copies, and end it."""


class Remove(msgspec.Struct, frozen=True):
    """Delete it and its volumes from its node, then its record."""


class Forget(msgspec.Struct, frozen=True):
    """Delete its record: no node holds anything of it."""


class Halfway(msgspec.Struct, frozen=True):
    """A restart has ended its first half; record that."""


class Done(msgspec.Struct, frozen=True):
    """It is as the task wanted: clear the task."""


Action = Start | Stop | Pause | Resume | Park | Adjust | Remove | Forget | Halfway | Done


def next_action(vm: Vm) -> Action | None:
    """What brings the VM nearer to what is desired; None: nothing to do, or not ours to do now.

    Work is done only while a task is recorded: a machine that ended by itself is not started again and again.
    """
    if vm.migration_id or vm.node_lost or vm.task is None or vm.task.kind in OTHERS:
        return None
    status = status_of(vm)
    if vm.desired is Desired.DELETED:
        if not vm.node_id:
            return Forget()
        return Remove() if status in ENDED else Stop(StopMode.FORCED, 0.0)
    if vm.task.kind is TaskKind.RESTART and not vm.task.halted:
        return Halfway() if status in ENDED else _stop(vm.task)
    if vm.task.kind is TaskKind.PARK:
        return Done() if status in ENDED else Park()
    if vm.task.kind is TaskKind.ADJUST:
        return Done() if status in ENDED else Adjust()
    return _towards(vm.desired, status, vm.task)


def _towards(desired: Desired, status: MachineStatus, task: Task) -> Action:
    if desired is Desired.STOPPED:
        return Done() if status in ENDED else _stop(task)
    if status in ENDED:
        return Start()
    if desired is Desired.PAUSED:
        return Pause() if status is MachineStatus.RUNNING else Done()
    return Done() if status is MachineStatus.RUNNING else Resume()


def _stop(task: Task) -> Stop:
    return Stop(StopMode.FORCED if task.force else StopMode.GRACEFUL, task.deadline_s)


def speaks_for(vm: Vm, node_id: str, report: MachineReport) -> bool:
    """Whether a report is about the VM as owned now: by this node, under this generation, held by no migration."""
    return vm.node_id == node_id and vm.generation == report.generation and not vm.migration_id


def observed(vm: Vm, report: MachineReport, now: datetime.datetime) -> Vm:
    """The record after its owner reported. An end nobody asked for is judged here, once.

    A guest that powered itself off is wanted off from then on; a crash is a problem that a person sees.
    """
    if vm.observed == report:
        return vm
    before = status_of(vm)
    more_let_go = vm.observed is not None and report.let_go > vm.observed.let_go
    vm = msgspec.structs.replace(vm, observed=report, pins=_pinned(vm.pins, report), updated_at=now)
    if report.status is MachineStatus.RUNNING and vm.parent_id:  # it has begun: from now on it boots as any other
        vm = msgspec.structs.replace(vm, parent_id="")
    if more_let_go and report.status is before:
        return hardware.look_again(vm, f"{vm.id}-{report.let_go}", now)
    if report.status is before or (vm.task is not None and vm.task.kind not in BESIDE):
        return vm
    if report.status is MachineStatus.STOPPED and vm.desired is not Desired.DELETED:
        return msgspec.structs.replace(vm, desired=Desired.STOPPED, problem=None)
    if report.status is MachineStatus.CRASHED:
        return with_problem(vm, "machine.crashed", report.reason, f"novacron vm start {vm.name}", now)
    if report.status is MachineStatus.ABSENT and is_wanted(vm):
        return with_problem(vm, "machine.lost", "its node no longer has it", f"novacron vm start {vm.name}", now)
    if report.status is MachineStatus.STALLED:
        if report.full_volumes:
            where = f"make room in the pool of volume {', '.join(report.full_volumes)}: it goes on by itself"
            return with_problem(vm, "disk.full", report.reason, where, now)
        return with_problem(vm, "machine.stalled", report.reason, f"make room, then: novacron vm resume {vm.name}", now)
    if report.status is MachineStatus.RUNNING and is_broken(vm):
        return msgspec.structs.replace(vm, problem=None)
    return vm


def _pinned(pins: Pins, report: MachineReport) -> Pins:
    return Pins(
        machine_type=pins.machine_type or report.machine_type,
        cpu_model=pins.cpu_model or report.cpu_model,
    )


def with_problem(vm: Vm, code: str, message: str, remedy: str, now: datetime.datetime) -> Vm:
    """The record that says what is wrong with it."""
    return msgspec.structs.replace(vm, problem=Problem(code=code, message=message, remedy=remedy, at=now))


def task_failed(vm: Vm, task_id: str, error: NovaCronError, now: datetime.datetime) -> Vm:
    """The record after its task met a refusal: the task is over, the problem says why.

    A machine that was not parked runs as before: the problem is a refusal, no error.
    """
    if vm.task is None or vm.task.id != task_id:
        return vm
    reasons = "".join(f"; {reason.message}" for reason in error.reasons if isinstance(reason, Reason))
    remedy = next((reason.remedy for reason in error.reasons if reason.remedy), f"novacron vm show {vm.name}")
    refused = vm.task.kind is TaskKind.PARK and status_of(vm) in (MachineStatus.RUNNING, MachineStatus.PAUSED)
    problem = Problem(code=error.code, message=f"{error.message}{reasons}", remedy=remedy, at=now, refused=refused)
    return msgspec.structs.replace(vm, task=None, problem=problem, updated_at=now)


def task_done(vm: Vm, task_id: str, now: datetime.datetime) -> Vm:
    """The record after its task reached what was desired; what was wished of its hardware meanwhile is its next task.

    An adjustment that found no machine to adjust says nothing of how the machine ended. One that is parked is wanted
    off from then on, not before: until its memory is kept it may have to run on.
    """
    if vm.task is None or vm.task.id != task_id:
        return vm
    problem = vm.problem if vm.task.kind is TaskKind.ADJUST else None
    desired = Desired.STOPPED if vm.task.kind is TaskKind.PARK else vm.desired
    return hardware.settle(msgspec.structs.replace(vm, desired=desired, problem=problem), now)


def booting(vm: Vm) -> Vm:
    """The record just before its machine is started: what it is started with is kept."""
    return msgspec.structs.replace(vm, booted=vm.spec, pending=(), dimms_mib=())


def machine_spec(
    vm: Vm,
    image: Image,
    wished: VmSpec | None = None,
    *,
    wiring: Wiring = UNWIRED,
    pools: tuple[PoolSpec, ...] = (),
) -> MachineSpec:
    """Everything a node must be told to run it, as it runs or is about to; `wished`: as it is to run instead.

    wiring: the networks of its cards, and what may pass each card. pools: see control.pools.reach.specs_of.
    """
    spec = wished or vm.booted or vm.spec
    digests: Mapping[FileRole, str] = {file.role: file.digest for file in image.files}
    kernel = digests.get(FileRole.KERNEL, "")
    cmdline = " ".join(part for part in (image.cmdline, spec.kernel_cmdline) if part) if kernel else ""
    return MachineSpec(
        vm_id=vm.id,
        generation=vm.generation,
        vcpus=spec.vcpus,
        memory_mib=spec.memory_mib,
        machine=spec.machine,
        machine_type=vm.pins.machine_type,
        cpu_model=vm.pins.cpu_model,
        firmware=spec.firmware,
        boot=BootFiles(
            kernel=kernel,
            initrd=digests.get(FileRole.INITRD, ""),
            firmware=digests.get(FileRole.FIRMWARE, ""),
            cmdline=cmdline,
        ),
        disks=spec.disks,
        pools=pools,
        nics=tuple(msgspec.structs.replace(nic, filter=wiring.filters.get(nic.id)) for nic in spec.nics),
        networks=tuple(network.spec for network in wiring.networks),
        cloud_init=spec.cloud_init,
        guest_agent=spec.guest_agent,
        isolation_slot=vm.isolation_slot,
        max_vcpus=spec.max_vcpus,
        max_memory_mib=spec.max_memory_mib,
        dimms_mib=vm.dimms_mib,
        media=spec.media,
        tpm=spec.tpm,
        secure_boot=spec.secure_boot,
        shared_memory=spec.shared_memory,
        parent_id=vm.parent_id,
        hostname=vm.name,
        ha=spec.ha,
    )
