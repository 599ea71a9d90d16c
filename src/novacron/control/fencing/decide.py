"""What is done about a barred node that has a fence device, from what its power was read to be. No I/O.

The power that is read is believed, and nothing else: not that a request to
switch it off was answered, nor how often it was asked.
"""

from __future__ import annotations

from enum import Enum

from novacron.errors import Reason
from novacron.model.fence_device import Power
from novacron.model.ha import Proof
from novacron.model.membership import Membership, MemberState

AGAIN_S = 10.0
"""A device that was asked to switch off is not asked again sooner: BMCs take seconds, and some begin anew each time."""


class Step(Enum):
    """`PROVEN`: write model.membership.proven of the record that stood before the power was read."""

    PROVEN = "proven"
    SWITCH_OFF = "switch_off"
    WAIT = "wait"


def is_due(member: Membership, worth: bool, held: Reason | None) -> bool:
    """Whether the node's power is looked at, and switched off: when its epoch is barred, or its machines were only
    waited for, and something of it could be restarted on the proof. held: why silent nodes are left as they are.
    """
    barred = member.state is not MemberState.UP and member.proof is Proof.NONE
    return barred and worth and held is None


def next_step(power: Power, asked_ago_s: float | None) -> Step:
    """asked_ago_s: since it was last asked to switch off in this epoch; None: it was not."""
    if power is Power.OFF:
        return Step.PROVEN
    return Step.SWITCH_OFF if asked_ago_s is None or asked_ago_s >= AGAIN_S else Step.WAIT
