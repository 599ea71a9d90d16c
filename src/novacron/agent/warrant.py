"""Whether this node may start or continue a machine now: rules R2, R9 and what an order must show. Pure."""

from __future__ import annotations

import msgspec

from novacron.agent.ledger import Holding, Role
from novacron.agent.tenure import Tenure
from novacron.errors import Reason
from novacron.model.timing import Timing


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an order to start or continue a machine speaks for: an ownership (generation) of a node (epoch).

    epoch: of the owner's membership, up, as it stood when the server read that this node owns the VM.
    """

    vm_id: str
    generation: int
    epoch: int


def refusal(order: Order, tenure: Tenure, floor: int, now_s: float, timing: Timing) -> Reason | None:
    """Why it must not run, or None. floor: see `floor_of`; to go on after a migration that was taken back: the
    generation of the holding itself.

    Asked again directly before the machine runs, whatever went on since.
    """
    if order.generation < floor:
        message = f"generation {order.generation} does not count here: {floor} would"
        return Reason("order.generation", message, subject=order.vm_id)
    if order.epoch != tenure.epoch:
        message = f"it speaks of epoch {order.epoch} of this node, which is in {tenure.epoch or 'none'}"
        return Reason("order.epoch", message, subject=order.vm_id, remedy="read the node's record again")
    if tenure.deadline_s - now_s < timing.start_margin_s:
        message = "this node's heartbeats do not count now, so it starts nothing"
        return Reason("order.deadline", message, subject=order.vm_id, remedy="see why it does not reach the store")
    return None


def floor_of(holding: Holding | None) -> int:
    """From which generation on an order to start the machine, or to take it over, counts here (R9, R13).

    What a migration has is not started under the ownership it began with, whether anything of it runs here or not: its
    source has yielded, and its target owns it under a newer one only.
    """
    if holding is None:
        return 0
    return holding.generation + (holding.role in (Role.LEAVING, Role.INCOMING))


PASSING = frozenset({"order.epoch", "order.deadline"})
"""Refusals that time may cure."""
