"""Verbs about the link between two nodes: one listens for the other, which sends a bounded burst."""

from __future__ import annotations

import msgspec

MOST_BYTES = 32 << 20
MOST_S = 1.0


class LinkListen(msgspec.Struct, frozen=True, kw_only=True):
    """(target) Take in one burst, from that address alone; the port is closed after it, or ten seconds. → LinkAt"""

    peer: str


class LinkAt(msgspec.Struct, frozen=True, kw_only=True):
    """Where it listens, and the key of this one burst (a secret: never logged or stored)."""

    host: str
    port: int
    key_hex: str


class LinkProbe(msgspec.Struct, frozen=True, kw_only=True):
    """(source) Send at most MOST_BYTES for at most MOST_S, no faster than bytes_per_s (0: as it goes). → LinkFound"""

    to: LinkAt
    bytes_per_s: int = 0


class LinkFound(msgspec.Struct, frozen=True, kw_only=True):
    """rate_bytes_per_s: as they arrived. rtt_ms: the shortest of a few round trips before."""

    rate_bytes_per_s: float
    rtt_ms: float
    sent_bytes: int


VERBS: dict[str, type[msgspec.Struct]] = {"link.listen": LinkListen, "link.probe": LinkProbe}
