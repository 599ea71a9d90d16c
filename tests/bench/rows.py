"""What a bench found, as arithmetic and as a table: medians, the tail, ratios pair by pair, rows of markdown. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


def p99(values: Sequence[float]) -> float:
    """The nearest rank: of fewer than a hundred the greatest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Between which the middle half lies: the noise. Of one value: itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, round by round: what the machine was busy with in a round is in both."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours less theirs, round by round."""
    return [mine - other for mine, other in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], unit: str = "", digits: int = 0) -> str:
    """The median, and between which the middle half lies."""
    low, high = quartiles(values)
    return f"{statistics.median(values):.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


class Row(NamedTuple):
    """A line of the table. met: None: there is nothing to meet, or nobody to compare with."""

    what: str
    goal: str
    floor: str
    ours: str
    met: bool | None = None
    peer: str = "-"

    @property
    def verdict(self) -> str:
        return "-" if self.met is None else "met" if self.met else "NOT MET"


HEAD = ("row", "goal", "floor", "NovaCron", "", "libvirt")


def markdown(rows: Sequence[Row]) -> list[str]:
    """As SPECIFICATION.md takes it."""
    lines = [_line(HEAD), "|---" * len(HEAD) + "|"]
    return lines + [_line((row.what, row.goal, row.floor, row.ours, row.verdict, row.peer)) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
