"""Which VMs could go where, now and after changes somebody thinks of making, and what to do before. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.nodes.baseline import MOST_VMS, Baseline, accelerator_of, cpu_baseline, takers
from novacron.control.nodes.renewed import renewed
from novacron.errors import Reason
from novacron.model.node import Node
from novacron.model.vm import Vm
from novacron.wire.rest.nodes import CpuChanges


class VmAfter(msgspec.Struct, frozen=True, kw_only=True):
    """See wire.rest.nodes.VmAfter."""

    vm: str
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    could_now: list[str]
    could: list[str]
    cannot: list[Reason]
    can_stay: bool
    was_locked_in: bool
    is_locked_in: bool
    remedy: str


class CpuBaselinePlan(msgspec.Struct, frozen=True, kw_only=True):
    """See wire.rest.nodes.CpuBaselinePlan."""

    baselines: list[Baseline]
    vms: list[VmAfter]
    vms_left_off: int
    vms_unchanged: int
    unknown: list[str]
    assumed: list[str]


def afterwards(nodes: Sequence[Node], vms: Sequence[Vm], changes: CpuChanges) -> CpuBaselinePlan:
    """What would become of every VM. :raise InvalidInput: changes that cannot be thought through; names the field."""
    now, then = sorted(nodes, key=lambda node: node.name), renewed(nodes, vms, changes)
    left = sorted(then.nodes, key=lambda node: node.name)
    told = [_told(before, after, now, left) for before, after in zip(vms, then.vms, strict=True)]
    found = sorted((one for one in told if one is not None), key=_gravity)
    baseline = cpu_baseline(left, ())
    return CpuBaselinePlan(
        baselines=baseline.baselines,
        vms=found[:MOST_VMS],
        vms_left_off=max(0, len(found) - MOST_VMS),
        vms_unchanged=len(told) - len(found),
        unknown=baseline.unknown,
        assumed=then.assumed,
    )


def _gravity(one: VmAfter) -> tuple[bool, bool, bool, str]:
    """Those that could nowhere be started come first, then those newly locked in, then those that were before."""
    return one.can_stay or bool(one.could), not one.is_locked_in, one.was_locked_in, one.vm


def _told(before: Vm, after: Vm, now: Sequence[Node], then: Sequence[Node]) -> VmAfter | None:
    """None: nothing changes for it, and it is free to go."""
    if not after.pins.cpu_model and not after.pins.machine_type:
        return None
    could_now, _ = takers(before, (node for node in now if node.id != before.node_id))
    could, cannot = takers(after, (node for node in then if node.id != after.node_id))
    own = [node for node in then if node.id == after.node_id]
    kept, lost = takers(after, own)
    can_stay = bool(kept) or any(node.facts is None for node in own)
    if could == could_now and could and (can_stay or not after.node_id):
        return None
    here = next((node.name for node in now if node.id == before.node_id), None)
    told = VmAfter(
        vm=after.name,
        vm_id=after.id,
        node=here,
        cpu_model=after.pins.cpu_model,
        machine_type=after.pins.machine_type,
        accelerator=accelerator_of(after),
        could_now=could_now,
        could=could,
        cannot=[*lost, *cannot],
        can_stay=can_stay,
        was_locked_in=not could_now,
        is_locked_in=not could,
        remedy="",
    )
    return msgspec.structs.replace(told, remedy=_remedy(told))


def _remedy(told: VmAfter) -> str:
    """What to do about it; empty: nothing has to be done."""
    lost = [name for name in told.could_now if name not in told.could]
    if not told.can_stay:
        if refuge := next((name for name in told.could if name in told.could_now), ""):
            return f"before the change: novacron vm migrate {told.vm} --to {refuge}"
        if told.could:
            return f"change {told.could[0]} first, then: novacron vm migrate {told.vm} --to {told.could[0]}"
        keeping = [*([told.node] if told.node else []), *lost]
        return f"leave {' or '.join(keeping)} as it is, or {told.vm} can be started nowhere" if keeping else ""
    if told.is_locked_in and lost:
        return f"leave {' or '.join(lost)} as it is, or {told.vm} can leave {told.node or 'its node'} no more"
    return f"add a node with {_pins(told)}" if told.is_locked_in else ""


def _pins(told: VmAfter) -> str:
    return " and ".join(part for part in (told.cpu_model, told.machine_type, told.accelerator) if part)
