"""What the link from one node to another was found to carry, when it was measured for itself."""

from __future__ import annotations

import datetime

import msgspec


class LinkFigure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One measurement; a later one takes its place. cap_bytes_per_s: it was to take no more; 0: all there is."""

    id: str
    source_node: str
    target_node: str
    created_at: datetime.datetime
    at: datetime.datetime
    rate_bytes_per_s: float
    rtt_ms: float
    sent_bytes: int
    cap_bytes_per_s: int = 0

    @property
    def is_capped(self) -> bool:
        """Whether it came to its cap, and says of the link only that it carries that much."""
        return 0 < self.cap_bytes_per_s * CAPPED_FROM <= self.rate_bytes_per_s


CAPPED_FROM = 0.8
"""What reached this part of its own cap says nothing about what the link could carry."""
