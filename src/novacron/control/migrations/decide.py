"""Whether a VM may be moved, and where to: pure; changes nothing, and every refusal is a reason to act on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.scheduler.placement import Candidate, Limits, Need, choose
from novacron.control.scheduler.snapshot import PoolNeed, driver_of
from novacron.errors import Busy, InvalidInput, NoRoom, NovaCronError, Reason, StateConflict, Unsupported
from novacron.model.machine import Firmware, MachineStatus, NetworkKind
from novacron.model.migration import STEPS, MigrationKind
from novacron.model.vm import Desired, Vm, VmSpec, features_of, running_spec, state_of, status_of

LIVE_FEATURES = (
    "migrate.events",
    "migrate.return-path",
    "migrate.pause-before-switchover",
    "migrate.late-block-activate",
)
"""What the drivers on both sides must have found in their hypervisor for a live move (DESIGN §7)."""


class Move(msgspec.Struct, frozen=True):
    """A move that may begin; `explanation` says why this target, in sentences."""

    target: str
    explanation: tuple[str, ...]


def check_kind(kind: MigrationKind) -> None:
    """:raise Unsupported: this server cannot do that kind yet."""
    if kind not in STEPS:
        known = ", ".join(sorted(one.value for one in STEPS))
        raise Unsupported(
            f"migrations of kind {kind.value} are not supported yet",
            [Reason("migration.kind", "this kind is not supported", subject="kind", remedy=f"give one of {known}")],
        )


def check_vm(vm: Vm) -> None:
    """Whether it stands where a live move can begin. :raise StateConflict, Busy"""
    if vm.desired is Desired.DELETED or vm.node_lost or status_of(vm) is not MachineStatus.RUNNING:
        raise StateConflict.of(f"VM {vm.name}", state_of(vm).value, ("running",), "migrate")
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


def need_of(vm: Vm, source: Candidate, target_id: str, pools: tuple[PoolNeed, ...] = ()) -> Need:
    """What the machine, as it runs, asks of its next node."""
    facts, spec = source.node.facts, running_spec(vm)
    return Need(
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        machine=vm.spec.machine,
        pool_id=facts.pool_ids[0] if facts and facts.pool_ids and _needs_own_pool(spec) else "",
        pools=pools,
        bridges=tuple(sorted({nic.bridge for nic in vm.spec.nics if nic.network is NetworkKind.BRIDGE})),
        overlay=any(nic.network is NetworkKind.OVERLAY for nic in spec.nics),
        features=(*LIVE_FEATURES, *features_of(spec)),
        machine_type=vm.pins.machine_type,
        cpu_model=vm.pins.cpu_model,
        accelerator=vm.observed.accelerator if vm.observed else "",
        node_id=target_id,
        not_nodes=(vm.node_id,),
    )


def _needs_own_pool(spec: VmSpec) -> bool:
    """Whether part of it lies in the directory its node was started with: a disk, UEFI variables or a TPM's state."""
    return any(not disk.pool_id for disk in spec.disks) or spec.firmware is Firmware.UEFI or spec.tpm


def plan(vm: Vm, nodes: Sequence[Candidate], target_id: str, limits: Limits, pools: tuple[PoolNeed, ...] = ()) -> Move:
    """Where the VM goes: to the target asked for, or (target_id empty) to the best node that can take it.

    :raise InvalidInput: the target is where it runs already.
    :raise StateConflict, Busy: it cannot be moved now. :raise Unsupported: its node cannot send it.
    :raise NoRoom: no node, or not the one asked for, can take it; a reason for each.
    """
    check_vm(vm)
    if target_id == vm.node_id:
        raise InvalidInput.field("target_node", f"{vm.name} runs there already", "name another node, or none")
    source = next((one for one in nodes if one.node.id == vm.node_id), None)
    if source is None:
        raise StateConflict.of(f"VM {vm.name}", "on a node that is not known", ("on a known node",), "migrate")
    need = need_of(vm, source, target_id, pools)
    _check_source(vm, source, need)
    choice = choose(need, nodes, limits)
    if choice.node_id is None:
        raise _refused(vm, choice.refusals, target_id)
    return Move(choice.node_id, _explained(nodes, choice.node_id, target_id))


def _check_source(vm: Vm, source: Candidate, need: Need) -> None:
    driver = driver_of(source, need.driver)
    missing = [feature for feature in need.features if driver is None or feature not in driver.features]
    if missing:
        raise Unsupported(
            f"cannot migrate {vm.name}: its node {source.node.name} cannot send running machines",
            [
                Reason("driver.feature_missing", f"its hypervisor lacks {feature}", source.node.name, "renew it there")
                for feature in missing
            ],
        )


def _refused(vm: Vm, refusals: Sequence[Reason], target_id: str) -> NovaCronError:
    telling = [one for one in refusals if one.code not in ("node.not_asked_for", "node.excluded")]
    told = "; ".join(one.message for one in telling[:5]) or "there is no other node"
    where = "the target cannot take it" if target_id else "no other node can take it"
    return NoRoom(f"cannot migrate {vm.name}: {where}: {told}", telling)


def _explained(nodes: Sequence[Candidate], node_id: str, target_id: str) -> tuple[str, ...]:
    name = next(one.node.name for one in nodes if one.node.id == node_id)
    if target_id:
        return (f"target {name}: asked for",)
    return (f"target {name}: chosen, it scored best of {len(nodes) - 1} other nodes",)
