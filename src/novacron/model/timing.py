"""The times of ownership: how often a node shows that it lives, and how long each side waits. Pure, checked by name.

Every time is in seconds of somebody's own monotonic clock; two clocks are never compared. What relates them is
`rate_bound` alone: no clock runs faster or slower than true time by more than that part.
"""

from __future__ import annotations

import msgspec

from novacron.errors import InvalidInput

MAX_TTL_S = 900.0


def _check(holds: bool, field: str, message: str, remedy: str) -> None:
    if not holds:
        raise InvalidInput.field(field, message, remedy)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """heartbeat_s: between heartbeats. request_s: after this an answer is no longer waited for.

    ttl_s: so long a heartbeat lets a node run machines, counted from before it was sent. suspect_s: so long a node may
    be silent before the old epoch is barred. start_margin_s: nothing is started or continued with less time left.
    kill_s: from a deadline until nothing under it runs for certain; watchdog_s: until the watchdog resets a host that
    is not fed. promise_s: what all servers together may add to a deadline while the store is away. slack_s: for what
    nobody counts. fences, fence_window_s: no more fences than that in that time.

    :raise InvalidInput: times that contradict each other.
    """

    heartbeat_s: float = 2.0
    request_s: float = 1.5
    ttl_s: float = 15.0
    suspect_s: float = 10.0
    start_margin_s: float = 3.0
    kill_s: float = 6.0
    watchdog_s: float = 5.0
    promise_s: float = 10.0
    slack_s: float = 0.5
    rate_bound: float = 0.005
    fences: int = 4
    fence_window_s: float = 600.0

    def __post_init__(self) -> None:
        _check(self.heartbeat_s > 0 and self.request_s > 0, "heartbeat_s", "must be over 0", "give seconds over 0")
        _check(self.suspect_s > 2 * self.heartbeat_s, "suspect_s", "is within two heartbeats", "give more")
        _check(self.suspect_s < self.ttl_s, "suspect_s", "is not below ttl_s", "give less, or a longer ttl_s")
        _check(self.start_margin_s < self.ttl_s, "start_margin_s", "is not below ttl_s", "give less")
        _check(self.ttl_s <= MAX_TTL_S, "ttl_s", f"is over {MAX_TTL_S:.0f} s", "give less")
        _check(
            0 < self.watchdog_s < self.kill_s, "kill_s", "is not over watchdog_s", "give more than the watchdog takes"
        )
        _check(0 < self.promise_s <= MAX_TTL_S, "promise_s", "is out of bounds", f"give up to {MAX_TTL_S:.0f} s")
        _check(0 <= self.rate_bound <= 0.05, "rate_bound", "is out of bounds", "give 0 to 0.05")
        _check(self.fences >= 1, "fences", "must be at least 1", "give a number from 1 up")

    def by_other_clock_s(self, seconds: float) -> float:
        """So long one must wait by one's own clock until that time has passed by any other for certain."""
        return seconds * (1 + 2 * self.rate_bound)

    def shortened(self, divisor: float) -> Timing:
        """The same with every time divided; the window of fences stays, as it guards people's systems, not tests."""
        times = ("heartbeat_s", "request_s", "ttl_s", "suspect_s", "start_margin_s", "kill_s", "watchdog_s")
        values = {name: getattr(self, name) / divisor for name in (*times, "promise_s", "slack_s")}
        return msgspec.structs.replace(self, **values)


STANDARD = Timing()
FIFTH = STANDARD.shortened(5)
"""For tests with real processes."""
