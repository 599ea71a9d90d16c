"""The balancer's decision: rules, room and load over random clusters; noise; what pays; why nothing is moved."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.control.balancer.company import Company
from novacron.control.balancer.decide import decide
from novacron.control.balancer.loads import SAMPLE_S, Smoothed
from novacron.control.balancer.plan import Plan
from novacron.control.balancer.scene import Post, Price, Scene, Seat
from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.snapshot import Need
from novacron.errors import Reason
from novacron.model.balancer import Mode, Settings, Why
from novacron.model.node import Node, NodeState
from novacron.model.placement import Effect, NodeRule, PlacementWishes, RuleKind, Taint, Toleration, VmRule
from tests.control.fleets import LIMITS, Guest, World, a_node, fleet_of, needs, why_not, with_guest, worlds

ACTING = Settings(mode=Mode.ACT, max_moves=5)
CHEAP = Price(kind="live", total_s=5.0, downtime_s=0.05)
APART = PlacementWishes(vm_rules=(VmRule(kind=RuleKind.APART, labels={"app": "web"}),))


def cheap(vm_id: str, node_id: str) -> Price:
    return CHEAP


def a_guest(name: str, node_id: str, *, memory_mib: int = 512, vcpus: int = 1, **wishes: object) -> Guest:
    return Guest(id=name, node_id=node_id, need=Need(memory_mib=memory_mib, vcpus=vcpus, **wishes))  # type: ignore[arg-type]


def a_world(nodes: Sequence[Node], guests: Sequence[Guest]) -> World:
    return World(nodes=list(nodes), guests=list(guests), reach={}, sizes={})


def a_scene(
    world: World, settings: Settings = ACTING, loads: dict[str, float] | None = None, **change: object
) -> Scene:
    """As control.balancer.survey makes it of records. Needs ask for no new disks: a machine brings its own."""
    fleet = fleet_of(world, LIMITS)
    promised = fleet.committed
    posts = [
        Post(
            node=node,
            promised_memory_mib=promised[node.id].memory_mib if node.id in promised else 0,
            promised_vcpus=promised[node.id].vcpus if node.id in promised else 0,
            load=loads.get(node.id) if loads is not None else None,
        )
        for node in world.nodes
    ]
    seats = [
        Seat(
            vm_id=guest.id,
            vm_name=guest.id,
            node_id=guest.node_id,
            need=msgspec.structs.replace(guest.need, not_nodes=(guest.node_id,), disks=()),
            memory_mib=guest.need.memory_mib,
            vcpus=guest.need.vcpus,
        )
        for guest in world.guests
    ]
    scene = Scene(settings=settings, limits=LIMITS, posts=posts, seats=seats, draft=lambda: Draft(fleet))
    return msgspec.structs.replace(scene, **change)


def after(world: World, plan: Plan) -> World:
    """Once all its moves have ended."""
    where = {move.vm_id: move.target_id for move in plan.moves}
    guests = [msgspec.structs.replace(one, node_id=where.get(one.id, one.node_id)) for one in world.guests]
    return msgspec.structs.replace(world, guests=guests)


def without_disks(world: World) -> World:
    guests = [msgspec.structs.replace(one, need=msgspec.structs.replace(one.need, disks=())) for one in world.guests]
    return msgspec.structs.replace(world, guests=guests)


CLUSTERS = st.builds(
    lambda world, more: with_more(without_disks(world), more),
    worlds(),
    st.lists(st.tuples(needs(), st.integers(0, 5)), max_size=12),
)


def with_more(world: World, more: Sequence[tuple[Need, int]]) -> World:
    """VMs that were put without a look at rules, as when rules, taints or labels have changed since."""
    guests = list(world.guests)
    for number, (need, at) in enumerate(more):
        node = world.nodes[at % len(world.nodes)]
        plain = msgspec.structs.replace(need, disks=(), node_id="", not_nodes=())
        guests.append(Guest(id=f"more-{number:02}", need=plain, node_id=node.id))
    return msgspec.structs.replace(world, guests=guests)


# -- over random clusters ----------------------------------------------------------------------------------


@given(CLUSTERS)
@settings(deadline=None, max_examples=100)
def test_no_move_oversubscribes_or_breaks_a_hard_rule(world: World) -> None:
    """Each may go there with all before it on both their nodes, as they are while they move; said the slow way."""
    plan = decide(a_scene(world), cheap)
    known, moving = {guest.id: guest for guest in world.guests}, world
    for move in plan.moves:
        guest = known[move.vm_id]
        others = [one for one in moving.guests if one.id != move.vm_id]
        target = next(node for node in world.nodes if node.id == move.target_id)
        need = msgspec.structs.replace(guest.need, not_nodes=())
        assert why_not(msgspec.structs.replace(moving, guests=others), need, target) == []
        moving = with_guest(moving, guest.need, move.target_id)


@given(CLUSTERS)
@settings(deadline=None, max_examples=100)
def test_each_move_makes_the_whole_strictly_better(world: World) -> None:
    plan = decide(a_scene(world), cheap)
    score = plan.before
    for move in plan.moves:
        assert move.before == score
        assert move.after < move.before
        score = move.after
    assert plan.after == score
    again = decide(a_scene(after(world, plan)), cheap)
    assert again.before.broken == plan.after.broken
    assert again.before.unmet == pytest.approx(plan.after.unmet, abs=1e-6)
    assert again.before.imbalance == pytest.approx(plan.after.imbalance, abs=1e-6)


@given(CLUSTERS)
@settings(deadline=None, max_examples=40)
def test_moves_come_to_an_end_and_then_there_are_none(world: World) -> None:
    for _ in range(40):
        plan = decide(a_scene(world), cheap)
        if not plan.moves:
            break
        world = after(world, plan)
    assert decide(a_scene(world), cheap).moves == ()
    assert decide(a_scene(world), cheap) == decide(a_scene(world), cheap)


@given(CLUSTERS)
@settings(deadline=None, max_examples=100)
def test_rules_are_seen_to_be_broken_exactly_where_the_scheduler_would_not_place(world: World) -> None:
    """A draft bars a VM, as if it were nowhere, from the node it is on: by its own rules, or those of others."""
    scene = a_scene(world)
    company = Company(scene)
    for seat in scene.seats:
        draft = scene.draft()
        draft.without(seat.vm_id)
        barred = draft.company(seat.need).barred.get(seat.node_id, ())
        own = {reason.code for reason in barred} - {"affinity.kept_away"}
        assert {reason.code for reason in company.broken(seat) if reason.code.startswith("affinity")} == own


@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=15)
def test_noise_around_a_balanced_state_moves_nothing(seed: int, nodes: int, each: int) -> None:
    """Loads that swing by less than the margin, a hundred rounds: no move at all."""
    rng = random.Random(seed)
    names = [f"n{number}" for number in range(nodes)]
    world = a_world(
        [a_node(name, cpu_count=16, memory_mib=65536) for name in names],
        [a_guest(f"vm-{name}-{number}", f"id-{name}") for name in names for number in range(each)],
    )
    began: Counter[str] = Counter()
    for _ in range(100):
        load = {node.id: 0.3 * sum(one.node_id == node.id for one in world.guests) for node in world.nodes}
        swing = {node_id: max(0.0, value + rng.uniform(-0.7, 0.7)) for node_id, value in load.items()}  # of 16 CPUs
        plan = decide(a_scene(world, loads=swing), cheap)
        began.update(move.vm_id for move in plan.moves)
        world = after(world, plan)
    assert began.total() == 0


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=10)
def test_noise_far_beyond_the_margin_is_smoothed_away(seed: int) -> None:
    """Each sample swings by a quarter of the node either way, and nothing cools down: an hour, hardly a move."""
    rng = random.Random(seed)
    world = a_world(
        [a_node(name, cpu_count=16, memory_mib=65536) for name in "abc"],
        [a_guest(f"vm-{number}", f"id-{'abc'[number % 3]}", vcpus=2) for number in range(12)],
    )
    began, known = 0, {node.id: Smoothed(4.0, 0.0, 0.0) for node in world.nodes}
    for turn in range(1, 361):
        for node_id, before in known.items():
            load = float(sum(one.node_id == node_id for one in world.guests)) + rng.uniform(-4, 4)
            known[node_id] = before.then(load, turn * SAMPLE_S, ACTING.window_s)
        if turn * SAMPLE_S >= ACTING.window_s and turn % 3 == 0:
            plan = decide(a_scene(world, loads={node_id: one.value for node_id, one in known.items()}), cheap)
            began += len(plan.moves)
            world = after(world, plan)
    assert began <= 3


# -- one by one --------------------------------------------------------------------------------------------


def test_a_strained_node_gives_to_the_least_used_and_says_so() -> None:
    guests = [a_guest(f"vm-{number}", "id-a") for number in range(6)]
    plan = decide(
        a_scene(a_world([a_node("a"), a_node("b")], guests), msgspec.structs.replace(ACTING, max_moves=10)), cheap
    )
    assert {(move.source, move.target, move.why) for move in plan.moves} == {("a", "b", Why.LOAD)}
    assert len(plan.moves) == 3
    assert "a is used to" in plan.moves[0].reasons[0].message
    assert [reason.code for reason in plan.reasons] == ["balance.even"]


def test_at_most_so_many_at_once_those_under_way_counted() -> None:
    world = a_world([a_node("a"), a_node("b")], [a_guest(f"vm-{number}", "id-a") for number in range(6)])
    two = msgspec.structs.replace(ACTING, max_moves=2)
    assert len(decide(a_scene(world, two), cheap).moves) == 2
    assert len(decide(a_scene(world, two, under_way=1), cheap).moves) == 1
    plan = decide(a_scene(world, two, under_way=2), cheap)
    assert plan.moves == ()
    assert "balance.max_moves" in [reason.code for reason in plan.reasons]


def test_load_counts_as_nodes_report_it_once_all_do() -> None:
    """Promised alike, used unlike: only what nodes say tells them apart."""
    guests = [a_guest(f"vm-{name}-{number}", f"id-{name}") for name in "ab" for number in range(3)]
    world = a_world([a_node("a"), a_node("b")], guests)
    assert decide(a_scene(world, loads={"id-a": 3.0}), cheap).moves == ()
    plan = decide(a_scene(world, loads={"id-a": 3.0, "id-b": 0.1}), cheap)
    assert plan.by_load
    assert [(move.source, move.target) for move in plan.moves] == [("a", "b")]


def test_a_move_that_does_not_pay_is_not_made_and_why_is_told() -> None:
    world = a_world([a_node("a"), a_node("b")], [a_guest(f"vm-{number}", "id-a") for number in range(6)])
    slow = Price(kind="live", total_s=ACTING.pays_within_s + 1, downtime_s=0.1)
    plan = decide(a_scene(world), lambda _vm, _node: slow)
    assert plan.moves == ()
    assert "move.does_not_pay" in [reason.code for reason in plan.reasons]
    halting = Price(kind="cold", total_s=30.0, downtime_s=30.0)
    assert decide(a_scene(world), lambda _vm, _node: halting).moves == ()


def test_a_broken_hard_rule_is_mended_whatever_it_costs() -> None:
    guests = [a_guest(name, "id-a", labels={"app": "web"}, wishes=APART) for name in ("w1", "w2")]
    slow = Price(kind="cold", total_s=1e5, downtime_s=1e4)
    plan = decide(a_scene(a_world([a_node("a"), a_node("b")], guests)), lambda _vm, _node: slow)
    assert [(move.vm_name, move.target, move.why) for move in plan.moves] == [("w1", "b", Why.HARD_RULE)]
    assert [reason.code for reason in plan.moves[0].reasons] == ["affinity.apart"]
    assert (plan.before.broken, plan.after.broken) == (2, 0)


def test_a_taint_that_came_later_is_a_hard_rule() -> None:
    tainted = a_node("a", taints=(Taint(key="gpu", effect=Effect.REFUSE),))
    plan = decide(a_scene(a_world([tainted, a_node("b")], [a_guest("vm", "id-a")])), cheap)
    assert [(move.target, move.reasons[0].code) for move in plan.moves] == [("b", "node.tainted")]


def test_a_soft_rule_is_met_where_that_pays_and_load_never_undoes_it() -> None:
    ssd = PlacementWishes(node_rules=(NodeRule(labels={"disk": "ssd"}, hard=False),))
    nodes = [a_node("a"), a_node("b", labels={"disk": "ssd"})]
    guests = [a_guest(f"vm-{number}", "id-a", wishes=ssd) for number in range(4)]
    world = a_world(nodes, guests)
    plan = decide(a_scene(world), cheap)
    assert {(move.target, move.why) for move in plan.moves} == {("b", Why.SOFT_RULE)}
    assert len(plan.moves) == 4
    assert decide(a_scene(after(world, plan)), cheap).moves == ()


def test_whoever_must_be_together_is_not_left_behind() -> None:
    """Moving the light one for load would break the rule of the other, which only that other has."""
    together = PlacementWishes(vm_rules=(VmRule(kind=RuleKind.TOGETHER, labels={"app": "db"}),))
    nodes = [a_node("a"), a_node("b")]
    guests = [
        a_guest("db", "id-a", memory_mib=600, labels={"app": "db"}),
        a_guest("web", "id-a", memory_mib=1500, wishes=together),
    ]
    assert decide(a_scene(a_world(nodes, guests)), cheap).moves == ()
    free = [guests[0], a_guest("web", "id-a", memory_mib=1500)]
    assert len(decide(a_scene(a_world(nodes, free)), cheap).moves) == 1


def test_a_rule_is_not_mended_by_breaking_another_and_that_is_told() -> None:
    """The one must leave a tainted node, on which the other, who does not mind, must be together with it."""
    with_db = PlacementWishes(
        vm_rules=(VmRule(kind=RuleKind.TOGETHER, labels={"app": "db"}),), tolerations=(Toleration(key="gpu"),)
    )
    nodes = [a_node("a", taints=(Taint(key="gpu"),)), a_node("b")]
    guests = [a_guest("db", "id-a", labels={"app": "db"}), a_guest("web", "id-a", wishes=with_db)]
    plan = decide(a_scene(a_world(nodes, guests)), cheap)
    assert [move.vm_name for move in plan.moves if move.why is Why.HARD_RULE] == []
    assert "balance.rules_of_others" in [reason.code for reason in plan.reasons]


def test_two_moves_of_a_plan_never_share_the_last_room() -> None:
    nodes = [a_node("a", taints=(Taint(key="gpu"),)), a_node("b")]
    guests = [a_guest(name, "id-a", memory_mib=2000) for name in ("one", "two")]
    plan = decide(a_scene(a_world(nodes, guests)), cheap)
    assert [move.vm_name for move in plan.moves] == ["one"]
    assert "balance.no_target" in [reason.code for reason in plan.reasons]


@pytest.mark.parametrize(
    "change",
    [
        {"cordoned": True},
        {"state": NodeState.SUSPECT},
        {"state": NodeState.DRAINING},
        {"state": NodeState.DOWN},
        {"taints": (Taint(key="gpu"),)},
    ],
)
def test_such_a_node_is_no_target(change: dict[str, object]) -> None:
    guests = [a_guest(f"vm-{number}", "id-a") for number in range(6)]
    plan = decide(a_scene(a_world([a_node("a"), a_node("b", **change)], guests)), cheap)
    assert plan.moves == ()
    assert plan.reasons


def test_who_rests_is_left_alone_and_why_is_told() -> None:
    world = a_world([a_node("a"), a_node("b")], [a_guest(f"vm-{number}", "id-a") for number in range(6)])
    scene = a_scene(world)
    held = [msgspec.structs.replace(one, held=Reason("vm.cooling_down", "it cools down")) for one in scene.seats]
    plan = decide(msgspec.structs.replace(scene, seats=held), cheap)
    assert plan.moves == ()
    assert "vm.cooling_down" in [reason.code for reason in plan.reasons]
    resting = [msgspec.structs.replace(one, rests=Reason("node.cooling_down", "b")) for one in scene.posts]
    plan = decide(msgspec.structs.replace(scene, posts=resting), cheap)
    assert plan.moves == ()
    assert [reason.code for reason in plan.reasons] == ["node.cooling_down", "balance.alone"]


def test_a_vm_to_be_packed_is_not_moved_for_load() -> None:
    scene = a_scene(a_world([a_node("a"), a_node("b")], [a_guest(f"vm-{number}", "id-a") for number in range(6)]))
    seats = [msgspec.structs.replace(one, for_load=False) for one in scene.seats]
    assert decide(msgspec.structs.replace(scene, seats=seats), cheap).moves == ()


def test_no_room_is_counted_on_that_is_not_free_yet() -> None:
    """b is full but for what a VM of its own would free if it moved: nothing goes there before that has ended."""
    must = PlacementWishes(node_rules=(NodeRule(labels={"rack": "1"}),))
    nodes = [a_node("a", labels={"rack": "2"}), a_node("b", labels={"rack": "1"}), a_node("c", labels={"rack": "2"})]
    must_not = PlacementWishes(node_rules=(NodeRule(labels={"rack": "2"}),))
    guests = [
        a_guest("in", "id-a", memory_mib=3000, wishes=must),
        a_guest("out", "id-b", memory_mib=3000, wishes=must_not),
    ]
    world = a_world(nodes, guests)
    plan = decide(a_scene(world), cheap)
    assert [(move.vm_name, move.target) for move in plan.moves] == [("out", "c")]
    plan = decide(a_scene(after(world, plan)), cheap)
    assert [(move.vm_name, move.target) for move in plan.moves] == [("in", "b")]
