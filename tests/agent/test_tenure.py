"""Until when a node may run machines, and what it may start: against a record that answers late, twice or never."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent import keeper, self_fence, tenure, warrant
from novacron.agent.ledger import Holding, Role
from novacron.agent.tenure import Beat, Join, Tenure
from novacron.agent.warrant import Order
from novacron.model import membership
from novacron.model.ha import FenceClass, HaPolicy, Proof, Protection
from novacron.model.membership import Membership, MemberState, Pledge
from novacron.model.timing import STANDARD

TTL_S = STANDARD.ttl_s
SERVERS = ("s0", "s1")


def member(state: MemberState = MemberState.UP, epoch: int = 1, beats: int = 1, ttl_s: float = TTL_S) -> Membership:
    return Membership(
        id="n", state=state, epoch=epoch, beats=beats, ttl_s=ttl_s, fence_class=FenceClass.WATCHDOG, boot_id="boot"
    )


def held(now_s: float = 100.0, epoch: int = 1) -> Tenure:
    """A tenure that was joined at `now_s`."""
    join = Join(seen=None, at_s=now_s, ttl_s=TTL_S, servers=SERVERS, end_first=False)
    return tenure.joined(tenure.sending(Tenure(ttl_s=TTL_S), join), join, member(epoch=epoch))


def test_a_deadline_counts_from_before_it_was_asked_for() -> None:
    now, beat = tenure.beating(held(100.0), 102.0)
    assert now.deadline_s == 115.0  # nothing yet
    assert tenure.beat_counted(now, beat).deadline_s == 117.0  # whenever the answer comes
    later, second = tenure.beating(now, 104.0)
    both = tenure.beat_counted(tenure.beat_counted(later, second), beat)
    assert both.deadline_s == 119.0  # answers that overtake each other take nothing away
    assert tenure.beat_counted(held(100.0, epoch=3), beat) == held(100.0, epoch=3)


def test_a_new_agent_has_no_time_until_it_has_joined() -> None:
    fresh = Tenure(ttl_s=TTL_S)
    assert fresh.deadline_s == -math.inf
    join = tenure.joining(fresh, None, SERVERS, 5.0)
    assert join == Join(seen=None, at_s=5.0, ttl_s=TTL_S, servers=SERVERS, end_first=False)
    assert join.latest_s == 20.0


def test_what_a_refusal_asks_for() -> None:
    mine = held(100.0)
    assert tenure.joining(mine, member(), SERVERS, 103.0) is None
    for state, end_first in ((MemberState.UP, False), (MemberState.FENCING, False), (MemberState.FENCED, True)):
        join = tenure.joining(mine, member(state, epoch=4), SERVERS, 103.0)
        assert join is not None
        assert (join.at_s, join.end_first) == (103.0, end_first)


def test_an_answer_to_an_older_join_changes_nothing() -> None:
    mine = held(100.0, epoch=5)
    assert (
        tenure.joined(mine, Join(seen=None, at_s=200.0, ttl_s=TTL_S, servers=SERVERS, end_first=False), member(epoch=4))
        == mine
    )


def test_a_shorter_ttl_counts_before_it_is_sent() -> None:
    long = msgspec.structs.replace(held(100.0), ttl_s=300.0)
    long, beat = tenure.beating(long, 100.0)
    long = tenure.beat_counted(long, beat)
    assert long.deadline_s == 400.0
    short = tenure.with_ttl(long, TTL_S, 150.0)
    assert short.deadline_s == 165.0
    assert tenure.beat_counted(short, beat).deadline_s == 165.0  # a late answer for the long one
    again, beat = tenure.beating(short, 151.0)
    assert beat.ttl_s == TTL_S
    assert tenure.beat_counted(again, beat).deadline_s == 166.0


def test_a_shorter_ttl_counts_for_a_join_that_is_on_its_way_too() -> None:
    fresh = Tenure(ttl_s=300.0)
    join = tenure.joining(fresh, None, SERVERS, 100.0)
    assert join is not None
    short = tenure.with_ttl(tenure.sending(fresh, join), TTL_S, 101.0)
    assert tenure.joined(short, join, member(ttl_s=300.0)).deadline_s == 115.0


def test_leaving_ends_it_whatever_the_answer() -> None:
    gone = tenure.leaving(held(100.0), 103.0)
    assert (gone.epoch, gone.deadline_s) == (0, -math.inf)
    late = Beat(epoch=1, beats=2, ttl_s=TTL_S, at_s=101.0)
    assert tenure.beat_counted(gone, late) == gone
    before = Join(seen=None, at_s=102.0, ttl_s=TTL_S, servers=SERVERS, end_first=False)
    assert tenure.joined(gone, before, member(epoch=2)) == gone
    again = msgspec.structs.replace(before, at_s=104.0)
    assert tenure.joined(tenure.sending(gone, again), again, member(epoch=4)).deadline_s == 119.0


def test_time_from_servers_needs_all_of_them_and_time_that_is_left() -> None:
    mine = held(100.0)  # until 115

    def given_at(now_s: float, agreed: tuple[str, ...], epoch: int = 1) -> float:
        return tenure.given_time(mine, epoch, 114.0, agreed, now_s, STANDARD).deadline_s

    assert given_at(114.5, ("s0", "s1", "other")) == 124.0
    assert given_at(114.5, ("s0",)) == 115.0
    assert given_at(115.0, SERVERS) == 115.0
    assert given_at(114.5, SERVERS, epoch=2) == 115.0
    nobody = msgspec.structs.replace(mine, servers=frozenset())
    assert tenure.given_time(nobody, 1, 114.0, SERVERS, 114.5, STANDARD) == nobody


def test_other_servers_count_from_before_the_join_that_names_them() -> None:
    mine = held(100.0)
    join = tenure.joining(mine, member(), ("s1", "s2"), 103.0)
    assert join is not None
    sent = tenure.sending(mine, join)
    assert sent.servers == {"s0", "s1", "s2"}  # whether it was written or not
    second = tenure.joining(sent, member(), ("s1", "s2"), 105.0)
    assert second is not None
    both = tenure.sending(sent, second)
    assert tenure.joined(both, join, member(epoch=2)).servers == {"s0", "s1", "s2"}
    assert tenure.joined(both, second, member(epoch=2)).servers == {"s1", "s2"}


ORDER = Order(vm_id="v", generation=3, epoch=1)


def test_what_an_order_must_show() -> None:
    mine = held(100.0)  # until 115

    def code(order: Order = ORDER, now_s: float = 101.0, floor: int = 3, its: Tenure = mine) -> str:
        refused = warrant.refusal(order, its, floor, now_s, STANDARD)
        return "" if refused is None else refused.code

    assert code() == ""
    assert code(now_s=111.9) == ""
    assert code(now_s=112.1) == "order.deadline"
    assert code(floor=4) == "order.generation"
    assert code(its=held(100.0, epoch=2)) == "order.epoch"
    assert code(its=Tenure(ttl_s=TTL_S)) == "order.epoch"
    none = warrant.refusal(Order(vm_id="v", generation=3, epoch=0), Tenure(ttl_s=TTL_S), 0, 1.0, STANDARD)
    assert none is not None  # no epoch at either end is no warrant


def test_what_a_migration_holds_is_started_under_a_newer_ownership_only() -> None:
    assert warrant.floor_of(None) == 0
    for role, floor in ((Role.OWNED, 3), (Role.GONE, 3), (Role.LEAVING, 4), (Role.INCOMING, 4)):
        assert warrant.floor_of(Holding(vm_id="v", generation=3, role=role)) == floor


@given(st.dictionaries(st.sampled_from("abc"), st.floats(0, 100)), st.floats(0, 100))
def test_the_watchdog_is_fed_only_while_nothing_lives_beyond_its_deadline(
    armed: dict[str, float], now_s: float
) -> None:
    due = self_fence.due(armed, now_s)
    assert set(due) == {one for one, deadline_s in armed.items() if deadline_s <= now_s}
    assert self_fence.may_feed(armed, now_s) == (not due)


NO, TIMED, WATCHED = (
    Protection(),
    Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER),
    Protection(policy=HaPolicy.RESTART, min_class=FenceClass.WATCHDOG),
)


@pytest.mark.parametrize(
    ("declared", "living", "guardians", "watched", "vouched"),
    [
        (FenceClass.NONE, {}, "", "", FenceClass.NONE),
        (FenceClass.AGENT, {"a": TIMED}, "a", "a", FenceClass.AGENT),
        (FenceClass.TIMER, {"a": TIMED, "b": NO}, "a", "", FenceClass.TIMER),
        (FenceClass.TIMER, {"a": TIMED, "b": TIMED}, "a", "", FenceClass.AGENT),
        (FenceClass.TIMER, {"a": WATCHED}, "", "", FenceClass.TIMER),  # it has no deadline under that class
        (FenceClass.WATCHDOG, {"a": TIMED, "b": WATCHED}, "ab", "ab", FenceClass.WATCHDOG),
        (FenceClass.WATCHDOG, {"a": TIMED}, "a", "", FenceClass.TIMER),  # of an agent from before
        (FenceClass.WATCHDOG, {"a": WATCHED}, "", "", FenceClass.TIMER),  # started when there was no watchdog
        (FenceClass.WATCHDOG, {"a": TIMED, "b": WATCHED}, "", "", FenceClass.AGENT),
        (FenceClass.BMC, {"a": WATCHED}, "a", "a", FenceClass.BMC),
    ],
)
def test_a_node_vouches_for_no_more_than_holds_of_all_its_machines(
    declared: FenceClass, living: dict[str, Protection], guardians: str, watched: str, vouched: FenceClass
) -> None:
    assert self_fence.vouched(declared, living, set(guardians), set(watched)) is vouched


@given(st.sets(st.sampled_from("abc")), st.floats(0, 100), st.floats(0, 100))
def test_the_keeper_feeds_as_the_simulator_does(living: set[str], deadline_s: float, now_s: float) -> None:
    """It knows one deadline for all, and whether anything lives."""
    one = self_fence.may_feed(dict.fromkeys(living, deadline_s), now_s)
    assert keeper.may_feed(deadline_s, now_s, lives=bool(living)) == one


@dataclasses.dataclass
class Node:
    """One node and its record; requests wait in `way`, answers in `back`, both in any order."""

    record: Membership | None = None
    now_s: float = 100.0
    tenure: Tenure = dataclasses.field(default_factory=lambda: Tenure(ttl_s=TTL_S))
    way: list[Beat | Join] = dataclasses.field(default_factory=list)
    back: list[tuple[Beat | Join, Membership | None, bool]] = dataclasses.field(default_factory=list)
    free_s: float = -math.inf

    def send(self, what: int) -> None:
        if what % 2 and self.tenure.epoch:
            self.tenure, beat = tenure.beating(self.tenure, self.now_s)
            self.way.append(beat)
        else:
            join = tenure.joining(self.tenure, self.record, SERVERS, self.now_s)
            if join is not None:
                self.tenure = tenure.sending(self.tenure, join)
                self.way.append(join)

    def write(self, which: int) -> None:
        """A request reaches the record, now or a second time. From then on a server waits for what it says."""
        if not self.way:
            return
        asked = self.way[which % len(self.way)]
        if isinstance(asked, Beat):
            after = membership.beaten(self.record, asked.epoch, asked.beats, asked.ttl_s) if self.record else None
        else:
            seen = (asked.seen.state, asked.seen.epoch) if asked.seen else (None, 0)
            pledge = Pledge(boot_id="b", fence_class=FenceClass.WATCHDOG, ttl_s=asked.ttl_s, servers=("s0",))
            after = membership.joined(self.record, "n", seen[0], seen[1], pledge)
        if after is not None:
            self.record = after
            self.free_s = self.now_s + after.ttl_s
        self.back.append((asked, self.record, after is not None))

    def answer(self, which: int) -> None:
        if not self.back:
            return
        asked, found, counted = self.back[which % len(self.back)]
        if counted and isinstance(asked, Beat):
            self.tenure = tenure.beat_counted(self.tenure, asked)
        elif counted and isinstance(asked, Join) and found is not None:
            self.tenure = tenure.joined(self.tenure, asked, found)

    def fence(self, _which: int) -> None:
        """The record as a server that waits long enough makes it."""
        if self.record is None:
            return
        if self.record.state is MemberState.UP:
            self.record = membership.barred(self.record, self.record, "silent")
        elif self.now_s > self.free_s:
            self.record = membership.fenced(self.record, self.record, Proof.NONE, "waited for") or self.record
            assert self.now_s > self.tenure.deadline_s

    def retime(self, which: int) -> None:
        self.tenure = tenure.with_ttl(self.tenure, (5.0, TTL_S, 60.0, 300.0)[which % 4], self.now_s)


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "write", "answer", "fence", "retime"]), st.integers(0, 9), st.floats(0, 9)),
        max_size=80,
    )
)
def test_no_node_believes_in_more_time_than_its_record_gives(steps: list[tuple[str, int, float]]) -> None:
    """Whatever arrives when and how often, whoever waited by the record alone has waited long enough."""
    node = Node()
    for name, which, seconds in steps:
        node.now_s += seconds
        getattr(node, name)(which)
        if node.record is not None and node.record.state is not MemberState.FENCED:
            assert node.tenure.deadline_s <= node.free_s
