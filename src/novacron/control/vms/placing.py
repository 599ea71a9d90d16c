"""Where VMs go: placed one after the other within a turn, and explained node by node for whoever asks.

One Placing serves one turn (see control.room): it remembers what it promised.
"""

from __future__ import annotations

import msgspec

from novacron.control.pools.reach import needs_of
from novacron.control.room import Room
from novacron.control.scheduler import placement
from novacron.control.scheduler.placement import Candidate, Need, refusals, score_of
from novacron.control.scheduler.snapshot import policy_of
from novacron.control.store.records import Records
from novacron.control.vms import birth
from novacron.errors import NoRoom, Reason
from novacron.model.placement import PlacementPolicy
from novacron.model.vm import Vm

_TOLD = 5


class NodeFit(msgspec.Struct, frozen=True, kw_only=True):
    """See wire.rest.placement.NodeFit."""

    node: str
    node_id: str
    is_here: bool
    can: bool
    score: float | None
    parts: dict[str, float]
    reasons: tuple[Reason, ...]


class PlacementPlan(msgspec.Struct, frozen=True, kw_only=True):
    """See wire.rest.placement.PlacementPlan."""

    vm: str
    vm_id: str | None
    node: str | None
    chosen: str | None
    policy: PlacementPolicy
    nodes: list[NodeFit]


class Placing:
    """`place` and `promise`, one VM after the other; `plan` says what `place` would do, and why."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._draft = room.draft()

    def place(self, name: str, need: Need, leaving: str = "") -> str:
        """The id of the node it goes to. leaving: the VM itself, where it is somewhere and is to be no more.

        :raise NoRoom: no node can take it, with a reason for each.
        """
        if leaving:
            self._draft.without(leaving)
        node_id = self._draft.choose(need)
        if node_id is None:
            choice = placement.choose(self._draft.with_company(need), self._nodes(), self._room.limits)
            told = "; ".join(reason.message for reason in choice.refusals[:_TOLD]) or "there is no node"
            raise NoRoom(f"no node can take {name}: {told}", choice.refusals)
        return node_id

    def refusal(self, need: Need, node_id: str) -> Reason | None:
        """Why this very node cannot take it; None: it can."""
        node = self._room.candidate(node_id)
        if node is None:
            return Reason("node.unknown", "its node is not known")
        return placement.refusal(self._draft.with_company(need), self._draft.seen(node), self._room.limits)

    def promise(self, need: Need, node_id: str, *, runs: bool) -> None:
        """It goes there. runs: its memory and virtual CPUs are promised, too; else only its disks and its company."""
        self._draft.promise(need if runs else msgspec.structs.replace(need, memory_mib=0, vcpus=0), node_id)

    def plan(self, name: str, need: Need, vm: Vm | None = None) -> PlacementPlan:
        """Every node: how good it is, or why it cannot take it. vm: the one it is about, as if it were nowhere."""
        if vm is not None:
            self._draft.without(vm.id)
        need = self._draft.with_company(need)
        here = vm.node_id if vm else ""
        fits = [self._fit(need, node, is_here=node.node.id == here) for node in self._nodes()]
        fits.sort(key=lambda one: (-one.score if one.score is not None else 1.0, one.node))
        chosen = fits[0] if fits and fits[0].can else None
        return PlacementPlan(
            vm=name,
            vm_id=vm.id if vm else None,
            node=next((one.node for one in fits if one.is_here), None),
            chosen=chosen.node if chosen else None,
            policy=policy_of(need, self._room.limits),
            nodes=fits,
        )

    def _nodes(self) -> list[Candidate]:
        return [self._draft.seen(one) for one in self._room.candidates()]

    def _fit(self, need: Need, node: Candidate, *, is_here: bool) -> NodeFit:
        reasons = refusals(need, node, self._room.limits)
        score = None if reasons else score_of(need, node, self._room.limits)
        return NodeFit(
            node=node.node.name,
            node_id=node.node.id,
            is_here=is_here,
            can=not reasons,
            score=score.total if score else None,
            parts=score.parts if score else {},
            reasons=reasons,
        )


def need_of(records: Records, vm: Vm, pool_id: str) -> Need:
    """What a VM that is there asks of a node it is started on: the virtual hardware it had, and its disks."""
    need = birth.need_of(
        vm.spec, pool_id, pools=needs_of(records, vm.spec.disks), labels=vm.labels, wishes=vm.placement
    )
    return msgspec.structs.replace(need, machine_type=vm.pins.machine_type, cpu_model=vm.pins.cpu_model)
