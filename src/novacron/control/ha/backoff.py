"""How often a VM that ends again and again is started again: at once, then ever more seldom. No I/O."""

from __future__ import annotations

import msgspec

FIRST_S = 10.0
LAST_S = 300.0
CALM_S = 600.0
"""One that was not to be started for so long is as good as new."""


class _Past(msgspec.Struct):
    last_s: float
    wait_s: float


class Backoff:
    """Of one server; one that takes its place begins anew."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}

    def may(self, vm_id: str, now_s: float) -> bool:
        """Whether it may be started now; if so, that counts as done."""
        past = self._past.get(vm_id)
        if past is None or now_s - past.last_s > CALM_S:
            self._past[vm_id] = _Past(now_s, FIRST_S)
            return True
        if now_s - past.last_s < past.wait_s:
            return False
        self._past[vm_id] = _Past(now_s, min(past.wait_s * 2, LAST_S))
        return True
