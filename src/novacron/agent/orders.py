"""What an order to start a machine meets here: the check it must pass, and what a migration left of it. Pure."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.ledger import Holding
from novacron.agent.warrant import floor_of
from novacron.model.machine import MachineReport, MachineStatus
from novacron.wire.agent import Start

ELSEWHERE = frozenset({MachineStatus.HANDED_OFF, MachineStatus.INCOMING})
"""Its one copy may run on another node: it must not be continued or booted here by an ordinary verb."""

Check = Callable[[str, int, int, int], None]
"""Whether an order counts now, from its machine's id, generation, epoch and floor: see agent.member.Member.check."""


def takes_no_part(vm_id: str, generation: int, epoch: int, floor: int) -> None:
    """The check of a node without a membership."""


def start_floor(holding: Holding | None, order: Start) -> int:
    """From which generation on it may be started; what a migration that has ended left here no longer counts."""
    if holding is not None and order.over and holding.migration_id == order.over:
        return holding.generation
    return floor_of(holding)


def is_stale(holding: Holding | None, seen: MachineReport | None, order: Start) -> bool:
    """Whether a copy that stands still here does so under an ownership that has passed: its migration is over, and it
    was taken over from the node it had gone to, or was to come from.
    """
    if holding is None or holding.spec is None or seen is None or seen.status not in ELSEWHERE:
        return False
    return order.spec.generation > holding.spec.generation and order.over == holding.migration_id
