"""A curve of costs as text, over logarithmic axes, where what grows in proportion is a straight line. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH = 60


def curves(sizes: Sequence[int], costs: Mapping[str, Sequence[float]], unit: str) -> list[str]:
    """A line a size: each cost's letter (its name's first) stands as far right as the cost is high, one step a decade
    divided by as many as fit; `/` where the first of them would stand had it grown in proportion to the size.

    sizes: rising. costs: by name, one a size, above 0, in the unit.
    """
    first = next(iter(costs.values()))
    straight = [first[0] * size / sizes[0] for size in sizes]
    every = [cost for values in (*costs.values(), straight) for cost in values]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    step = WIDTH // max(high - low, 1)

    def column(cost: float) -> int:
        return round((math.log10(cost) - low) * step)

    lines = []
    for at, size in enumerate(sizes):
        marks = {column(straight[at]): "/"} | {column(values[at]): name[0] for name, values in costs.items()}
        lines.append(f"{size:>7} |" + "".join(marks.get(place, " ") for place in range(max(marks) + 1)))
    axis = "".join(f"{10**power:<{step}g}" for power in range(low, high + 1))
    named = ", ".join(f"{name[0]} {name}" for name in costs)
    return [
        *lines,
        f"{'':>7} +{'-' * (step * (high - low))}",
        f"{unit:>7}  {axis.rstrip()}",
        f"{named}, / in proportion",
    ]
