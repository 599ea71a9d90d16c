"""Whether the others have room for a node's guarded VMs if it failed now: placed as the rescuer would place them."""

from __future__ import annotations

from collections.abc import Collection

from novacron.control.ha.takeover import Claim
from novacron.control.scheduler.draft import Draft
from novacron.model.ha import FenceClass, HaPolicy, is_guarded
from novacron.model.vm import is_wanted


def guarded(claims: Collection[Claim]) -> tuple[Claim, ...]:
    """Those that are to run and to be restarted elsewhere, in the order in which they are."""
    mine = [one for one in claims if is_wanted(one.vm) and one.protection.policy is not HaPolicy.NONE]
    return tuple(sorted(mine, key=lambda one: (-one.protection.priority, -one.need.memory_mib, one.vm.name)))


def stranded(claims: Collection[Claim], draft: Draft) -> tuple[str, ...]:
    """Names of those no other node could take, each with those before it in mind. claims: of one node, whose needs
    exclude it. draft: of this moment, used up by this.
    """
    for one in claims:
        draft.without(one.vm.id)
    lost = []
    for one in guarded(claims):
        node_id = draft.choose(one.need)
        if node_id is None:
            lost.append(one.vm.name)
        else:
            draft.promise(one.need, node_id)
    return tuple(lost)


def unguaranteed(claims: Collection[Claim], fence_class: FenceClass, *, provable: bool) -> tuple[str, ...]:
    """Names of those that would stay where they are: their node's class is less than they ask for, and its power cannot
    be seen to be off.
    """
    return tuple(one.vm.name for one in guarded(claims) if not (provable or is_guarded(one.protection, fence_class)))
