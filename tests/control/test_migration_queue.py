"""When migrations may begin: weekly windows on the calendar, and the line before each node."""

from __future__ import annotations

import datetime
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.migrations.goals import effective
from novacron.control.migrations.queue import Slots, admitted
from novacron.control.migrations.windows import opens_at, zone
from novacron.errors import InvalidInput
from novacron.model.migration import Migration, MigrationKind, MigrationState, Strategy, Wishes
from novacron.model.migration_steps import REASSIGNED, STREAMED, began, finished
from novacron.model.policy import DAYS, Policy, Window

NOW = datetime.datetime(2026, 1, 2, 12, 0, tzinfo=datetime.UTC)  # a Friday


def at(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)


def window(days: str, begins: str, ends: str, timezone: str = "UTC") -> Window:
    return Window(days=tuple(days.split()), begins=begins, ends=ends, timezone=timezone)


# -- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "now", "opens"),
    [
        ([], "2026-01-02T12:00", None),
        ([window("fri", "11:00", "13:00")], "2026-01-02T12:00", None),
        ([window("fri", "12:00", "13:00")], "2026-01-02T12:00", None),
        ([window("fri", "11:00", "12:00")], "2026-01-02T12:00", "2026-01-09T11:00"),
        ([window("fri", "22:00", "05:00")], "2026-01-02T12:00", "2026-01-02T22:00"),
        ([window("thu", "22:00", "05:00")], "2026-01-02T04:59", None),
        ([window("thu", "22:00", "05:00")], "2026-01-02T05:00", "2026-01-08T22:00"),
        ([window("sun", "22:00", "05:00"), window("sat", "06:00", "07:00")], "2026-01-02T12:00", "2026-01-03T06:00"),
        ([window("fri", "00:00", "00:00")], "2026-01-02T23:59", None),
        ([window("fri", "22:00", "05:00", "Europe/Berlin")], "2026-01-02T21:00", None),
        ([window("fri", "22:00", "05:00", "Europe/Berlin")], "2026-07-03T19:59", "2026-07-03T20:00"),
        ([window("sun", "02:30", "04:00", "Europe/Berlin")], "2026-03-29T00:00", "2026-03-29T01:30"),  # a gap
        ([window("sun", "02:30", "03:10", "Europe/Berlin")], "2026-03-28T12:00", "2026-04-05T00:30"),  # none that day
        ([window("sun", "01:00", "04:00", "Europe/Berlin")], "2026-10-25T02:30", None),  # the hour that comes twice
    ],
)
def test_the_next_opening(windows: list[Window], now: str, opens: str | None) -> None:
    assert opens_at(windows, at(now)) == (at(opens) if opens else None)


TIMES = st.times().map(lambda one: f"{one:%H:%M}")
WINDOWS = st.builds(
    Window,
    days=st.lists(st.sampled_from(DAYS), min_size=1, unique=True).map(tuple),
    begins=TIMES,
    ends=TIMES,
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Auckland"]),
)


@given(
    st.lists(WINDOWS, min_size=1, max_size=3),
    st.integers(-525_600, 525_600),
)
def test_what_waits_for_a_window_finds_it_open_when_it_comes(windows: list[Window], minutes: int) -> None:
    now = NOW + datetime.timedelta(minutes=minutes)
    opens = opens_at(windows, now)
    if opens is not None:
        assert now < opens <= now + datetime.timedelta(days=15)
        assert opens_at(windows, opens) is None


def test_a_zone_nobody_knows_names_the_field() -> None:
    with pytest.raises(InvalidInput) as refused:
        zone("Middle/Earth")
    assert refused.value.reasons[0].subject == "windows"


def test_windows_are_those_of_the_first_policy_that_has_any() -> None:
    def policy(name: str, *windows: Window, **more: object) -> Policy:
        made = {"id": name, "name": name, "goals": Wishes(), "created_at": NOW, "updated_at": NOW, "windows": windows}
        return Policy(**made, **more)  # type: ignore[arg-type]

    night, day = window("fri", "22:00", "05:00"), window("fri", "08:00", "17:00")
    own, usual = policy("own", night, selector={"a": ""}), policy("usual", day, is_default=True)
    found = effective(Wishes(), policy("named"), {"a": "b"}, [own, usual])
    assert (found.windows, found.windows_by) == ((night,), "own")
    assert effective(Wishes(), policy("named", day), {"a": "b"}, [own, usual]).windows_by == "named"
    assert effective(Wishes(), None, {}, [own, usual]).windows == (day,)
    assert effective(Wishes(), None, {}, [own]).windows == ()


# -- the line ----------------------------------------------------------------------------------------------


def migration(name: str, source: str = "a", target: str = "b", **more: object) -> Migration:
    made = {
        "id": name, "vm_id": name, "vm_name": name, "kind": MigrationKind.LIVE, "strategy": Strategy.PRECOPY,
        "source_node": source, "target_node": target, "generation": 1, "state": MigrationState.PENDING,
        "created_at": NOW, "updated_at": NOW,
    }  # fmt: skip
    return Migration(**made | more)  # type: ignore[arg-type]


def test_as_many_as_a_node_may_carry_are_let_in_by_priority_then_age() -> None:
    late = NOW + datetime.timedelta(seconds=1)
    line = [
        migration("late", created_at=late), migration("early"), migration("urgent", created_at=late, priority=90),
        migration("elsewhere", "c", "d", priority=1), migration("resting", at_rest=True, priority=0),
    ]  # fmt: skip
    assert admitted(line, (), NOW, Slots(2)).ids == ("urgent", "early", "elsewhere", "resting")
    assert admitted(line, ("late",), NOW, Slots(2)).ids == ("urgent", "elsewhere", "resting")
    begun = began(migration("begun"), STREAMED[0], NOW)
    assert admitted([*line, begun], (), NOW, Slots(1)).ids == ("elsewhere", "resting")


def test_who_waits_for_two_nodes_is_not_overtaken_on_either() -> None:
    line = [migration("busy", "b", "x"), migration("first", "a", "b", priority=90), migration("behind", "a", "c")]
    assert admitted(line, ("busy",), NOW, Slots(1)).ids == ()
    assert admitted(line[1:], (), NOW, Slots(1)).ids == ("first",)


def test_who_waits_for_a_time_takes_no_slot_and_is_looked_at_then() -> None:
    then = NOW + datetime.timedelta(hours=3)
    line = [migration("later", not_before=then, priority=90), migration("now")]
    found = admitted(line, (), NOW, Slots(1))
    assert (found.ids, found.next_at) == (("now",), then)
    assert admitted(line, (), then, Slots(1)).ids == ("later",)


LINES = st.lists(
    st.builds(
        migration,
        st.uuids().map(str),
        st.sampled_from("abc"),
        st.sampled_from("def"),
        priority=st.integers(0, 3),
        at_rest=st.booleans(),
        not_before=st.sampled_from([None, NOW, NOW + datetime.timedelta(hours=1)]),
    ),
    max_size=12,
)


def test_the_cluster_has_a_bound_too_and_who_waits_for_a_node_keeps_nobody_from_it() -> None:
    line = [
        migration("one", priority=90),
        migration("same", priority=80),
        migration("two", "c", "d"),
        migration("unlucky", "e", "f"),
    ]
    assert admitted(line, (), NOW, Slots(1, 2)).ids == ("one", "two")
    assert admitted(line, ("one",), NOW, Slots(1, 2)).ids == ("two",)
    assert admitted(line, ("one", "two"), NOW, Slots(1, 2)).ids == ()
    assert admitted([*line, migration("resting", at_rest=True)], ("one", "two"), NOW, Slots(1, 2)).ids == ("resting",)


@given(LINES, st.integers(1, 3), st.integers(0, 3))
def test_no_node_carries_more_than_it_may_and_somebody_always_goes(
    line: list[Migration], per_node: int, in_all: int
) -> None:
    found = admitted(line, (), NOW, Slots(per_node, in_all))
    inside = [one for one in line if one.id in found.ids and not one.at_rest]
    carried = Counter(node for one in inside for node in (one.source_node, one.target_node))
    assert max(carried.values(), default=0) <= per_node
    assert not in_all or len(inside) <= in_all
    due = [one for one in line if one.not_before is None or one.not_before <= NOW]
    assert bool(found.ids) is bool(due)
    assert admitted(list(reversed(line)), (), NOW, Slots(per_node, in_all)) == found


def test_what_a_migration_waited_in_line_is_not_its_time() -> None:
    let_in = NOW + datetime.timedelta(hours=2)
    end = let_in + datetime.timedelta(seconds=5)
    story = began(migration("waited"), STREAMED[0], let_in)
    assert finished(story, MigrationState.COMPLETED, end).figures.total_ms == 5000.0
    at_once = began(migration("at-once", at_rest=True), REASSIGNED[0], NOW + datetime.timedelta(milliseconds=400))
    done = finished(at_once, MigrationState.COMPLETED, NOW + datetime.timedelta(seconds=2))
    assert done.figures.total_ms == 2000.0
