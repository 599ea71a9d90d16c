"""A person's word that a node is off: when it is taken, and what it makes of the node's record. Pure.

Words are late: a node that was off when somebody looked may be up by now, with machines that run.
"""

from __future__ import annotations

from novacron.control.ha.sight import Sight, silent_s, suspect_after_s
from novacron.errors import Reason
from novacron.model import membership
from novacron.model.ha import Proof
from novacron.model.membership import Membership, MemberState
from novacron.model.timing import Timing


def is_silent(sight: Sight, now_s: float, timing: Timing) -> bool:
    """Whether it has been for as long as makes it suspect, as far as this server has seen."""
    return silent_s(sight, now_s) >= suspect_after_s(sight, timing)


def refusal(sight: Sight, now_s: float, timing: Timing) -> Reason | None:
    """Why the word is not taken; None: it is."""
    if sight.member.state is not MemberState.UP or is_silent(sight, now_s, timing):
        return None
    message = "it heartbeats, or was heard of less than a few heartbeats ago"
    remedy = "switch it off, wait until it is suspect or down, then say so again"
    return Reason("node.not_off", message, subject=sight.member.id, remedy=remedy)


def taken(now: Membership, seen: Membership, reason: str, *, all_vms: bool) -> Membership | None:
    """The record after it. seen: the very one that was judged. None: it was heard of, or fenced, meanwhile.

    Where it is proven already that nothing runs there, what is new is the wish for its other VMs.
    """
    if now.proof is not Proof.NONE:
        return membership.widened(now, seen)
    return membership.proven(now, seen, Proof.OPERATOR, reason, all_vms=all_vms)
