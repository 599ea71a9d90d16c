"""What the loss of a node would mean: where each of its VMs could be started again, and who finds no room. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from novacron.control.scheduler.placement import Candidate, Limits, Need, choose
from novacron.control.scheduler.snapshot import promised
from novacron.errors import Reason


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A VM of the lost node that is to run. need: of any node it could be started on."""

    vm_id: str
    vm_name: str
    priority: int
    need: Need


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """target_id: where it would be started; empty: nowhere, and `reasons` says why not on any node."""

    vm_id: str
    vm_name: str
    priority: int
    memory_mib: int
    target_id: str = ""
    reasons: tuple[Reason, ...] = ()


def restarts(lost: Iterable[Lost], candidates: Sequence[Candidate], room: Limits) -> tuple[Restart, ...]:
    """One answer for each VM, in the order in which they would be placed. candidates: without the lost node."""
    nodes = {one.node.id: one for one in sorted(candidates, key=lambda one: one.node.name)}
    found = []
    for one in sorted(lost, key=lambda vm: (-vm.priority, -vm.need.memory_mib, vm.vm_name)):
        placed = choose(one.need, list(nodes.values()), room)
        if placed.node_id is not None:
            nodes[placed.node_id] = promised(nodes[placed.node_id], one.need)
        found.append(
            Restart(
                vm_id=one.vm_id,
                vm_name=one.vm_name,
                priority=one.priority,
                memory_mib=one.need.memory_mib,
                target_id=placed.node_id or "",
                reasons=() if placed.node_id is not None else placed.refusals,
            )
        )
    return tuple(found)
