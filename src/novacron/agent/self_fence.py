"""Which machines end at their deadline, and when the watchdog is no longer fed: rule R3, pure.

The deadline of each guarded machine is held by a kernel timer of its guardian, which needs no process to be scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping


def due(armed_s: Mapping[str, float], now_s: float) -> tuple[str, ...]:
    """Of the guarded machines that live, by id with the deadline each timer is armed for: those to be killed."""
    return tuple(vm_id for vm_id, deadline_s in armed_s.items() if now_s >= deadline_s)


def may_feed(armed_s: Mapping[str, float], now_s: float) -> bool:
    """Whether the watchdog may be fed: not while anything lives beyond its deadline, for whatever reason. What is not
    guarded is not in `armed_s` and keeps no host from being fed.
    """
    return not due(armed_s, now_s)
