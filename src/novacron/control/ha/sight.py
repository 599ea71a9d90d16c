"""What one server has seen of a node, by its own monotonic clock: since when it is silent, and until when it may run.

Rules R1, R5, R10 as they look from a server. Nothing here compares two clocks or trusts a wall clock.
"""

from __future__ import annotations

import math

import msgspec

from novacron.model.membership import Membership
from novacron.model.timing import Timing


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """since_s: when this server first saw the record's present `beats`; promised_s: when it last gave the node time.

    A server that has just started has seen nothing before: what it forgot it waits for again.
    """

    member: Membership
    since_s: float
    promised_s: float = -math.inf


def looked(before: Sight | None, member: Membership, now_s: float) -> Sight:
    """The sight after the record was read. An older reading than the last changes nothing."""
    if before is None:
        return Sight(member=member, since_s=now_s)
    if member.epoch < before.member.epoch or member.beats < before.member.beats:
        return before
    since_s = now_s if member.beats > before.member.beats else before.since_s
    return msgspec.structs.replace(before, member=member, since_s=since_s)


def promised(sight: Sight, now_s: float) -> Sight:
    """The sight after this server gave the node time: it is not barred, nor anything of it taken over, for so long."""
    return msgspec.structs.replace(sight, promised_s=now_s)


def silent_s(sight: Sight, now_s: float) -> float:
    """For how long nothing has shown that the node lives."""
    return now_s - max(sight.since_s, sight.promised_s)


def suspect_after_s(sight: Sight, timing: Timing) -> float:
    """For how long it may be silent before it is suspect: longer where it has asked for a longer ttl (rule R11), for a
    planned time without an agent.
    """
    return max(timing.suspect_s, sight.member.ttl_s - (timing.ttl_s - timing.suspect_s))


def free_after_s(sight: Sight, timing: Timing) -> float:
    """From then on nothing guarded runs under what this server knows the node was given (rule R5).

    The node's deadline is at most ttl after the heartbeat was written, which was before this server saw it, and at most
    promise_s after this server promised; from a deadline a machine lives kill_s at the longest. What this server
    promised before it was started anew it does not know, but that is over promise_s after it first looked.
    """
    ttl_s = max(sight.member.ttl_s, timing.promise_s)
    beaten_s = sight.since_s + timing.by_other_clock_s(ttl_s + timing.kill_s)
    given_s = sight.promised_s + timing.by_other_clock_s(timing.promise_s + timing.kill_s)
    return max(beaten_s, given_s) + timing.slack_s
