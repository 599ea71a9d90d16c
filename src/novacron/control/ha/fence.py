"""What a server does about each node: nothing, bar its epoch (rule R4), or call it fenced (rule R5), with the reason.

Any number of servers may decide at once: each change is a compare-and-swap on the very record that was judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from novacron.control.ha import brake
from novacron.control.ha.sight import Sight, free_after_s, silent_s, suspect_after_s
from novacron.errors import Reason
from novacron.model.ha import FenceLog
from novacron.model.membership import Membership, MemberState
from novacron.model.timing import Timing


class Bar(msgspec.Struct, frozen=True):
    """Write `membership.barred` of this record, and the fence log, in one transaction."""

    seen: Membership
    reason: str


class Fence(msgspec.Struct, frozen=True):
    """Write `membership.fenced` of this record."""

    seen: Membership
    reason: str


class Hold(msgspec.Struct, frozen=True):
    """A silent node is left as it is, and a person is told why."""

    node_id: str
    reason: Reason


Verdict = Bar | Fence | Hold
Worth = Callable[[str], bool]
"""By node id; asked of silent nodes alone, for whose answer VMs must be looked at."""


def verdicts(
    server: str, sights: Mapping[str, Sight], log: FenceLog, worth: Worth, now_s: float, timing: Timing
) -> tuple[Verdict, ...]:
    """One for each node about which something is to be done or told.

    sights: by node id. worth: whether something could be restarted elsewhere from a node: barring others helps nobody.
    """
    storm = brake.storm(tuple(sights.values()), now_s, timing)
    found = []
    for _, sight in sorted(sights.items()):
        verdict = _verdict(server, sight, storm, log, worth, now_s, timing)
        if verdict is not None:
            found.append(verdict)
    return tuple(found)


def _verdict(
    server: str, sight: Sight, storm: Reason | None, log: FenceLog, worth: Worth, now_s: float, timing: Timing
) -> Verdict | None:
    member, silence_s = sight.member, silent_s(sight, now_s)
    if member.state is MemberState.FENCED or silence_s < suspect_after_s(sight, timing):
        return None
    if not may_fence(server, member):
        return None  # it gives this server no word when the store is away; those it asks will fence it
    if member.state is MemberState.FENCING:
        if storm is not None:
            return Hold(member.id, storm)
        if now_s < free_after_s(sight, timing):
            return None
        return Fence(member, f"{member.reason}; no machine of it outlives {silence_s:.0f} s of silence")
    against = storm or brake.spent(log, timing) or (None if worth(member.id) else _vain(member))
    if against is not None:
        return Hold(member.id, against)
    return Bar(member, f"no heartbeat for {silence_s:.1f} s")


def may_fence(server: str, member: Membership) -> bool:
    """Whether the node asks this server for time when the store is away (rule R10): else it may have time from others
    that this server knows nothing of.
    """
    return server in member.servers


def _vain(member: Membership) -> Reason:
    message = "it is silent, but no machine of it may be restarted elsewhere without proof that it ended here"
    remedy = f"look at the node; if its power is off: novacron node confirm-off {member.id}"
    return Reason("ha.cannot_guarantee", message, subject=member.id, remedy=remedy)
