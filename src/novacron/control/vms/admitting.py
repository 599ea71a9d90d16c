"""What a request that takes room is judged by before it is recorded; control.ha.admission judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from novacron.errors import Reason
from novacron.model.ha import HaPolicy
from novacron.model.vm import Vm


class Admits(Protocol):
    """Asked in the turn in which room is promised."""

    def judge(self, vms: Sequence[Vm]) -> tuple[Reason, ...]:
        """What to warn of once these VMs are as given. :raise NoRoom: that is to be refused."""
        ...


def takes_more(before: Vm, now: Vm) -> bool:
    """Whether a change may leave less room for the loss of a node: it grew, or its policy is another one."""
    grown = now.spec.memory_mib > before.spec.memory_mib or now.spec.vcpus > before.spec.vcpus
    return grown or (now.spec.ha != before.spec.ha and now.spec.ha.policy is not HaPolicy.NONE)
