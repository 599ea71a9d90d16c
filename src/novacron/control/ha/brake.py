"""The storm brake: when many nodes fall silent together it is not they who failed, and nobody is fenced.

A second brake is the log of fences (model.ha): no more than so many in its window, whoever fences.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from novacron.control.ha.sight import Sight, silent_s, suspect_after_s
from novacron.errors import Reason
from novacron.model.ha import FenceLog
from novacron.model.membership import MemberState
from novacron.model.timing import Timing


def storm(sights: Collection[Sight], now_s: float, timing: Timing) -> Reason | None:
    """Why nobody is to be fenced, or None. One silent node is no storm, however few there are.

    Those count that miss some heartbeats already: what silences many at once is seen at each of them within a
    heartbeat, and the first to be suspect must not be fenced before the others are. Fenced ones are settled.
    """
    late = [one for one in sights if one.member.state is not MemberState.FENCED and _is_late(one, now_s, timing)]
    if len(late) <= max(1, len(sights) // 3):
        return None
    message = f"{len(late)} of {len(sights)} nodes fell silent together: nobody is fenced"
    remedy = "look at what they share: network, power, store; nodes that are heard again go on by themselves"
    return Reason("fence.storm", message, remedy=remedy)


def _is_late(sight: Sight, now_s: float, timing: Timing) -> bool:
    return silent_s(sight, now_s) >= suspect_after_s(sight, timing) - 2 * timing.heartbeat_s


def spent(log: FenceLog, timing: Timing) -> Reason | None:
    """Why nobody is to be fenced: there have been as many fences of late as there may be. None: there have not."""
    if len(log.recent) < timing.fences:
        return None
    message = f"{len(log.recent)} nodes were fenced within {timing.fence_window_s:.0f} s: nobody else is"
    remedy = "find out why nodes fail, then wait"
    return Reason("fence.limit", message, subject=log.recent[-1].node_id, remedy=remedy)


def watched(before: Mapping[int, float], log: FenceLog, now_s: float) -> dict[int, float]:
    """By number, since when this server has seen each entry of the log."""
    return {one.number: before.get(one.number, now_s) for one in log.recent}


def lapsed(since_s: Mapping[int, float], now_s: float, timing: Timing) -> frozenset[int]:
    """The entries that this server has seen for the whole window: they count no more."""
    window_s = timing.by_other_clock_s(timing.fence_window_s)
    return frozenset(number for number, seen_s in since_s.items() if now_s - seen_s > window_s)
