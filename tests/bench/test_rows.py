"""The benches' arithmetic: medians and tails are what they are called, and a row says what was met."""

from __future__ import annotations

import pytest

from tests.bench.plot import curves
from tests.bench.rows import Row, differences, markdown, p99, quartiles, ratios, spread


@pytest.mark.parametrize(
    ("values", "tail"), [([5.0], 5.0), ([3.0, 9.0, 1.0], 9.0), ([float(n) for n in range(1, 201)], 198.0)]
)
def test_the_tail_of_few_is_the_worst(values: list[float], tail: float) -> None:
    assert p99(values) == tail


def test_pairs_are_compared_round_by_round() -> None:
    assert ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]
    assert differences([2.0, 30.0], [1.0, 10.0]) == [1.0, 20.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_a_spread_shows_the_middle_half() -> None:
    assert quartiles([7.0]) == (7.0, 7.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0], " ms") == "3 ms (2 to 4)"
    assert spread([1.0, 2.0], digits=2) == "1.50 (1.25 to 1.75)"


def test_a_table_says_what_was_met() -> None:
    lines = markdown([Row("a", "≤ 1", "2", "3", False), Row("b", "-", "-", "4"), Row("c", "≤ 9", "1", "5", True, "8")])
    assert lines[1] == "|---|---|---|---|---|---|"
    assert [line.split(" | ")[4] for line in lines[2:]] == ["NOT MET", "-", "met"]
    assert {line.count("|") for line in lines} == {7}


def test_what_grows_in_proportion_lies_on_the_straight_line() -> None:
    costs = {"batch": (10.0, 100.0), "one": (20.0, 20.0), "argmax": (1.0, 30.0)}
    few, many, *_, named = curves((100, 1000), costs, "us")
    assert few == "    100 |a" + " " * 29 + "b" + " " * 8 + "o"
    assert (many.index("b"), many.index("o"), many.index("a")) == (9 + 60, few.index("o"), 9 + 44)
    assert "/" not in few + many, "the first is on the line"
    slow = curves((100, 1000), {"batch": (10.0, 20.0)}, "us")[1]
    assert slow.index("b") < slow.index("/")
    assert named == "b batch, o one, a argmax, / in proportion"
