"""Whether a VM may be moved, and what its next node must have: pure; every refusal is a reason to act on."""

from __future__ import annotations

from novacron.control.scheduler.placement import Candidate, Need
from novacron.control.scheduler.snapshot import driver_of
from novacron.errors import Busy, Reason, StateConflict, Unsupported
from novacron.model.machine import Firmware, MachineStatus, NetworkKind
from novacron.model.migration import MigrationKind
from novacron.model.vm import Desired, Vm, VmSpec, features_of, running_spec, state_of, status_of

LIVE_FEATURES = (
    "migrate.events",
    "migrate.return-path",
    "migrate.pause-before-switchover",
    "migrate.late-block-activate",
)
"""What the drivers on both sides must have found in their hypervisor for memory to move (DESIGN §7)."""

POSTCOPY = "postcopy"
"""The same for post-copy (DriverFacts.features)."""

STREAM_PROXY = "stream-proxy"
PARALLEL_CHANNELS = "parallel-channels"
MAX_CHANNELS = 8
CPUS_A_CHANNEL = 4  # encryption takes most of one while memory is sent
"""The same for streams through the agents' stream proxies."""

AT_REST = (MachineStatus.ABSENT, MachineStatus.STOPPED, MachineStatus.CRASHED)
STREAMED_FROM = (MachineStatus.RUNNING, MachineStatus.PAUSED)


def is_at_rest(vm: Vm) -> bool:
    """Whether nothing of it runs and nothing is to."""
    return vm.desired is Desired.STOPPED and status_of(vm) in AT_REST


def check_vm(vm: Vm, kind: MigrationKind | None) -> None:
    """Whether it stands where a move of that kind can begin. kind None: of any. :raise StateConflict, Busy"""
    if vm.migration_id:
        raise Busy(
            f"cannot migrate {vm.name}: migration {vm.migration_id} moves it already",
            [Reason("vm.migrating", "it is being moved", subject=vm.migration_id, remedy="wait until it has ended")],
        )
    if vm.task is not None:
        raise Busy(
            f"cannot migrate {vm.name}: its task {vm.task.kind.value} is under way",
            [Reason("vm.task_under_way", vm.task.kind.value, subject=vm.task.id, remedy="wait until it has ended")],
        )
    if not vm.node_id:
        raise StateConflict.of(f"VM {vm.name}", "placed on no node yet", ("started once",), "migrate")
    if vm.parent_id:
        raise StateConflict.of(f"VM {vm.name}", "still to begin as a copy", ("started once",), "migrate")
    if vm.desired is Desired.DELETED or vm.node_lost or not _stands_for(vm, kind):
        raise StateConflict.of(f"VM {vm.name}", state_of(vm).value, _states(kind), "migrate")


def check_may_leave(vm: Vm) -> None:
    """Whether its hypervisor would send it. :raise StateConflict: only once it has run again."""
    if vm.observed is not None and vm.observed.resume_first:
        why = "it was taken back from a move while it was paused, and its hypervisor sends it again once it has run"
        remedy = f"novacron vm resume {vm.name} (it may be paused again then), or move it when it runs or is stopped"
        reason = Reason("vm.resume_first", why, subject=vm.name, remedy=remedy)
        raise StateConflict(f"cannot migrate {vm.name}: {why}", [reason])


def _stands_for(vm: Vm, kind: MigrationKind | None) -> bool:
    if kind is MigrationKind.COLD:
        return is_at_rest(vm) or status_of(vm) is MachineStatus.RUNNING
    return status_of(vm) in STREAMED_FROM or (kind is None and is_at_rest(vm))


def _states(kind: MigrationKind | None) -> tuple[str, ...]:
    if kind is MigrationKind.COLD:
        return ("running", "stopped")
    return ("running", "paused") if kind is not None else ("running", "paused", "stopped")


def need_of(vm: Vm, *, streams: bool) -> Need:
    """What the machine, without its disks, asks of its next node.

    streams: its memory comes too, so it must find the same there.
    """
    spec = running_spec(vm)
    return Need(
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        machine=vm.spec.machine,
        bridges=tuple(sorted({nic.bridge for nic in vm.spec.nics if nic.network is NetworkKind.BRIDGE})),
        overlay=any(nic.network is NetworkKind.OVERLAY for nic in spec.nics),
        features=(*(LIVE_FEATURES if streams else ()), *features_of(spec)),
        machine_type=vm.pins.machine_type,
        cpu_model=vm.pins.cpu_model,
        accelerator=vm.observed.accelerator if vm.observed and streams else "",
        not_nodes=(vm.node_id,),
        labels=vm.labels,
        wishes=vm.placement,
    )


def is_paused(vm: Vm) -> bool:
    """Whether somebody has it stand still, so that it is to do so wherever it is."""
    return vm.desired is Desired.PAUSED and status_of(vm) is MachineStatus.PAUSED


def has_belongings(spec: VmSpec) -> bool:
    """Whether there are files of it beside its disks, in its node's own pool: UEFI variables, a TPM's state."""
    return spec.firmware is Firmware.UEFI or spec.tpm


def source_of(vm: Vm, nodes: list[Candidate]) -> Candidate:
    """The node it is on. :raise StateConflict: that is not known."""
    source = next((one for one in nodes if one.node.id == vm.node_id), None)
    if source is None:
        raise StateConflict.of(f"VM {vm.name}", "on a node that is not known", ("on a known node",), "migrate")
    return source


def check_source(vm: Vm, source: Candidate, need: Need) -> None:
    """:raise Unsupported: its node cannot send it."""
    missing = lacking(source, need.driver, need.features)
    if missing:
        raise Unsupported(
            f"cannot migrate {vm.name}: its node {source.node.name} cannot send running machines",
            [
                Reason("driver.feature_missing", f"its hypervisor lacks {feature}", source.node.name, "renew it there")
                for feature in missing
            ],
        )


def lacking(node: Candidate, driver_name: str, features: tuple[str, ...]) -> tuple[str, ...]:
    """Which of the features its driver does not have."""
    driver = driver_of(node, driver_name)
    return tuple(feature for feature in features if driver is None or feature not in driver.features)


def no_proxies(source: Candidate, target: Candidate, driver_name: str) -> str:
    """Why a stream between the two cannot go through stream proxies; empty: it can."""
    without = [one.node.name for one in (source, target) if lacking(one, driver_name, (STREAM_PROXY,))]
    return f"there is none on {' and '.join(without)}" if without else ""


def channels(source: Candidate, target: Candidate, driver_name: str) -> int:
    """Connections that memory goes over at once between the two: 1, or by what the smaller of them has to spare."""
    both = (source, target)
    if any(lacking(one, driver_name, (PARALLEL_CHANNELS,)) for one in both):
        return 1
    return channels_by(min(one.node.facts.cpu_count if one.node.facts else 0 for one in both))


def channels_by(cpus: int) -> int:
    """Connections for a stream whose slower end has so many CPUs."""
    return max(2, min(MAX_CHANNELS, cpus // CPUS_A_CHANNEL))


def no_postcopy(source: Candidate, target: Candidate, driver_name: str) -> str:
    """Why post-copy cannot be had between the two; empty: it can."""
    without = [one.node.name for one in (source, target) if lacking(one, driver_name, (POSTCOPY,))]
    return f"post-copy is not usable on {' and '.join(without)}" if without else ""
