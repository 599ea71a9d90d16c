"""High availability, in words: what becomes of a VM when its node fails."""

from __future__ import annotations

import msgspec


class Ha(msgspec.Struct, frozen=True, kw_only=True):
    """policy: none or restart. min_fence_class: agent, timer, watchdog or bmc. priority: more is restarted first."""

    policy: str = "none"
    min_fence_class: str = "watchdog"
    priority: int = 50
