"""The record of a node's membership: who may change it into what, and what that proves to those who wait."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.errors import InvalidInput
from novacron.model.ha import FenceClass, FenceLog, HaPolicy, Proof, Protection, forgotten, is_guarded, noted
from novacron.model.membership import (
    Membership,
    MemberState,
    Pledge,
    barred,
    beaten,
    fenced,
    joined,
    left,
    proven,
    state_of,
    widened,
)
from novacron.model.node import NodeState
from novacron.model.timing import FIFTH, STANDARD, Timing

PLEDGE = Pledge(boot_id="boot", fence_class=FenceClass.WATCHDOG, ttl_s=15.0, servers=("s0",))
NUMBERS = st.integers(0, 6)
STATES = st.sampled_from(MemberState)
MEMBERS = st.builds(
    Membership,
    id=st.just("n"),
    state=STATES,
    epoch=NUMBERS,
    beats=NUMBERS,
    ttl_s=st.just(15.0),
    fence_class=st.just(FenceClass.WATCHDOG),
    boot_id=st.just("boot"),
)


def changes(member: Membership, seen: Membership, epoch: int, beats: int) -> dict[str, Membership | None]:
    """Whatever anybody could write now, whatever they believe."""
    return {
        "joined": joined(member, "n", seen.state, seen.epoch, PLEDGE),
        "beaten": beaten(member, epoch, beats, 15.0),
        "barred": barred(member, seen, "silent"),
        "fenced": fenced(member, seen, Proof.NONE, "waited for"),
        "left": left(member, seen.state, epoch),
        "proven": proven(member, seen, Proof.POWER, "off"),
        "said": proven(member, seen, Proof.OPERATOR, "off"),
        "widened": widened(member, seen),
    }


@given(MEMBERS, MEMBERS, NUMBERS, NUMBERS)
def test_every_change_but_a_heartbeat_ends_an_epoch(
    member: Membership, seen: Membership, epoch: int, beats: int
) -> None:
    for name, now in changes(member, seen, epoch, beats).items():
        if now is not None:
            assert now.epoch == member.epoch + (name != "beaten")


@given(MEMBERS, MEMBERS, NUMBERS, NUMBERS)
def test_what_gives_a_node_time_has_a_number_nobody_saw_before(
    member: Membership, seen: Membership, epoch: int, beats: int
) -> None:
    for name, now in changes(member, seen, epoch, beats).items():
        if now is not None:
            assert (now.beats > member.beats) == (name in ("joined", "beaten"))


@given(MEMBERS, MEMBERS, NUMBERS, NUMBERS)
def test_a_barred_node_beats_no_more_and_only_the_very_record_judged_is_barred_or_fenced(
    member: Membership, seen: Membership, epoch: int, beats: int
) -> None:
    found = changes(member, seen, epoch, beats)
    if member.state is not MemberState.UP or epoch != member.epoch or beats <= member.beats:
        assert found["beaten"] is None
    assert (found["barred"] is not None) == (member == seen and member.state is MemberState.UP)
    assert (found["fenced"] is not None) == (member == seen and member.state is MemberState.FENCING)
    if found["joined"] is not None:
        assert (member.state, member.epoch) == (seen.state, seen.epoch)
    if found["left"] is not None:
        assert (member.state, member.epoch) == (seen.state, epoch)
        assert found["left"].proof is Proof.AGENT


@given(MEMBERS, MEMBERS)
def test_only_the_very_record_that_was_looked_at_is_proven_and_a_live_one_by_a_word_alone(
    member: Membership, seen: Membership
) -> None:
    found = changes(member, seen, 0, 0)
    assert (found["proven"] is not None) == (member == seen and member.state is not MemberState.UP)
    assert (found["said"] is not None) == (member == seen)
    off = found["said"]
    if off is not None:
        assert (off.state, off.proof) == (MemberState.FENCED, Proof.OPERATOR)
        assert proven(off, off, Proof.POWER, "again") is None
        wider = widened(off, off)
        assert wider is not None
        assert wider.all_vms
        assert widened(off, member) is None
        back = joined(wider, "n", wider.state, wider.epoch, PLEDGE)
        assert back is not None
        assert (back.proof, back.all_vms) == (Proof.NONE, False)


def test_the_life_of_a_node() -> None:
    up = joined(None, "n", None, 0, PLEDGE)
    assert up is not None
    assert (up.state, up.epoch, up.beats) == (MemberState.UP, 1, 1)
    again = beaten(up, 1, 2, 60.0)
    assert again is not None
    assert again.ttl_s == 60.0
    assert beaten(again, 1, 2, 15.0) is None  # overtaken: it would bring the old ttl back
    out = barred(again, again, "no heartbeat for 10.0 s")
    assert out is not None
    assert beaten(out, 1, 9, 15.0) is None
    dead = fenced(out, out, Proof.POWER, "its power is off")
    assert dead is not None
    assert (dead.state, dead.proof, dead.epoch) == (MemberState.FENCED, Proof.POWER, 3)
    back = joined(dead, "n", MemberState.FENCED, 3, PLEDGE)
    assert back is not None
    assert (back.state, back.proof, back.epoch) == (MemberState.UP, Proof.NONE, 4)


def test_a_join_is_checked() -> None:
    for ttl_s in (0.0, -1.0, 1e6):
        with pytest.raises(InvalidInput, match="ttl_s"):
            joined(None, "n", None, 0, msgspec.structs.replace(PLEDGE, ttl_s=ttl_s))
    assert joined(None, "n", MemberState.UP, 1, PLEDGE) is None


def test_the_word_people_see() -> None:
    up = joined(None, "n", None, 0, PLEDGE)
    assert up is not None
    assert state_of(None) is NodeState.JOINING
    assert state_of(up) is NodeState.UP
    assert state_of(up, cordoned=True) is NodeState.CORDONED
    assert state_of(up, cordoned=True, draining=True) is NodeState.DRAINING
    assert state_of(up, silent=True, cordoned=True) is NodeState.SUSPECT
    assert state_of(up, silent=True, barrable=False) is NodeState.DOWN
    for state, word in ((MemberState.FENCING, NodeState.FENCING), (MemberState.FENCED, NodeState.FENCED)):
        assert state_of(msgspec.structs.replace(up, state=state), silent=True) is word


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60), st.integers(1, 5))
def test_the_log_of_fences_never_holds_more_than_allowed(steps: list[tuple[bool, int]], limit: int) -> None:
    log, last = FenceLog(), 0
    for fences, number in steps:
        after = noted(log, "n", 1, "silent", limit) if fences else forgotten(log, frozenset({number}))
        assert (after is None) == (len(log.recent) >= limit if fences else number not in {x.number for x in log.recent})
        if after is not None:
            log = after
        assert len(log.recent) <= limit
        assert log.last_number >= last
        last = log.last_number


@given(st.sampled_from(FenceClass), st.sampled_from(FenceClass))
def test_guarded_is_what_asks_for_it_where_its_end_is_vouched_for(has: FenceClass, wants: FenceClass) -> None:
    assert not is_guarded(Protection(policy=HaPolicy.NONE, min_class=wants), has)
    guarded = is_guarded(Protection(policy=HaPolicy.RESTART, min_class=wants), has)
    assert guarded == (has >= wants and has is not FenceClass.NONE)


def test_times_that_contradict_each_other_are_refused_by_name() -> None:
    wrong: dict[str, dict[str, float]] = {
        "heartbeat_s": {"heartbeat_s": 0.0},
        "suspect_s": {"suspect_s": 15.0},
        "start_margin_s": {"start_margin_s": 15.0},
        "kill_s": {"kill_s": 5.0},
        "promise_s": {"promise_s": 0.0},
        "ttl_s": {"ttl_s": 1000.0},
        "rate_bound": {"rate_bound": 0.2},
    }
    for field, values in wrong.items():
        with pytest.raises(InvalidInput, match=field):
            Timing(**values)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="fences"):
        Timing(fences=0)
    assert FIFTH.ttl_s == STANDARD.ttl_s / 5
    assert (FIFTH.rate_bound, FIFTH.fences) == (STANDARD.rate_bound, STANDARD.fences)
