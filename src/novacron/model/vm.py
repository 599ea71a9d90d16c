"""A VM: what was asked (spec, desired), what is seen (observed) and what is being done (task), kept apart."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.errors import Reason
from novacron.model.ha import Protection
from novacron.model.machine import (
    ENDED,
    CloudInit,
    Disk,
    Firmware,
    MachineKind,
    MachineReport,
    MachineStatus,
    Media,
    NetworkKind,
    Nic,
)
from novacron.model.placement import NO_WISHES, PlacementWishes


class VmType(StrEnum):
    KVM = "kvm"


class VmState(StrEnum):
    """The one word people see; derived by `state_of`, never stored."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    MIGRATING = "migrating"
    ERROR = "error"
    DELETING = "deleting"
    UNKNOWN = "unknown"
    PARKED = "parked"


class Desired(StrEnum):
    """What the owner of the VM wants it to be."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


class TaskKind(StrEnum):
    CREATE = "create"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"
    ADJUST = "adjust"  # make what runs as the spec now says
    SNAPSHOT = "snapshot"  # take or delete a snapshot; the snapshot's record says which
    REVERT = "revert"  # go back to a snapshot
    REHEARSE = "rehearse"  # have its disks copied for a rehearsal; the rehearsal's record says which
    PARK = "park"  # keep its memory for copies, and end it


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The work under way on a VM; at most one.

    force: do not ask the guest; deadline_s: how long a graceful stop may take before force is used;
    halted: (restart only) the first half is done.
    """

    id: str
    kind: TaskKind
    requested_at: datetime.datetime
    requested_by: str = ""
    force: bool = False
    deadline_s: float = 60.0
    halted: bool = False


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Why the VM is not as desired: a stable code, a sentence, what a person can do.

    refused: what was asked was not done, and the VM is as it was: its state is what is seen of it, not an error.
    """

    code: str
    message: str
    at: datetime.datetime
    remedy: str = ""
    refused: bool = False


class VmSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What was asked for. Sizes: vcpus in virtual CPUs, memory in MiB, disks in bytes.

    kernel_cmdline is appended to the image's own (direct-kernel images only). max_vcpus, max_memory_mib: how far it
    can grow while it runs (0: not at all). media: CD-ROM drives. tpm: a TPM 2.0 of its own. secure_boot: UEFI that
    starts only what is signed. shared_memory: it may be parked, for copies that share its memory. ha: what is to become
    of it when its node fails; counts from the next start, as its machine has a deadline or has none.
    """

    image_id: str
    vcpus: int = 1
    memory_mib: int = 512
    type: VmType = VmType.KVM
    machine: MachineKind = MachineKind.Q35
    firmware: Firmware = Firmware.AUTO
    kernel_cmdline: str = ""
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    cloud_init: CloudInit | None = None
    guest_agent: bool = False
    max_vcpus: int = 0
    max_memory_mib: int = 0
    media: tuple[Media, ...] = ()
    tpm: bool = False
    secure_boot: bool = False
    shared_memory: bool = False
    ha: Protection = Protection()


class Pins(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Virtual hardware chosen at the first start and kept, so that upgrades and moves never change it."""

    machine_type: str = ""
    cpu_model: str = ""


class Vm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The record of one VM.

    node_id: its one owner (empty: placed nowhere yet); generation: of that ownership, grows when the owner
    changes; migration_id: the migration that holds it, empty otherwise; snapshot_id: the one its disks stand on
    (the parent of the next), empty: none; parent_id: the parked VM it begins as a copy of, until it has;
    booted: the spec its machine runs with (what it was started with and what was adjusted since; a machine that moves
    moves as it is); pending: why the rest of the spec waits for its next start.
    """

    id: str
    name: str
    spec: VmSpec
    desired: Desired
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    observed: MachineReport | None = None
    task: Task | None = None
    problem: Problem | None = None
    node_id: str = ""
    node_lost: bool = False  # the owner does not answer: what is observed is old
    generation: int = 0
    migration_id: str = ""
    snapshot_id: str = ""
    parent_id: str = ""
    pins: Pins = Pins()
    booted: VmSpec | None = None
    pending: tuple[Reason, ...] = ()
    dimms_mib: tuple[int, ...] = ()  # what part of its memory was plugged in since its start, in that order
    isolation_slot: int = 0
    placement: PlacementWishes = NO_WISHES  # of where it is put from now on


_WHILE: dict[TaskKind, VmState] = {
    TaskKind.CREATE: VmState.CREATING,
    TaskKind.START: VmState.STARTING,
    TaskKind.STOP: VmState.STOPPING,
    TaskKind.DELETE: VmState.DELETING,
}

_SEEN: dict[MachineStatus, VmState] = {
    MachineStatus.ABSENT: VmState.STOPPED,
    MachineStatus.STOPPED: VmState.STOPPED,
    MachineStatus.RUNNING: VmState.RUNNING,
    MachineStatus.PAUSED: VmState.PAUSED,
    MachineStatus.HANDED_OFF: VmState.PAUSED,
    MachineStatus.INCOMING: VmState.PAUSED,
    MachineStatus.STALLED: VmState.ERROR,
    MachineStatus.CRASHED: VmState.ERROR,
    MachineStatus.UNKNOWN: VmState.UNKNOWN,
    MachineStatus.PARKED: VmState.PARKED,
}


def status_of(vm: Vm) -> MachineStatus:
    """What its node last saw of it; `absent` when no node has seen it."""
    return vm.observed.status if vm.observed else MachineStatus.ABSENT


def is_wanted(vm: Vm) -> bool:
    """Whether it is to be there, running or paused."""
    return vm.desired in (Desired.RUNNING, Desired.PAUSED)


def features_of(spec: VmSpec) -> tuple[str, ...]:
    """What its hypervisor must offer beyond the usual, as DriverFacts.features names it."""
    wished = (("tpm", spec.tpm), ("secure-boot", spec.secure_boot), ("network-boot", _needs_network_boot(spec)))
    return tuple(name for name, wanted in wished if wanted)


def _needs_network_boot(spec: VmSpec) -> bool:
    """UEFI has what it needs for that in itself; else each card brings it along."""
    return spec.firmware is not Firmware.UEFI and any(nic.boot_order for nic in spec.nics)


def running_spec(vm: Vm) -> VmSpec:
    """The spec its machine runs with; the wished one when none runs."""
    return vm.booted if vm.booted is not None and status_of(vm) not in ENDED else vm.spec


def cards_of(vm: Vm) -> tuple[Nic, ...]:
    """Its cards on overlay networks: the wished ones, and those it runs with that are wished no more."""
    nics, runs_with = vm.spec.nics, running_spec(vm).nics
    if runs_with != nics:
        wished = {nic.id for nic in nics}
        nics = (*nics, *(nic for nic in runs_with if nic.id not in wished))
    return tuple([nic for nic in nics if nic.network is NetworkKind.OVERLAY])


def running_protection(vm: Vm) -> Protection:
    """What its machine was last ordered to start with: by that it has a deadline, whatever is wished since."""
    return (vm.booted or vm.spec).ha


def state_of(vm: Vm) -> VmState:
    """The word people see, from what is observed, what is being done and what went wrong."""
    if vm.desired is Desired.DELETED:
        return VmState.DELETING
    if vm.node_lost:
        return VmState.UNKNOWN
    if vm.migration_id and status_of(vm) is not MachineStatus.CRASHED:
        return VmState.MIGRATING
    if vm.task is not None:
        if vm.task.kind is TaskKind.RESTART:
            return VmState.STARTING if vm.task.halted else VmState.STOPPING
        if vm.task.kind in _WHILE:
            return _WHILE[vm.task.kind]
    return VmState.ERROR if is_broken(vm) else _SEEN[status_of(vm)]


def is_broken(vm: Vm) -> bool:
    """Whether something is wrong with it. That something else was asked of it and refused is not."""
    return vm.problem is not None and not vm.problem.refused
