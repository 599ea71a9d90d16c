"""When the VMs of a bulk migration move and where to: no limit is ever broken, no node ever promises what it lacks."""

from __future__ import annotations

import datetime
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.control.bulk_migrations.admission import Carried, at_once, link_of, shares
from novacron.control.bulk_migrations.loss import Lost, restarts
from novacron.control.bulk_migrations.timetable import Timetable, UnderWay, Way, Wish, timetable
from novacron.control.scheduler.placement import Candidate, Limits, Need
from novacron.errors import Reason
from novacron.model.bulk_migration import BulkLimits
from novacron.model.node import DriverFacts, Node, NodeFacts, NodeState

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
ROOM = Limits(memory_reserve_mib=0)
MIB = 1 << 20
REASON = Reason("x", "y")


def node(name: str, memory_mib: int = 8192, committed_mib: int = 0, **changed: object) -> Candidate:
    facts = NodeFacts(
        hostname=name,
        kernel="6.1",
        architecture="x86_64",
        boot_id="b",
        cpu_model="any",
        cpu_flags=(),
        cpu_count=64,
        memory_mib=memory_mib,
        agent_version="0.1.0",
        drivers=(DriverFacts(name="qemu", version="7.2", default_machine_types={"q35": "pc-q35-7.2"}),),
    )
    made = Node(
        id=name,
        name=name,
        state=NodeState.UP,
        created_at=NOW,
        updated_at=NOW,
        state_since=NOW,
        facts=facts,
    )
    return Candidate(node=msgspec.structs.replace(made, **changed), committed_memory_mib=committed_mib)


def wish(name: str, source: str, *targets: str, memory_mib: int = 512, seconds: float = 1.0, **more: object) -> Wish:
    made = Wish(
        vm_id=name,
        vm_name=name,
        source_id=source,
        need=Need(memory_mib=memory_mib, vcpus=1, not_nodes=(source,)),
        ways={target: Way(fixed_s=seconds) for target in targets},
        cannot=() if targets else (REASON,),
    )
    return msgspec.structs.replace(made, **more)


def targets(made: Timetable) -> dict[str, str]:
    return {move.vm_id: move.target_id for move in made.moves}


# -- whatever is asked ---------------------------------------------------------------------------------------

NODES = ("a", "b", "c", "d")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Wish], list[Candidate], BulkLimits]:
    wishes = []
    for number in range(draw(st.integers(0, 14))):
        source = draw(st.sampled_from(NODES))
        others = [one for one in NODES if one != source]
        ways = draw(st.lists(st.sampled_from(others), unique=True))
        made = wish(f"vm-{number}", source, memory_mib=draw(st.integers(1, 8)) * 256)
        way = st.builds(
            Way,
            fixed_s=st.floats(0, 5),
            stream_bytes=st.floats(0, 1e9),
            rate=st.floats(1e6, 1e9),
            link_rate=st.just(1e8),
        )
        wishes.append(
            msgspec.structs.replace(
                made,
                ways={target: draw(way) for target in ways},
                cannot=() if ways else (REASON,),
                priority=draw(st.integers(0, 2)),
                at_rest=draw(st.booleans()),
                prefer=draw(st.sampled_from(["", *NODES])),
                avoid=tuple(draw(st.lists(st.sampled_from(NODES), max_size=2))),
            )
        )
    held = Counter[str]()
    for one in wishes:
        held[one.source_id] += 0 if one.at_rest else one.need.memory_mib
    candidates = [node(name, held[name] + draw(st.integers(0, 8)) * 256, held[name]) for name in NODES]
    at_most = st.integers(1, 4)
    return wishes, candidates, BulkLimits(max_concurrent=draw(at_most), per_node=draw(at_most), per_link=draw(at_most))


def moments(made: Timetable) -> list[float]:
    return sorted({at for move in made.moves for at in (move.starts_at_s, move.ends_at_s)})


@given(worlds())
def test_no_limit_is_ever_exceeded(world: tuple[list[Wish], list[Candidate], BulkLimits]) -> None:
    wishes, candidates, limits = world
    made = timetable(wishes, candidates, ROOM, limits)
    for at in moments(made):
        now = [one for one in made.moves if one.starts_at_s <= at < one.ends_at_s and not one.at_rest]
        nodes = Counter(node for one in now for node in (one.source_id, one.target_id))
        links = Counter(link_of(one.source_id, one.target_id) for one in now)
        assert len(now) <= limits.max_concurrent
        assert max(nodes.values(), default=0) <= limits.per_node
        assert max(links.values(), default=0) <= limits.per_link


@given(worlds())
def test_no_node_ever_promises_more_than_it_has(world: tuple[list[Wish], list[Candidate], BulkLimits]) -> None:
    wishes, candidates, limits = world
    made = timetable(wishes, candidates, ROOM, limits)
    memory = {one.vm_id: one.need.memory_mib for one in wishes}
    for candidate in candidates:
        assert candidate.node.facts is not None
        for at in moments(made):
            held = candidate.committed_memory_mib
            for move in made.moves:
                arrived, left = move.starts_at_s <= at, move.ends_at_s <= at
                if move.target_id == candidate.node.id and arrived and not (move.at_rest and left):
                    held += memory[move.vm_id]
                if move.source_id == candidate.node.id and left and not move.at_rest:
                    held -= memory[move.vm_id]
            assert held <= candidate.node.facts.memory_mib


@given(worlds())
def test_every_vm_has_a_place_it_can_go_to_or_a_reason(
    world: tuple[list[Wish], list[Candidate], BulkLimits],
) -> None:
    wishes, candidates, limits = world
    made = timetable(wishes, candidates, ROOM, limits)
    placed = targets(made)
    assert len(made.moves) == len(placed)
    for one in wishes:
        assert (one.vm_id in placed) is not (one.vm_id in made.unplaced)
        if one.vm_id in placed:
            assert placed[one.vm_id] in one.ways
        else:
            assert made.unplaced[one.vm_id]
    assert timetable(list(reversed(wishes)), list(reversed(candidates)), ROOM, limits) == made
    assert made.total_s == max((move.ends_at_s for move in made.moves), default=0.0)


@given(st.integers(1, 10**9), st.lists(st.integers(0, 10**9), max_size=9), st.integers(0, 10**9))
def test_the_budget_is_never_exceeded_and_shared_evenly(budget: int, caps: list[int], held: int) -> None:
    by_name = {f"vm-{number}": cap for number, cap in enumerate(caps)}
    parts = shares(budget, by_name, held)
    assert sum(parts.values()) <= max(0, budget - held)
    assert all(0 < part <= (by_name[name] or budget) for name, part in parts.items())
    free = [part for name, part in parts.items() if part != by_name[name]]
    assert max(free, default=0) - min(free, default=0) <= 1  # none has more than another but for its own cap
    assert all(part <= max(free) for part in parts.values() if free)
    left = max(0, budget - held) - sum(parts.values())
    assert left == 0 or not free or left < len(caps)  # nothing is left over that one could have


# -- what is asked ------------------------------------------------------------------------------------------


def test_a_drain_moves_two_at_a_time_and_spreads_them() -> None:
    wishes = [wish(f"vm-{number}", "a", "b", "c") for number in range(6)]
    made = timetable(wishes, [node("a", committed_mib=3072), node("b"), node("c")], ROOM, BulkLimits())
    assert [move.wave for move in made.moves] == [1, 1, 2, 2, 3, 3]
    assert Counter(targets(made).values()) == {"b": 3, "c": 3}
    assert made.total_s == pytest.approx(3.0)
    assert (made.busiest[0].nodes, made.busiest[0].moves) == (("a",), 6)
    assert made.busiest[0].busy_s == pytest.approx(3.0)
    assert made.held_back_s["limit.per_node a"] == pytest.approx(4 * 1 + 2 * 1)


def test_those_with_priority_go_first_then_the_largest() -> None:
    wishes = [
        wish("small", "a", "b", memory_mib=256),
        wish("large", "a", "b", memory_mib=1024),
        wish("urgent", "a", "b", memory_mib=256, priority=90),
    ]
    made = timetable(wishes, [node("a"), node("b")], ROOM, BulkLimits(max_concurrent=1))
    assert [move.vm_id for move in made.moves] == ["urgent", "large", "small"]


def test_room_that_a_move_frees_is_used_by_the_next() -> None:
    """b is full until its VM has gone to c."""
    wishes = [wish("in", "a", "b", priority=90), wish("out", "b", "c")]
    made = timetable(wishes, [node("a"), node("b", 512, 512), node("c")], ROOM, BulkLimits())
    assert [(move.vm_id, move.wave) for move in made.moves] == [("out", 1), ("in", 2)]
    assert made.moves[1].starts_at_s == made.moves[0].ends_at_s
    assert made.held_back_s == {"memory.short b": pytest.approx(1.0)}


def test_who_finds_no_room_is_told_why_by_every_node() -> None:
    made = timetable([wish("big", "a", "b", "c", memory_mib=4096)], [node("a"), node("b", 512), node("c", 512)],
                     ROOM, BulkLimits())  # fmt: skip
    assert [(one.code, one.subject) for one in made.unplaced["big"]] == [("memory.short", "b"), ("memory.short", "c")]


def test_moves_over_one_link_share_it() -> None:
    way = Way(fixed_s=0.0, stream_bytes=100 * MIB, rate=100 * MIB, link_rate=100 * MIB)
    wishes = [wish(f"vm-{number}", "a", "b", ways={"b": way}) for number in range(2)]
    nodes = [node("a"), node("b")]
    together = timetable(wishes, nodes, ROOM, BulkLimits())
    assert together.total_s == pytest.approx(2.0)
    assert [move.ends_at_s for move in together.moves] == pytest.approx([2.0, 2.0])
    capped = [msgspec.structs.replace(one, ways={"b": msgspec.structs.replace(way, rate=50 * MIB)}) for one in wishes]
    assert timetable(capped, nodes, ROOM, BulkLimits()).total_s == pytest.approx(2.0)


def test_what_a_plan_chose_is_kept_and_what_failed_is_avoided() -> None:
    nodes = [node("a"), node("b", 16384), node("c")]
    assert targets(timetable([wish("vm", "a", "b", "c")], nodes, ROOM, BulkLimits())) == {"vm": "b"}
    assert targets(timetable([wish("vm", "a", "b", "c", prefer="c")], nodes, ROOM, BulkLimits())) == {"vm": "c"}
    assert targets(timetable([wish("vm", "a", "b", "c", avoid=("b",))], nodes, ROOM, BulkLimits())) == {"vm": "c"}
    assert targets(timetable([wish("vm", "a", "b", avoid=("b",))], nodes, ROOM, BulkLimits())) == {"vm": "b"}
    full = [node("a"), node("b"), node("c", 512, 512)]
    assert targets(timetable([wish("vm", "a", "b", "c", prefer="c")], full, ROOM, BulkLimits())) == {"vm": "b"}


def test_moves_under_way_count_for_the_limits_and_free_their_source() -> None:
    gone = UnderWay(wish=wish("gone", "b", "c"), target_id="c", left_s=5.0)
    nodes = [node("a"), node("b", 512, 512), node("c", committed_mib=512)]
    made = timetable([wish("vm", "a", "b")], nodes, ROOM, BulkLimits(), [gone])
    assert targets(made) == {"vm": "b"}
    assert made.moves[0].starts_at_s == pytest.approx(5.0)


def test_machines_at_rest_wait_for_no_limit() -> None:
    wishes = [wish(f"vm-{number}", "a", "b", at_rest=True) for number in range(5)]
    made = timetable(wishes, [node("a"), node("b")], ROOM, BulkLimits(max_concurrent=1))
    assert {move.wave for move in made.moves} == {1}


def test_limits_count_nodes_and_links_either_way() -> None:
    carried = Carried([("a", "b")], own=1)
    limits = BulkLimits(max_concurrent=2, per_node=2, per_link=1)
    assert carried.refusal(limits, "a", "c") is None
    why = carried.refusal(limits, "b", "a")
    assert why is not None
    assert why.code == "limit.per_link"
    carried.begin("a", "c")
    why = carried.refusal(limits, "d", "e")
    assert why is not None
    assert why.code == "limit.max_concurrent"
    carried.end("a", "c")
    assert carried.refusal(limits, "a", "c") is None
    assert at_once(BulkLimits(per_node=2, per_link=1), [("a", ["b", "c"])] * 5) == 2
    assert at_once(BulkLimits(), []) == 1


def test_a_lost_nodes_vms_are_placed_as_long_as_there_is_room() -> None:
    def lost(name: str, priority: int, memory_mib: int) -> Lost:
        return Lost(vm_id=name, vm_name=name, priority=priority, need=Need(memory_mib=memory_mib, vcpus=1))

    vms = [lost("low", 10, 512), lost("high", 90, 1024), lost("big", 50, 4096)]
    found = restarts(vms, [node("b", 1024), node("c", 600)], ROOM)
    assert [(one.vm_id, one.target_id) for one in found] == [("high", "b"), ("big", ""), ("low", "c")]
    assert [one.code for one in found[1].reasons] == ["memory.short", "memory.short"]
