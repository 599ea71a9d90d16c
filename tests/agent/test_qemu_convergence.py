"""When a pre-copy that gets nowhere is ended another way: for every course its residues may take."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.agent.drivers.qemu.convergence import (
    HOPELESS_S,
    KEPT,
    Decision,
    GiveUp,
    History,
    Keep,
    Sample,
    StopGuest,
    SwitchToPostcopy,
    decide,
    noted,
)
from novacron.model.migration import Goals, Strategy, Tactics

MIB = 1 << 20
LINK = 100 * MIB  # bytes/s
GOALS = Goals(max_downtime_ms=100)  # 30 ms of the link: 3 MiB
PRECOPY = Tactics()
POSTCOPY = Tactics(strategy=Strategy.POSTCOPY)
HYBRID = Tactics(strategy=Strategy.HYBRID)
PAUSING = Tactics(may_pause=True)
FINISH_BY_S = 3600.0
LOOK_S = 0.5


def course(residues: list[float], *, link: float = LINK, look_s: float = LOOK_S) -> list[Sample]:
    """What is seen of a transfer whose passes begin with these: a look at each new pass, and every so often."""
    seen, at_s, sent = [], 0.0, 0.0
    for number, residue in enumerate(residues):
        left = residue
        while left > 0:
            seen.append(
                Sample(
                    at_s=at_s,
                    remaining_bytes=int(left),
                    transferred_bytes=int(sent),
                    dirty_bytes_per_s=80 * MIB,
                    rate_bytes_per_s=link,
                    iteration=number + 1,
                )
            )
            step = min(look_s, left / link)
            at_s, sent, left = at_s + step, sent + step * link, left - step * link
    return seen


def decisions(
    samples: list[Sample], tactics: Tactics, goals: Goals = GOALS, by_s: float = FINISH_BY_S
) -> list[Decision]:
    """The decision at each look; the last is the first that is not to go on."""
    history: History = ()
    made: list[Decision] = []
    for sample in samples:
        history = noted(history, sample)
        made.append(decide(history, goals, tactics, by_s))
        if not isinstance(made[-1], Keep):
            break
    return made


sizes = st.floats(min_value=64 * MIB, max_value=1024 * MIB)


@settings(deadline=None)
@given(memory=sizes, tactics=st.sampled_from([PRECOPY, HYBRID, PAUSING, POSTCOPY]))
def test_in_the_first_pass_nothing_is_decided(memory: float, tactics: Tactics) -> None:
    assert all(isinstance(made, Keep) for made in decisions(course([memory]), tactics))


@settings(deadline=None)
@given(memory=sizes, residue=sizes)
def test_postcopy_comes_right_after_the_first_pass(memory: float, residue: float) -> None:
    samples = course([memory, residue])
    made = decisions(samples, POSTCOPY)
    assert isinstance(made[-1], SwitchToPostcopy)
    assert samples[len(made) - 1].iteration == 2
    assert samples[len(made) - 2].iteration == 1


@settings(deadline=None)
@given(
    memory=st.floats(min_value=64 * MIB, max_value=512 * MIB),  # at its slowest a matter of 20 s
    ratio=st.floats(min_value=0.05, max_value=0.8),
    look_s=st.floats(min_value=0.2, max_value=1.0),
    tactics=st.sampled_from([PRECOPY, HYBRID, PAUSING]),
)
def test_what_shrinks_geometrically_is_never_cut_short(
    memory: float, ratio: float, look_s: float, tactics: Tactics
) -> None:
    residues = [memory * ratio**number for number in range(60)]
    samples = course([residue for residue in residues if residue > MIB], look_s=look_s)
    assert all(isinstance(made, Keep) for made in decisions(samples, tactics))


@settings(deadline=None)
@given(
    memory=sizes,
    residue=st.floats(min_value=16 * MIB, max_value=512 * MIB),
    noise=st.lists(st.floats(min_value=0.8, max_value=1.25), min_size=60, max_size=60),
)
@pytest.mark.parametrize(("tactics", "expected"), [(HYBRID, SwitchToPostcopy), (PAUSING, StopGuest)])
def test_what_stays_as_it_is_is_always_decided(
    memory: float, residue: float, noise: list[float], tactics: Tactics, expected: type
) -> None:
    made = decisions(course([memory, *(residue * factor for factor in noise)]), tactics)
    assert isinstance(made[-1], expected)


@settings(deadline=None)
@given(residue=st.floats(min_value=16 * MIB, max_value=512 * MIB), passes=st.integers(min_value=2, max_value=4))
def test_a_guest_that_writes_for_a_moment_is_waited_for(residue: float, passes: int) -> None:
    calm = [residue * 0.3**number for number in range(1, 5)]
    samples = course([1024 * MIB, *([residue] * passes), *calm])
    assert all(isinstance(made, Keep) for made in decisions(samples, HYBRID))


def test_the_reason_names_both_rates() -> None:
    made = decisions(course([1024 * MIB] + [64 * MIB] * 20), HYBRID)[-1]
    assert isinstance(made, SwitchToPostcopy)
    assert "the guest writes 80.0 MiB/s" in made.reason
    assert "the link moves 100.0 MiB/s" in made.reason


def test_a_throttled_guest_is_given_the_time_to_slow_down() -> None:
    throttled = Tactics(strategy=Strategy.HYBRID, max_throttle_percent=80)
    flat = course([1024 * MIB] + [64 * MIB] * 200)
    waits_s = [flat[len(decisions(flat, tactics)) - 1].at_s for tactics in (HYBRID, throttled)]
    assert waits_s[1] > waits_s[0] + 14 * 0.6
    slowing = [64 * MIB] * 12 + [64 * MIB * 0.6**number for number in range(8)]
    assert all(isinstance(made, Keep) for made in decisions(course([1024 * MIB, *slowing]), throttled))


def test_a_slow_end_is_not_waited_for() -> None:
    residues = [4096 * MIB * 0.95**number for number in range(120)]  # minutes at this pace
    assert isinstance(decisions(course([8192 * MIB, *residues]), HYBRID)[-1], SwitchToPostcopy)
    assert isinstance(decisions(course([8192 * MIB, *residues]), PAUSING, by_s=300.0)[-1], StopGuest)
    assert all(isinstance(made, Keep) for made in decisions(course([8192 * MIB, *residues]), PRECOPY, by_s=300.0))


def test_what_fits_into_the_downtime_is_left_to_end() -> None:
    fits = course([1024 * MIB] + [2 * MIB] * 300)
    assert all(isinstance(made, Keep) for made in decisions(fits, HYBRID))
    unbounded = Goals(max_downtime_ms=0)
    assert all(isinstance(made, Keep) for made in decisions(course([1024 * MIB] + [64 * MIB] * 300), HYBRID, unbounded))


def test_a_plain_precopy_is_given_up_only_when_it_is_clear() -> None:
    flat = course([1024 * MIB] + [512 * MIB] * 60)
    made = decisions(flat, PRECOPY)
    assert isinstance(made[-1], GiveUp)
    assert "pre-copy would not end" in made[-1].reason
    assert flat[len(made) - 1].at_s >= HOPELESS_S
    quick = course([1024 * MIB] + [8 * MIB] * 60)  # as many passes in a few seconds
    assert all(isinstance(one, Keep) for one in decisions(quick, PRECOPY))


@settings(deadline=None)
@given(passes=st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=100))
def test_the_history_is_bounded_and_keeps_where_passes_begin(passes: list[int]) -> None:
    history: History = ()
    for number, looks in enumerate(passes):
        for look in range(looks):
            sample = Sample(
                at_s=number + look / 10,
                remaining_bytes=look,
                transferred_bytes=0,
                dirty_bytes_per_s=0,
                rate_bytes_per_s=0,
                iteration=number + 1,
            )
            history = noted(history, sample)
            assert history[-1] == sample
    assert len(history) <= KEPT
    firsts = [seen.iteration for seen in history if seen.remaining_bytes == 0]
    assert firsts == list(range(len(passes) - len(firsts) + 1, len(passes) + 1))
