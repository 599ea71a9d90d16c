"""Units of a pool: named, given to one volume each, taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.errors import InvalidInput, NoRoom
from novacron.model.unit import give, given_units, take_back, units_of


def test_names_and_ranges() -> None:
    assert units_of({"units": "1-3,7,disk-a,2"}) == ("1", "2", "3", "7", "disk-a")
    for wrong in ("", ",", "a/b", "3-1", "0-256", "a b", "-x", "1-99999"):
        with pytest.raises(InvalidInput):
            units_of({"units": wrong})


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=40))
def test_no_two_volumes_have_one_unit(steps: list[tuple[str, bool]]) -> None:
    options = {"units": "1-3", "portal": "p"}
    for volume, comes in steps:
        before = given_units(options)
        try:
            options = give(options, volume) if comes else take_back(options, volume)
        except NoRoom:
            assert len(before) == 3
        now = given_units(options)
        assert len(set(now.values())) == len(now)
        assert all(now[one] == unit for one, unit in before.items() if one in now)
        assert (volume in now) == comes or len(before) == 3
    assert options["portal"] == "p"
