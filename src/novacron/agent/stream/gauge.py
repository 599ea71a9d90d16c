"""Measures what a link carries, and only while there is always something to carry."""

from __future__ import annotations

SPAN_S = 0.5
_FORGET = 0.95  # what is left of the best span with each one that was less


class Gauge:
    """Fed with what arrives, when it is known to have arrived."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._since_s: float | None = None
        self._bytes = 0

    def note(self, now_s: float, arrived_bytes: int, *, busy: bool) -> None:
        """So much more has arrived; busy: there is more that waits."""
        if not busy:
            self.pause()
            return
        if self._since_s is None:
            self._since_s, self._bytes = now_s, 0
            return
        self._bytes += arrived_bytes
        passed = now_s - self._since_s
        if passed >= SPAN_S and self._bytes:
            # The best there was: a sender that is held up by its processor must not take its link for a slow one.
            self.bytes_per_s = max(self._bytes / passed, (self.bytes_per_s or 0.0) * _FORGET)
            self._since_s, self._bytes = now_s, 0

    def pause(self) -> None:
        """What comes next says nothing about the link until it is busy again."""
        self._since_s = None
