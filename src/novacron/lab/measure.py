"""What a migration cost, seen by the guest and by its client: the definitions, as arithmetic.

downtime_client_ms   the longest time between two answers that the client received one after the other. The client
                     asks every 2 ms, so an undisturbed guest gives some 2 ms.
downtime_guest_ms    the time the guest's clock stood still, plus the guest's own longest tick gap beyond its period.
                     The clock stands while the machine is stopped: what is missing between two exchanges with the
                     guest, one just before and one just after (each the one with the shortest round trip of 128),
                     is host time elapsed minus guest time elapsed. The tick gap is what it noticed while it ran.
downtime_qemu_ms     what the source's QEMU says; it does not know when the target went on.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from novacron.lab.guest.line import Status


class Sample(NamedTuple):
    """One exchange: when asked and answered by the host's monotonic clock, and what the guest's clock said."""

    sent_ns: int
    heard_ns: int
    guest_ns: int

    @property
    def round_trip_ns(self) -> int:
        return self.heard_ns - self.sent_ns


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A stretch of time as the client saw it.

    reconnects: connections made in it. stood_still_ms: how long the guest's clock stood; off by at most half of
    round_trip_ms. tick_gap_ms: beyond the ticker's period. status: of the guest, at the end.
    """

    answers: int
    reconnects: int
    client_gap_ms: float
    stood_still_ms: float
    tick_gap_ms: float
    round_trip_ms: float
    status: Status

    @property
    def guest_downtime_ms(self) -> float:
        return max(0.0, self.stood_still_ms) + self.tick_gap_ms


def stood_still_ns(before: Sample, after: Sample) -> int:
    """How much less time passed for the guest than for the host between two exchanges."""
    host = (after.sent_ns + after.heard_ns - before.sent_ns - before.heard_ns) // 2
    return host - (after.guest_ns - before.guest_ns)
