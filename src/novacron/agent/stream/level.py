"""How hard to pack: as strongly as the processor can while the link stays the slower of the two. Pure."""

from __future__ import annotations

from typing import NamedTuple

LEVELS = (1, 3, 5, 7)
SPEED = {1: 190e6, 3: 125e6, 5: 64e6, 7: 44e6}
"""Bytes of a guest's memory that one core of the build machine packs in a second at each level.

A guest of 512 MiB became 2.85, 3.05, 3.14 and 3.22 times smaller; level 9 takes 30 MB/s for 3.26."""
FIRST = 3
EXPECTED_RATIO = 3.0
HEADROOM = 2.0  # packing is about half of a stream's work


class Pace(NamedTuple):
    """What is known of a stream. packed_from, packed_to, busy_s: what was packed at `level`, and the
    processor's time for it; all 0 at first.

    link_bytes_per_s: what the link carries, as measured or capped; None: not known.
    """

    level: int
    packed_from: int
    packed_to: int
    busy_s: float
    link_bytes_per_s: float | None


def level_for(pace: Pace) -> int:
    """The strongest level at which packing keeps ahead of the link.

    How fast this processor is beside the build machine's it tells from what it did at the level it has now.
    """
    if pace.link_bytes_per_s is None:
        return pace.level
    ratio = pace.packed_from / pace.packed_to if pace.packed_to else EXPECTED_RATIO
    share = pace.packed_from / pace.busy_s / SPEED[pace.level] if pace.busy_s else 1.0
    needed = pace.link_bytes_per_s * ratio * HEADROOM
    return max((level for level in LEVELS if SPEED[level] * share >= needed), default=LEVELS[0])


def worth_a_new_window(now: int, better: int) -> bool:
    """A change gives up what the window remembers: only for two steps up, or when packing holds up the link."""
    return LEVELS.index(better) < LEVELS.index(now) or LEVELS.index(better) > LEVELS.index(now) + 1
