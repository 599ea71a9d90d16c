"""How much of QEMU's stream may be under way: enough that the link never waits, little enough that the end comes soon.

What is under way when the guest stops has to arrive before it runs again: too much of it is downtime. What can be
used is what passes in the time a piece takes when it meets no queue; twice that is allowed, so that more is found out
to pass when it does, and a queue is as long as one such time. What QEMU is rid of it takes for arrived, so on a slow
link a window of bytes alone would have it stop a guest whose memory still has seconds to go.
"""

from __future__ import annotations

import asyncio
import collections

from novacron.agent.stream.batch import MAX_RAW_BYTES

FIRST_BYTES = 8 << 20
LEAST_BYTES, LEAST_S = 4 << 20, 0.33
"""Never less than what 100 Mbit/s carry in so long; on slower links what they carry in it."""
PIECE_S = 0.1
LEAST_PIECE_BYTES = 128 << 10
GAIN = 2.0
SPAN_S = 0.25
REMEMBER_SPANS = 12
_WHOLE_BYTES = 64 << 10  # smaller pieces are sooner through, and say nothing of the others


def piece_bytes(link_bytes_per_s: float | None) -> int:
    """How much is taken of QEMU at a time: what a slow link carries in a moment, MAX_RAW_BYTES of others. Pure."""
    if link_bytes_per_s is None:
        return MAX_RAW_BYTES
    return max(LEAST_PIECE_BYTES, min(MAX_RAW_BYTES, int(link_bytes_per_s * PIECE_S)))


class Window:
    """Counts pieces from when they were taken of QEMU until the other QEMU has them.

    link_bytes_per_s: what the link is known to carry before anything has passed.
    """

    def __init__(self, most_bytes: int, link_bytes_per_s: float | None = None) -> None:
        self._most = most_bytes
        first = FIRST_BYTES if link_bytes_per_s is None else _least_bytes(2 * link_bytes_per_s)
        self.size_bytes = min(most_bytes, first)
        self._under_way: collections.deque[tuple[int, int, float]] = collections.deque()
        self._bytes = 0
        self._soonest_s = float("inf")  # of all pieces: later ones meet the queue that twice is
        self._rates: collections.deque[float] = collections.deque(maxlen=REMEMBER_SPANS)
        self._span_since_s: float | None = None
        self._span_bytes = 0
        self._room = asyncio.Event()

    async def room(self) -> None:
        """Wait until another piece may be taken."""
        while self._bytes >= self.size_bytes:
            self._room.clear()
            await self._room.wait()

    def enter(self, number: int, count: int, now_s: float) -> None:
        self._under_way.append((number, count, now_s))
        self._bytes += count

    def leave(self, number: int, now_s: float) -> None:
        """This piece has arrived, and all before it."""
        while self._under_way and self._under_way[0][0] <= number:
            _, count, since_s = self._under_way.popleft()
            self._bytes -= count
            self._span_bytes += count
            if count >= _WHOLE_BYTES:
                self._soonest_s = min(self._soonest_s, now_s - since_s)
        self._measure(now_s)
        self._room.set()

    def _measure(self, now_s: float) -> None:
        if self._span_since_s is None:
            self._span_since_s, self._span_bytes = now_s, 0
            return
        passed = now_s - self._span_since_s
        if passed < SPAN_S or self._soonest_s == float("inf"):
            return
        self._rates.append(self._span_bytes / passed)
        self._span_since_s, self._span_bytes = now_s, 0
        rate = max(self._rates)
        self.size_bytes = min(self._most, max(_least_bytes(rate), int(rate * self._soonest_s * GAIN)))


def _least_bytes(bytes_per_s: float) -> int:
    return max(2 * LEAST_PIECE_BYTES, min(LEAST_BYTES, int(bytes_per_s * LEAST_S)))
