"""From silence to restart as decisions: whom a server bars, how long it waits, who is taken over, in which order."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.ha import brake, fence, sight, takeover
from novacron.control.ha.fence import Bar, Fence, Hold
from novacron.control.ha.sight import Sight
from novacron.control.ha.takeover import Claim
from novacron.control.scheduler.snapshot import Candidate, Limits, Need, PoolNeed
from novacron.model import membership
from novacron.model.ha import FenceClass, Fenced, FenceLog, HaPolicy, Proof, Protection
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import Membership, MemberState
from novacron.model.migration import Migration, MigrationKind, MigrationState, Strategy
from novacron.model.node import DriverFacts, Node, NodeFacts, NodeState
from novacron.model.timing import FIFTH, STANDARD, Timing
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec

NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
RESTART = Protection(policy=HaPolicy.RESTART)


def member(name: str, state: MemberState = MemberState.UP, **changed: Any) -> Membership:
    found = Membership(
        id=name,
        state=state,
        epoch=1,
        beats=1,
        ttl_s=15.0,
        fence_class=FenceClass.WATCHDOG,
        boot_id="b",
        servers=("s0",),
    )
    return msgspec.structs.replace(found, **changed)


def seen(name: str, since_s: float, state: MemberState = MemberState.UP, **changed: Any) -> Sight:
    return Sight(member=member(name, state, **changed), since_s=since_s)


def judged(sights: list[Sight], now_s: float, log: FenceLog = FenceLog(), worth: bool = True) -> dict[str, object]:  # noqa: B008
    by_id = {one.member.id: one for one in sights}
    found = fence.verdicts("s0", by_id, log, lambda _: worth, now_s, STANDARD)
    return {one.node_id if isinstance(one, Hold) else one.seen.id: one for one in found}


# -- seeing --------------------------------------------------------------------------------------------------------


def test_only_what_gives_a_node_time_begins_its_silence_anew() -> None:
    one = sight.looked(None, member("n"), 100.0)
    assert sight.looked(one, member("n"), 105.0).since_s == 100.0
    barred = membership.barred(member("n"), member("n"), "silent")
    assert barred is not None
    later = sight.looked(one, barred, 111.0)
    assert (later.since_s, later.member.state) == (100.0, MemberState.FENCING)
    assert sight.looked(one, member("n", beats=2), 105.0).since_s == 105.0


def test_an_older_reading_changes_nothing() -> None:
    one = sight.looked(None, member("n", beats=5, epoch=3), 100.0)
    assert sight.looked(one, member("n", beats=4, epoch=3), 101.0) == one
    assert sight.looked(one, member("n", beats=5, epoch=2), 101.0) == one


RATES = st.floats(1 - STANDARD.rate_bound, 1 + STANDARD.rate_bound)


@given(
    st.sampled_from([STANDARD, FIFTH]),
    st.sampled_from([5.0, 15.0, 300.0]),
    RATES,
    RATES,
    st.floats(0, 8),
    st.floats(0, 8),
)
def test_the_wait_outlasts_any_deadline_by_any_clock(
    timing: Timing, ttl_s: float, server_rate: float, node_rate: float, on_its_way_s: float, late_s: float
) -> None:
    """True times: the heartbeat was sent at 0, seen later; then the server promised, asked for a moment before."""
    seen_s, promised_s = on_its_way_s, on_its_way_s + late_s
    one = Sight(member=member("n", ttl_s=ttl_s), since_s=seen_s * server_rate, promised_s=promised_s * server_rate)
    free_s = sight.free_after_s(one, timing) / server_rate
    deadline_s = max(ttl_s / node_rate, promised_s + timing.promise_s / node_rate)
    assert free_s > deadline_s + timing.kill_s / node_rate


def test_a_server_that_was_started_anew_waits_for_what_it_may_have_promised() -> None:
    one = seen("n", 100.0, ttl_s=3.0)
    assert sight.free_after_s(one, STANDARD) > 100.0 + STANDARD.promise_s + STANDARD.kill_s


# -- barring and fencing -------------------------------------------------------------------------------------------


def test_a_silent_node_is_barred_then_waited_for_then_fenced_each_with_a_reason() -> None:
    others = [seen("b", 128.0), seen("c", 128.0)]
    assert judged([seen("a", 100.0), *others], 109.9) == {}
    bar = judged([seen("a", 100.0), *others], 111.0)["a"]
    assert bar == Bar(member("a"), "no heartbeat for 11.0 s")
    out = seen("a", 100.0, MemberState.FENCING, reason="no heartbeat for 11.0 s")
    assert judged([out, *others], 121.6) == {}
    done = judged([out, *others], 121.8)["a"]
    assert isinstance(done, Fence)
    assert done.reason.startswith("no heartbeat for 11.0 s; no machine of it outlives")
    assert judged([seen("a", 0.0, MemberState.FENCED), *others], 130.0) == {}


def test_a_node_that_announced_a_longer_silence_is_not_suspect_before() -> None:
    away = seen("a", 100.0, ttl_s=60.0)
    assert judged([away, seen("b", 150.0)], 154.0) == {}
    assert isinstance(judged([away, seen("b", 150.0)], 155.5)["a"], Bar)


def test_a_node_that_was_promised_time_is_not_barred() -> None:
    one = sight.promised(seen("a", 100.0), 112.0)
    assert judged([one, seen("b", 120.0)], 121.0) == {}
    assert isinstance(judged([one, seen("b", 120.0)], 122.5)["a"], Bar)


def test_a_server_that_the_node_does_not_ask_fences_nobody() -> None:
    assert judged([seen("a", 100.0, servers=("s1",)), seen("b", 120.0)], 121.0) == {}


def test_barring_what_helps_nobody_is_left_alone_and_told() -> None:
    hold = judged([seen("a", 100.0), seen("b", 120.0)], 121.0, worth=False)["a"]
    assert isinstance(hold, Hold)
    assert hold.reason.code == "ha.cannot_guarantee"


def test_in_a_storm_nobody_is_barred_or_fenced_not_even_the_first_to_be_suspect() -> None:
    """Heartbeats are spread: a common cause shows at the second node up to a heartbeat later."""
    quiet = [seen("c", 110.0)]
    first = judged([seen("a", 100.0), seen("b", 102.0), *quiet], 110.5)
    assert list(first) == ["a"]
    assert isinstance(first["a"], Hold)
    assert first["a"].reason.code == "fence.storm"
    barred = seen("a", 90.0, MemberState.FENCING)
    held = judged([barred, seen("b", 102.0), *quiet], 112.0)
    assert all(isinstance(one, Hold) and one.reason.code == "fence.storm" for one in held.values())
    assert set(held) == {"a", "b"}


@given(st.lists(st.tuples(st.sampled_from(MemberState), st.floats(0, 60)), min_size=1, max_size=30))
def test_nobody_is_barred_while_more_than_a_third_are_silent(nodes: list[tuple[MemberState, float]]) -> None:
    sights = [seen(f"n{i}", 60.0 - silent, state) for i, (state, silent) in enumerate(nodes)]
    suspect = [one for one in sights if one.member.state is not MemberState.FENCED and 60.0 - one.since_s >= 10.0]
    found = judged(sights, 60.0)
    if len(suspect) > 1 and len(suspect) * 3 > len(sights):
        assert all(isinstance(one, Hold) for one in found.values())
    assert all(
        one.seen.state is (MemberState.UP if isinstance(one, Bar) else MemberState.FENCING)
        for one in found.values()
        if isinstance(one, Bar | Fence)
    )


def test_one_silent_node_of_two_is_no_storm() -> None:
    assert isinstance(judged([seen("a", 100.0), seen("b", 112.0)], 112.0)["a"], Bar)


def full(count: int = STANDARD.fences) -> FenceLog:
    recent = tuple(Fenced(number=n + 1, node_id=f"x{n}", epoch=1, reason="silent") for n in range(count))
    return FenceLog(last_number=count, recent=recent)


def test_after_so_many_fences_the_next_waits_until_a_server_has_seen_them_for_the_whole_window() -> None:
    hold = judged([seen("a", 100.0), seen("b", 120.0)], 121.0, full())["a"]
    assert isinstance(hold, Hold)
    assert hold.reason.code == "fence.limit"
    assert isinstance(judged([seen("a", 100.0), seen("b", 120.0)], 121.0, full(STANDARD.fences - 1))["a"], Bar)
    since = brake.watched({}, full(), 50.0)
    assert since == brake.watched(since, full(), 99.0)
    assert brake.lapsed(since, 50.0 + STANDARD.fence_window_s, STANDARD) == frozenset()
    assert brake.lapsed(since, 60.0 + STANDARD.fence_window_s, STANDARD) == frozenset({1, 2, 3, 4})


# -- taking over ---------------------------------------------------------------------------------------------------


def vm(name: str, node: str = "a", **changed: Any) -> Vm:
    found = Vm(
        id=name,
        name=name,
        spec=VmSpec(image_id="i"),
        desired=Desired.RUNNING,
        created_at=NOW,
        updated_at=NOW,
        node_id=node,
        generation=4,
    )
    return msgspec.structs.replace(found, **changed)


def claim(name: str, protection: Protection = RESTART, pool_on: str = "", **changed: Any) -> Claim:
    pools = (PoolNeed(id="local", name="local", node_id=pool_on),) if pool_on else ()
    return Claim(vm=vm(name, **changed), protection=protection, need=Need(memory_mib=1024, vcpus=1, pools=pools))


def candidate(name: str, memory_mib: int = 65536) -> Candidate:
    driver = DriverFacts(name="qemu", version="7.2", default_machine_types={"q35": "pc-q35-7.2"})
    facts = NodeFacts(
        hostname=name,
        kernel="6",
        architecture="x86_64",
        boot_id="",
        cpu_model="",
        cpu_flags=(),
        cpu_count=16,
        memory_mib=memory_mib,
        agent_version="1",
        drivers=(driver,),
    )
    node = Node(id=name, name=name, state=NodeState.UP, created_at=NOW, updated_at=NOW, state_since=NOW, facts=facts)
    return Candidate(node=node, pools={"local": ""})


DEAD = member("a", MemberState.FENCED, reason="no heartbeat for 11 s")


def held_codes(claims: list[Claim], dead: Membership = DEAD) -> dict[str, str]:
    found = takeover.plan(dead, claims, [candidate("a"), candidate("b")], Limits())
    return {one.subject: one.code for one in found.held}


def test_who_may_be_restarted_elsewhere() -> None:
    unguarded = msgspec.structs.replace(DEAD, fence_class=FenceClass.TIMER)
    claims = [
        claim("v0"),
        claim("v1", Protection()),
        claim("v2", msgspec.structs.replace(RESTART, min_class=FenceClass.TIMER)),
    ]
    assert held_codes(claims) == {"v1": "ha.none"}
    assert held_codes(claims, unguarded) == {"v0": "ha.cannot_guarantee", "v1": "ha.none"}
    for proof in (Proof.AGENT, Proof.POWER):
        proved = msgspec.structs.replace(unguarded, proof=proof)
        assert held_codes(claims, proved) == {"v1": "ha.none"}
    for state in (MemberState.UP, MemberState.FENCING):
        refused = takeover.refusal(claim("v0"), member("a", state))
        assert refused is not None
        assert refused.code == "ha.not_fenced"


def test_no_fence_class_lets_go_what_it_does_not_guard() -> None:
    """Where a VM could not be restarted elsewhere, it has no deadline either, and the node is not worth fencing."""
    for fence_class in FenceClass:
        dead = msgspec.structs.replace(DEAD, fence_class=fence_class)
        for wants in FenceClass:
            protection = msgspec.structs.replace(RESTART, min_class=wants)
            worth = takeover.is_worth(protection, dead)
            assert worth == (takeover.refusal(claim("v", protection), dead) is None)


def test_what_counts_is_what_is_wished_and_what_the_machine_was_started_with() -> None:
    def of(wished: Protection, booted: Protection | None) -> Protection:
        spec = VmSpec(image_id="i", ha=wished)
        runs = None if booted is None else msgspec.structs.replace(spec, ha=booted)
        return takeover.protection_of(vm("v", spec=spec, booted=runs))

    none, timed = Protection(), Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER)
    assert of(timed, None) == of(timed, timed) == timed
    assert of(timed, none).policy is HaPolicy.NONE  # it has no deadline
    assert of(none, timed).policy is HaPolicy.NONE
    assert of(timed, RESTART).min_class is of(RESTART, timed).min_class is FenceClass.WATCHDOG


def test_restarts_go_by_priority_and_who_finds_no_room_is_told_why() -> None:
    first = msgspec.structs.replace(RESTART, priority=90)
    claims = [claim("v0"), claim("v1", first), claim("v2"), claim("v3", desired=Desired.STOPPED), claim("v4", node="b")]
    found = takeover.plan(DEAD, claims, [candidate("a"), candidate("b", memory_mib=512 + 2 * 1024)], Limits())
    assert [one.vm_id for one in found.restarts] == ["v1", "v0", "v2"]
    assert [one.target_id for one in found.restarts] == ["b", "b", ""]
    assert [reason.code for reason in found.restarts[2].reasons] == ["memory.short"]


def test_a_vm_whose_disk_the_other_nodes_have_not_stays() -> None:
    found = takeover.plan(DEAD, [claim("v0", pool_on="a")], [candidate("a"), candidate("b")], Limits())
    assert [(one.target_id, one.reasons[0].code) for one in found.restarts] == [("", "pool.elsewhere")]


def test_what_is_taken_over_has_a_new_owner_a_new_generation_and_is_to_be_started() -> None:
    before = vm("v0", migration_id="m", node_lost=True, task=Task(id="t", kind=TaskKind.RESTART, requested_at=NOW))
    after = takeover.taken_over(before, DEAD, "b", "task", NOW)
    assert (after.node_id, after.generation, after.migration_id, after.observed) == ("b", 5, "", None)
    assert after.task is not None
    assert (after.task.kind, after.task.id) == (TaskKind.START, "task")
    assert DEAD.reason in after.task.requested_by


def test_the_migration_that_held_it_ends_and_says_why() -> None:
    under_way = Migration(
        id="m",
        vm_id="v0",
        vm_name="v0",
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node="a",
        target_node="b",
        generation=4,
        state=MigrationState.SWITCHING,
        created_at=NOW,
        updated_at=NOW,
    )
    ended = takeover.cut_short(under_way, DEAD, NOW)
    assert ended.state is MigrationState.FAILED
    assert ended.problem is not None
    assert DEAD.reason in ended.problem.message
    assert takeover.cut_short(ended, DEAD, NOW) is ended


def test_what_ended_with_its_node_is_started_again_where_it_is() -> None:
    up = member("a")
    gone = MachineReport(vm_id="v0", generation=4, status=MachineStatus.ABSENT, since=NOW)

    def here(protection: Protection = RESTART, its: Membership = up, **changed: Any) -> Vm | None:
        return takeover.restart_here(vm("v0", **({"observed": gone} | changed)), protection, its, "task", NOW)

    again = here()
    assert again is not None
    assert again.task is not None
    assert (again.task.kind, again.node_id, again.generation) == (TaskKind.START, "a", 4)
    assert here(Protection()) is None
    assert here(its=DEAD) is None
    assert here(its=member("b")) is None
    assert here(observed=None) is None
    assert here(migration_id="m") is None
    assert here(desired=Desired.STOPPED) is None
    assert here(observed=msgspec.structs.replace(gone, status=MachineStatus.RUNNING)) is None
