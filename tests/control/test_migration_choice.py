"""How a move is decided: predictions grow with what is to be moved, and nothing is planned that the goals forbid."""

from __future__ import annotations

import datetime
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.migrations import history, predict
from novacron.control.migrations.choice import ONE_CARRIES_BYTES_PER_S, Choice, Course, Refusal, choose
from novacron.control.migrations.decide import MAX_CHANNELS, channels_by
from novacron.control.migrations.goals import Effective, effective, sentences
from novacron.control.migrations.history import MIB, Costs, Link
from novacron.model.migration import (
    Figures,
    Goals,
    Migration,
    MigrationKind,
    MigrationState,
    Strategy,
    Transport,
    Wishes,
)
from novacron.model.policy import Policy
from novacron.model.prediction import Measurement, Range, spread

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
GIGABIT = Link(rate=Range(110.0 * MIB, 119.0 * MIB, 120.0 * MIB), basis="wire")


def measured(dirty_mib_per_s: float, used_mib: int, memory_mib: int = 4096) -> Measurement:
    return Measurement(
        at=NOW,
        interval_s=1.0,
        dirtied_bytes=int(dirty_mib_per_s * MIB),
        memory_used_bytes=used_mib * MIB,
        memory_bytes=memory_mib * MIB,
    )


def course(dirty_mib_per_s: float, used_mib: int = 512, **more: object) -> Course:
    load = predict.load_of(measured(dirty_mib_per_s, used_mib), 4096, runs=True)
    return msgspec.structs.replace(Course(node="node-2", load=load, link=GIGABIT, costs=Costs()), **more)


def goals(**said: object) -> Effective:
    return effective(Wishes(**said), None, {}, ())  # type: ignore[arg-type]


def chosen(answer: Choice | Refusal) -> Choice:
    assert isinstance(answer, Choice), answer
    return answer


def refused(answer: Choice | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


# -- predictions -------------------------------------------------------------------------------------------

AMOUNT = st.floats(0, 4000)
USED = st.integers(1, 4096)


def in_order(range_: Range) -> bool:
    return 0 <= range_.low <= range_.expected <= range_.high < math.inf


@given(AMOUNT, USED, st.integers(1, 2000), st.floats(0.1, 2000), st.booleans())
def test_every_prediction_has_a_bar_around_it(
    dirty: float, used: int, downtime_ms: int, rate: float, runs: bool
) -> None:
    load = predict.load_of(measured(dirty, used), 4096, runs=runs)
    link = Link(rate=Range(rate * MIB / 2, rate * MIB, rate * MIB * 2), basis="")
    asked = Goals(max_downtime_ms=downtime_ms)
    for one in (
        predict.precopy(load, link, Costs(), asked),
        predict.precopy(load, link, Costs(), asked, pauses=True),
        predict.postcopy(load, link, Costs()),
        predict.warm(load, link, Costs()),
        predict.cold(Costs(), at_rest=False),
        predict.cold(Costs(), at_rest=True),
    ):
        assert in_order(one.total_ms)
        assert in_order(one.downtime_ms)
        assert in_order(one.bytes_transferred)


@given(AMOUNT, AMOUNT, USED, USED, st.integers(10, 1000))
def test_more_memory_and_faster_writing_never_cost_less(
    dirty: float, other: float, used: int, more: int, downtime_ms: int
) -> None:
    slow, fast = sorted((dirty, other))
    small, large = sorted((used, more))
    asked = Goals(max_downtime_ms=downtime_ms)

    def cost(dirty_: float, used_: int) -> tuple[float, float, bool]:
        one = predict.precopy(predict.load_of(measured(dirty_, used_), 4096, runs=True), GIGABIT, Costs(), asked)
        return one.total_ms.expected, one.bytes_transferred.expected, one.ends

    for less, greater in ((cost(slow, large), cost(fast, large)), (cost(slow, small), cost(slow, large))):
        if less[2] and greater[2]:  # of two that do not end, neither has an end to compare
            assert less[0] <= greater[0] + 1e-6
            assert less[1] <= greater[1] + 1e-6
        else:
            assert less[2] >= greater[2]


@given(AMOUNT, USED, st.floats(1, 1000), st.floats(1, 1000))
def test_a_faster_link_never_takes_longer(dirty: float, used: int, one: float, other: float) -> None:
    load = predict.load_of(measured(dirty, used), 4096, runs=True)
    slow, fast = (
        predict.warm(load, Link(rate=Range(rate, rate, rate), basis=""), Costs())
        for rate in sorted((one * MIB, other * MIB))
    )
    assert fast.total_ms.expected <= slow.total_ms.expected
    assert fast.downtime_ms.expected <= slow.downtime_ms.expected


def test_the_measured_cases_of_the_study() -> None:
    """20 MiB/s of random writes over 1 Gbit/s ends within a second; 64 MiB written at full speed never does."""
    calm = predict.precopy(
        predict.load_of(measured(17, 89), 256, runs=True), GIGABIT, Costs(), Goals(max_downtime_ms=100)
    )
    assert calm.ends
    assert calm.ends_surely
    assert calm.total_ms.expected - Costs().overhead.expected < 1100
    hot = predict.precopy(
        predict.load_of(measured(64, 153), 256, runs=True), GIGABIT, Costs(), Goals(max_downtime_ms=100)
    )
    assert not hot.ends


def test_a_machine_that_stands_still_writes_nothing() -> None:
    still = predict.load_of(measured(500, 512), 4096, runs=False)
    assert predict.precopy(still, GIGABIT, Costs(), Goals(max_downtime_ms=1)).ends_surely


# -- choices -----------------------------------------------------------------------------------------------


def test_a_calm_guest_goes_by_precopy() -> None:
    way = chosen(choose(course(1), goals())).way
    assert (way.kind, way.strategy, way.pauses) == (MigrationKind.LIVE, Strategy.PRECOPY, False)


def test_a_hot_guest_goes_by_what_is_allowed_the_gentlest_first() -> None:
    hot = course(200, 1024)
    assert chosen(choose(hot, goals())).way.strategy is Strategy.HYBRID
    assert any("not live, precopy" in why for why in chosen(choose(hot, goals())).why)
    slowed = chosen(choose(hot, goals(never_postcopy=True, max_slowdown_percent=80))).way
    assert (slowed.strategy, slowed.pauses) == (Strategy.PRECOPY, False)
    assert "slowed down" in slowed.why
    paused = chosen(choose(hot, goals(never_postcopy=True, may_pause=True)))
    assert paused.way.pauses
    assert paused.goals.may_pause


def test_a_guest_that_would_not_end_is_refused_in_advance_with_what_would_help() -> None:
    reasons = refused(choose(course(200, 1024), goals(never_postcopy=True))).reasons
    assert [reason.code for reason in reasons] == ["goal.never_ends"]
    assert reasons[0].subject == "node-2"
    for word in ("never_postcopy: asked for", "may_pause", "max_slowdown_percent"):
        assert word in reasons[0].remedy


def test_without_postcopy_between_the_nodes_it_is_not_offered() -> None:
    reasons = refused(choose(course(200, 1024, no_postcopy="not on node-2"), goals())).reasons
    assert "post-copy" not in reasons[0].remedy
    asked = course(1, no_postcopy="not on node-2", asked_strategy=Strategy.POSTCOPY)
    assert refused(choose(asked, goals())).reasons[0].message == "not on node-2"


def test_a_downtime_asked_for_is_never_raised() -> None:
    hot = course(200, 2048)
    paused = refused(choose(hot, goals(never_postcopy=True, may_pause=True, max_downtime_ms=50)))
    assert {reason.code for reason in paused.reasons} == {"goal.never_ends", "goal.max_downtime_ms"}
    assert "50 (asked for)" in next(one.message for one in paused.reasons if one.code == "goal.max_downtime_ms")
    usual = chosen(choose(hot, goals(never_postcopy=True, may_pause=True)))
    assert usual.way.predicted.downtime_ms.expected > usual.goals.max_downtime_ms
    assert any("nobody asked for one" in why for why in usual.why)


def test_it_is_not_paused_when_that_would_break_the_downtime_asked_for() -> None:
    calm = chosen(choose(course(25, 2048), goals(may_pause=True, max_downtime_ms=60)))
    assert calm.way.strategy is not Strategy.PRECOPY or not calm.goals.may_pause
    assert chosen(choose(course(1), goals(may_pause=True))).goals.may_pause


def test_an_end_asked_for_is_kept_to() -> None:
    reasons = refused(choose(course(1, 4096), goals(finish_within_s=5.0))).reasons
    assert {reason.code for reason in reasons} == {"goal.finish_within_s"}
    assert "allow finish_within_s of" in reasons[0].remedy


def test_what_was_not_measured_is_refused_only_when_it_cannot_be() -> None:
    load = predict.load_of(None, 4096, runs=True)
    unmeasured = course(0, load=load)
    assert isinstance(choose(unmeasured, goals(finish_within_s=20.0)), Choice)
    assert isinstance(choose(unmeasured, goals(finish_within_s=1.0)), Refusal)


def test_a_machine_at_rest_is_reassigned_and_cold_is_only_by_request() -> None:
    assert chosen(choose(course(0, at_rest=True), goals())).way.predicted.downtime_ms.expected == 0
    cold = chosen(choose(course(1, asked_kind=MigrationKind.COLD), goals())).way
    assert cold.predicted.downtime_ms.expected >= 1000
    assert isinstance(choose(course(1, asked_kind=MigrationKind.COLD), goals(max_downtime_ms=100)), Refusal)


KINDS = st.sampled_from([None, *MigrationKind])
STRATEGIES = st.sampled_from([None, *Strategy])
SAID = st.fixed_dictionaries(
    {},
    optional={
        "max_downtime_ms": st.integers(1, 100_000),
        "finish_within_s": st.floats(1, 10_000),
        "max_slowdown_percent": st.integers(0, 90),
        "may_pause": st.booleans(),
        "never_postcopy": st.booleans(),
    },
)


@given(st.floats(0, 1000), USED, SAID, KINDS, STRATEGIES, st.sampled_from(["", "not there"]))
def test_nothing_is_planned_that_the_goals_forbid(
    dirty: float,
    used: int,
    said: dict[str, object],
    kind: MigrationKind | None,
    strategy: Strategy | None,
    no_postcopy: str,
) -> None:
    asked = goals(**said)
    answer = choose(course(dirty, used, asked_kind=kind, asked_strategy=strategy, no_postcopy=no_postcopy), asked)
    if isinstance(answer, Refusal):
        assert answer.reasons
        assert all(reason.message and reason.remedy for reason in answer.reasons)
        return
    way, predicted = answer.way, answer.way.predicted
    assert kind in (None, way.kind)
    if way.kind is MigrationKind.LIVE:
        assert strategy in (None, way.strategy)
        assert way.strategy is Strategy.PRECOPY or not (asked.goals.never_postcopy or no_postcopy)
    if kind is None:
        assert way.kind is not MigrationKind.COLD
        assert way.kind is MigrationKind.LIVE or asked.goals.may_pause
    assert predicted.ends
    assert not way.pauses or asked.goals.may_pause
    if "max_downtime_ms" in said:
        assert predicted.downtime_ms.expected <= asked.goals.max_downtime_ms
    assert predicted.total_ms.expected <= asked.goals.finish_within_s * 1e3
    kept = {"may_pause": asked.goals.may_pause, "transport": asked.goals.transport}
    assert msgspec.structs.replace(answer.goals, **kept) == asked.goals


# -- goals -------------------------------------------------------------------------------------------------


def policy(name: str, selector: dict[str, str] | None = None, *, default: bool = False, **said: object) -> Policy:
    wishes = Wishes(**said)  # type: ignore[arg-type]
    return Policy(
        id=name, name=name, goals=wishes, selector=selector or {}, is_default=default, created_at=NOW, updated_at=NOW
    )


def test_each_goal_is_the_first_that_says_it() -> None:
    named = policy("named", max_downtime_ms=20, finish_within_s=20.0)
    own = policy("own", {"tier": "db"}, max_downtime_ms=30, finish_within_s=30.0, may_pause=True)
    usual = policy("usual", default=True, max_downtime_ms=40, may_pause=False, never_postcopy=True)
    found = effective(Wishes(max_downtime_ms=10), named, {"tier": "db"}, (usual, own, named))
    assert found.goals == Goals(max_downtime_ms=10, finish_within_s=20.0, may_pause=True, never_postcopy=True)
    assert found.said_by == {
        "max_downtime_ms": "asked for",
        "finish_within_s": "policy named, which was named",
        "may_pause": "policy own, which selects it",
        "never_postcopy": "policy usual, the default",
    }
    assert "goal: downtime up to 10 ms: asked for" in sentences(found)
    assert len(sentences(found)) == 4


def test_the_policy_that_selects_most_exactly_counts() -> None:
    wide, exact = policy("a", {"tier": ""}, max_downtime_ms=1), policy("b", {"tier": "db"}, max_downtime_ms=2)
    both = policy("c", {"tier": "db", "site": ""}, max_downtime_ms=3)
    for labels, expected in (
        ({"tier": "db", "site": "x"}, 3),
        ({"tier": "db"}, 2),
        ({"tier": "web"}, 1),
        ({"site": "x"}, 100),
        ({}, 100),
    ):
        assert effective(Wishes(), None, labels, (wide, exact, both)).goals.max_downtime_ms == expected


# -- history -----------------------------------------------------------------------------------------------


def moved(rate_mib: float, *, source: str = "a", target: str = "b", age_s: int = 0, **more: object) -> Migration:
    figures = Figures(
        total_ms=3000.0,
        transfer_ms=2200.0,
        downtime_stopped_ms=40.0,
        bytes_transferred=200 * MIB,
        rate_bytes_per_s=rate_mib * MIB,
    )
    one = Migration(
        id=f"m{age_s}",
        vm_id="v",
        vm_name="web",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node=source,
        target_node=target,
        generation=1,
        state=MigrationState.COMPLETED,
        created_at=NOW,
        updated_at=NOW - datetime.timedelta(seconds=age_s),
        figures=figures,
    )
    return msgspec.structs.replace(one, **more)


def test_a_link_is_as_it_was_seen_either_way_the_newest_most() -> None:
    past = history.completed([moved(200), moved(100, source="b", target="a", age_s=9), moved(7, target="c")])
    seen = history.link(past, "a", "b", Goals())
    assert 100 * MIB < seen.rate.expected < 200 * MIB
    assert seen.rate.low < seen.rate.expected < seen.rate.high
    assert "2 earlier moves" in seen.basis
    unknown = history.link(past, "b", "c", Goals())
    assert unknown.rate == history.UNKNOWN_LINK
    assert "assumed" in unknown.basis


def test_a_cap_bounds_the_link_and_a_capped_move_tells_nothing_of_it() -> None:
    capped = moved(9.8, goals=Goals(bandwidth_bytes_per_s=10 * MIB))
    assert "assumed" in history.link(history.completed([capped]), "a", "b", Goals()).basis
    bound = history.link((), "a", "b", Goals(bandwidth_bytes_per_s=10 * MIB))
    assert bound.rate.high == 10 * MIB
    assert "the goals allow no more" in bound.basis


def test_a_stream_too_short_to_have_its_speed_tells_nothing_of_the_link() -> None:
    short = moved(2)
    short = msgspec.structs.replace(short, figures=msgspec.structs.replace(short.figures, bytes_transferred=MIB))
    assert history.link(history.completed([short]), "a", "b", Goals()).rate == history.UNKNOWN_LINK


def test_costs_are_learnt_from_completed_moves_alone() -> None:
    failed = moved(100, state=MigrationState.FAILED, figures=Figures(total_ms=9e9, transfer_ms=1.0))
    learnt = history.costs(history.completed([failed, *(moved(100, age_s=age) for age in range(6))]))
    assert learnt.overhead == Range(800.0, 800.0, 800.0)
    assert learnt.handover.expected == 40.0
    assert learnt.postcopy == history.POSTCOPY_SWITCH_MS
    assert history.costs(()).overhead == history.OVERHEAD_MS


def test_of_few_samples_the_bar_is_wide() -> None:
    assert spread([], Range(1, 2, 3)) == Range(1, 2, 3)
    assert spread([100.0], Range(1, 2, 3)) == Range(50.0, 100.0, 200.0)
    assert spread([float(one) for one in range(1, 12)], Range(1, 2, 3)) == Range(2.0, 6.0, 10.0)


@pytest.mark.parametrize("percent", [0, 50, 90])
def test_slowing_down_takes_that_part_of_the_writing_away(percent: int) -> None:
    load = predict.load_of(measured(10, 100), 4096, runs=True)
    assert predict.slowed(load, percent).dirty.expected == pytest.approx(load.dirty.expected * (1 - percent / 100))


# -- several connections -----------------------------------------------------------------------------------


def test_memory_goes_over_several_connections_where_that_helps_and_says_so() -> None:
    wide = course(0, channels=4)
    answer = chosen(choose(wide, goals()))
    assert answer.channels == 4
    assert "memory goes over 4 connections at once" in answer.why


def test_it_goes_over_one_in_post_copy_through_proxies_below_a_narrow_cap_and_where_nodes_cannot() -> None:
    wide = course(0, channels=4)
    narrow = goals(bandwidth_bytes_per_s=ONE_CARRIES_BYTES_PER_S - 1)
    for one, asked in (
        (msgspec.structs.replace(wide, asked_strategy=Strategy.POSTCOPY), goals()),
        (msgspec.structs.replace(wide, transport=Transport.PROXY), goals()),
        (wide, narrow),
        (course(0), goals()),
    ):
        answer = chosen(choose(one, asked))
        assert answer.channels == 1
        assert not [why for why in answer.why if "connections" in why]
    assert chosen(choose(wide, goals(bandwidth_bytes_per_s=ONE_CARRIES_BYTES_PER_S))).channels == 4


@given(st.integers(0, 1024))
def test_connections_grow_with_processors_up_to_a_bound(cpus: int) -> None:
    assert 2 <= channels_by(cpus) <= channels_by(cpus + 1) <= MAX_CHANNELS
