"""Units of a pool: ready-made LUNs or exports, each for one volume. Which is whose stands in the pool's options. Pure.

    units            what there is: names, and ranges of numbers, with commas: `1-8`, `disk-a,disk-b`
    unit.<volume id> the unit of a volume

Only who writes the pool's record gives units away, in the same write: two volumes never get one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from novacron.errors import InvalidInput, NoRoom, Reason

PREFIX = "unit."
MAX_UNITS = 256
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}\Z")
_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})\Z")


def units_of(options: Mapping[str, str]) -> tuple[str, ...]:
    """Every unit of the pool. :raise InvalidInput: the option `units` is missing or ill-formed."""
    found: dict[str, None] = {}
    for part in filter(None, options.get("units", "").split(",")):
        if numbers := _RANGE.match(part):
            first, last = int(numbers[1]), int(numbers[2])
            if last - first >= MAX_UNITS:
                raise _wrong(f"{part} are too many")
            found |= dict.fromkeys(str(number) for number in range(first, last + 1))
        elif _NAME.match(part):
            found[part] = None
        else:
            raise _wrong(f"{part!r} is no unit")
    if not 0 < len(found) <= MAX_UNITS:
        raise _wrong("names no unit" if not found else f"names more than {MAX_UNITS} units")
    return tuple(found)


def given_units(options: Mapping[str, str]) -> dict[str, str]:
    """volume id -> its unit."""
    return {key.removeprefix(PREFIX): unit for key, unit in options.items() if key.startswith(PREFIX)}


def give(options: Mapping[str, str], volume_id: str) -> dict[str, str]:
    """The options with a unit for the volume: the one it has, or the first that is free. :raise NoRoom"""
    given = given_units(options)
    if volume_id in given:
        return dict(options)
    taken = set(given.values())
    free = next((unit for unit in units_of(options) if unit not in taken), None)
    if free is None:
        raise NoRoom("every unit of the pool has a volume", [Reason("units.short", f"{len(taken)} units are taken")])
    return {**options, f"{PREFIX}{volume_id}": free}


def take_back(options: Mapping[str, str], volume_id: str) -> dict[str, str]:
    """The options without the volume, once it is deleted. Absent: fine."""
    return {key: value for key, value in options.items() if key != f"{PREFIX}{volume_id}"}


def _wrong(why: str) -> InvalidInput:
    return InvalidInput.field("options.units", why, "give LUNs or exports with commas, as in 1-8 or disk-a,disk-b")
