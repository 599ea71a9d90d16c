"""What a move is expected to cost, each figure with its error bar, and how wrong that turned out to be. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

import msgspec


class Range(msgspec.Struct, frozen=True):
    """A figure with its error bar: low ≤ expected ≤ high, all in the unit that the field's name says."""

    low: float
    expected: float
    high: float

    def plus(self, other: Range) -> Range:
        """Their sum, both at their best and both at their worst."""
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def at_most(self, bound: float) -> Range:
        """None of the three above the bound."""
        return Range(min(self.low, bound), min(self.expected, bound), min(self.high, bound))


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """A running machine before its move. dirtied_bytes: different pages written within interval_s, times their size,
    estimated from a sample of all pages. memory_used_bytes: what its hypervisor holds of its memory.
    """

    at: datetime.datetime
    interval_s: float
    dirtied_bytes: int
    memory_used_bytes: int
    memory_bytes: int


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """total_ms: request to completed; downtime_ms: from the source's stop to the target's resume.

    ends: it is expected to come to an end; ends_surely: also at its worst. residue_ms: the part of the downtime that is
    memory. disk_bytes: to be copied of disks. basis: what it was reckoned from, in sentences.
    """

    total_ms: Range
    downtime_ms: Range
    bytes_transferred: Range
    ends: bool = True
    ends_surely: bool = True
    residue_ms: float = 0.0
    disk_bytes: int = 0
    basis: tuple[str, ...] = ()


class PredictionError(msgspec.Struct, frozen=True, kw_only=True):
    """By how much of what was measured the prediction was off, in percent: above zero: it promised more. None: not
    measured.
    """

    total_percent: float | None = None
    downtime_percent: float | None = None
    bytes_percent: float | None = None


def error_percent(expected: float, measured: float | None) -> float | None:
    """How far off, in percent of what was measured."""
    if measured is None or measured <= 0:
        return None
    return (expected - measured) / measured * 100


def spread(samples: Iterable[float], unknown: Range) -> Range:
    """The middle of what was seen, and its bounds; `unknown` when nothing was. Of few samples the bar is wide."""
    seen = sorted(samples)
    if not seen:
        return unknown
    middle = seen[len(seen) // 2] if len(seen) % 2 else (seen[len(seen) // 2 - 1] + seen[len(seen) // 2]) / 2
    cut = len(seen) // 10
    low, high = seen[cut], seen[-1 - cut]
    if len(seen) < FEW:
        low, high = min(low, middle * 0.5), max(high, middle * 2)
    return Range(low, middle, high)


FEW = 5
