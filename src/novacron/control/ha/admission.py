"""Admission: whether, after what was asked, the others would still have room for a lost node's guarded VMs.

Placed as the rescuer would place them. Looked at are the node a VM is on and those with the most memory of guarded VMs,
so that what a request costs does not grow with the cluster; `novacron ha status` looks at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from novacron.control.ha import spare
from novacron.control.ha.claims import claim_of
from novacron.control.ha.protected import Protected
from novacron.control.ha.takeover import Claim
from novacron.control.promises import holds_room
from novacron.control.room import Room
from novacron.control.scheduler.draft import Draft
from novacron.control.store.kinds import NODES
from novacron.control.store.records import Records
from novacron.errors import NoRoom, Reason
from novacron.model.ha import HaAdmission, HaPolicy
from novacron.model.vm import Vm

NO_SPARE = "ha.no_spare"
LOOKED_AT = 128
"""So many guarded VMs, about, are placed for an answer: each takes about a tenth of a millisecond."""

_TOLD_NODES = 3
_TOLD_VMS = 5
_REMEDY = "make room on other nodes, or add one; novacron ha status shows all"


class Admission:
    """As control.vms.admitting.Admits asks for it. pool_id: the default pool's."""

    def __init__(self, records: Records, room: Room, protected: Protected, pool_id: str, mode: HaAdmission) -> None:
        self._records = records
        self._room = room
        self._protected = protected
        self._pool_id = pool_id
        self._mode = mode

    def judge(self, vms: Sequence[Vm]) -> tuple[Reason, ...]:
        """What to warn of once these VMs are as given: for each node whose loss they newly make too much, its VMs that
        no other could take. Those that hold no room are not counted.

        :raise NoRoom: there is such a node, and the setting is to refuse.
        """
        takers = {vm.id: self._claim(vm) for vm in vms if holds_room(vm) and self._records.get(NODES, vm.node_id)}
        found: list[Reason] = []
        for node_id in self._suspects(takers) if takers else ():
            reason = self._loss(node_id, takers)
            if reason is not None:
                found.append(reason)
            if len(found) == _TOLD_NODES:
                break
        if found and self._mode is HaAdmission.REFUSE:
            raise NoRoom(f"guarded VMs would be left without room: {found[0].message}", found)
        return tuple(found)

    def _claim(self, vm: Vm) -> Claim:
        """By the policy that is wished: it counts from the next start at the latest."""
        claim = claim_of(self._records, vm, self._pool_id)
        return Claim(vm=vm, protection=vm.spec.ha, need=claim.need)

    def _suspects(self, takers: Mapping[str, Claim]) -> Iterator[str]:
        """Ids of nodes whose loss to look at: the takers' own first."""
        own = {one.vm.node_id: None for one in takers.values() if one.protection.policy is not HaPolicy.NONE}
        left = LOOKED_AT
        for node_id in dict.fromkeys([*own, *self._protected.heaviest()]):
            if left <= 0:
                return
            left -= self._protected.count(node_id)
            yield node_id

    def _loss(self, node_id: str, takers: Mapping[str, Claim]) -> Reason | None:
        """What the loss of that node would newly strand."""
        here = [claim_of(self._records, one.record, self._pool_id) for one in self._protected.on_node(node_id)]
        after = [one for one in here if one.vm.id not in takers]
        after += [one for one in takers.values() if one.vm.node_id == node_id]
        lost = spare.stranded(after, self._taken(node_id, takers))
        if not lost:
            return None
        before = frozenset(spare.stranded(here, self._room.draft()))
        names = [name for name in lost if name not in before]
        return _no_spare(self._records.name(NODES, node_id), names) if names else None

    def _taken(self, lost_id: str, takers: Mapping[str, Claim]) -> Draft:
        """The cluster with the takers on the nodes that are left."""
        draft = self._room.draft()
        for vm_id, one in takers.items():
            if one.vm.node_id != lost_id:
                draft.without(vm_id)
                draft.promise(one.need, one.vm.node_id)
        return draft


def _no_spare(node: str, names: Sequence[str]) -> Reason:
    more = f" and {len(names) - _TOLD_VMS} more" if len(names) > _TOLD_VMS else ""
    told = ", ".join(names[:_TOLD_VMS]) + more
    return Reason(NO_SPARE, f"if {node} failed, no other node would have room for {told}", node, _REMEDY)
