"""A cap on bytes per second that may change at any time: a token bucket."""

from __future__ import annotations

import math

BURST_S = 0.02
MIN_BURST_BYTES = 64 << 10


class Bucket:
    """Times are given by whoever asks, in seconds of one monotonic clock."""

    def __init__(self, now_s: float, bytes_per_s: int | None = None) -> None:
        self._at_s = now_s
        self._rate = bytes_per_s
        self._level = float(MIN_BURST_BYTES)

    @property
    def bytes_per_s(self) -> int | None:
        return self._rate

    def set(self, now_s: float, bytes_per_s: int | None) -> None:
        """From now on so many; None: as many as go."""
        self._fill(now_s)
        self._rate = bytes_per_s

    def wait_s(self, now_s: float) -> float:
        """How long until something may be sent; 0: now. What has been owed under another cap is paid at the new one."""
        self._fill(now_s)
        if self._rate is None or self._level > 0:
            return 0.0
        return math.inf if self._rate == 0 else (1 - self._level) / self._rate

    def take(self, count: int) -> None:
        """So many bytes are sent. It may go into debt by one frame."""
        if self._rate is not None:
            self._level -= count

    def _fill(self, now_s: float) -> None:
        passed, self._at_s = now_s - self._at_s, now_s
        if self._rate is None:
            self._level = float(MIN_BURST_BYTES)
            return
        most = max(MIN_BURST_BYTES, self._rate * BURST_S)
        self._level = min(most, self._level + passed * self._rate)
