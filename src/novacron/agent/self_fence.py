"""Which machines end at their deadline, when the watchdog is no longer fed, and what a node vouches for: rule R3, pure.

The deadline of each guarded machine is held by a kernel timer of its guardian, which needs no process to be scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from novacron.model.ha import FenceClass, Protection, is_guarded


def due(armed_s: Mapping[str, float], now_s: float) -> tuple[str, ...]:
    """Of the guarded machines that live, by id with the deadline each timer is armed for: those to be killed."""
    return tuple(vm_id for vm_id, deadline_s in armed_s.items() if now_s >= deadline_s)


def may_feed(armed_s: Mapping[str, float], now_s: float) -> bool:
    """Whether the watchdog may be fed: not while anything lives beyond its deadline, for whatever reason. What is not
    guarded is not in `armed_s` and keeps no host from being fed.
    """
    return not due(armed_s, now_s)


def vouched(
    declared: FenceClass, living: Mapping[str, Protection], guardians: AbstractSet[str], watched: AbstractSet[str]
) -> FenceClass:
    """The surest class, up to the declared one, by which every machine that is guarded under it ends for certain.

    living: what each machine that lives was started with. guardians: those that have one; no timer ends the others.
    watched: those whose life the watchdog's keeper sees; it waits for no others.
    """
    for fence_class, able in ((FenceClass.WATCHDOG, watched), (FenceClass.TIMER, guardians)):
        guarded = {vm_id for vm_id, protection in living.items() if is_guarded(protection, fence_class)}
        if declared >= fence_class and guarded <= able:
            return declared if fence_class is FenceClass.WATCHDOG else fence_class
    return min(declared, FenceClass.AGENT)
