"""Placing over all nodes at once: the same answers as the slow way, nothing promised twice, no hard rule broken."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.fleet import Fleet
from novacron.control.scheduler.placement import Need, choose, refusals
from novacron.control.scheduler.snapshot import DiskNeed, PoolNeed
from novacron.model.node import Node
from novacron.model.placement import (
    NODE_LABEL,
    Effect,
    NodeRule,
    PlacementPolicy,
    PlacementWishes,
    RuleKind,
    Taint,
    Toleration,
    VmRule,
    matches,
)
from tests.control.fleets import (
    LIMITS,
    SHARED,
    Guest,
    World,
    a_node,
    candidates_of,
    fleet_of,
    needs,
    place_of,
    put_guest,
    slow_choice,
    why_not,
    with_guest,
    worlds,
)

BATCH = st.lists(needs(), min_size=1, max_size=4)
NEED = Need(memory_mib=512, vcpus=1)


def a_world(*nodes: Node, guests: Sequence[Guest] = ()) -> World:
    """All nodes reach the shared pool of 100 bytes; nobody the other."""
    ids = frozenset(node.id for node in nodes)
    return World(nodes=list(nodes), guests=list(guests), reach={SHARED: ids}, sizes={SHARED: dict.fromkeys(ids, 100)})


def placed(world: World, batch: Sequence[Need]) -> tuple[World, list[str | None]]:
    """Where a draft puts them, one after the other, and the world then."""
    draft, where = Draft(fleet_of(world)), list[str | None]()
    for need in batch:
        node_id = draft.choose(need)
        where.append(node_id)
        if node_id is not None:
            draft.promise(need, node_id)
            world = with_guest(world, need, node_id)
    return world, where


# -- the same answers --------------------------------------------------------------------------------------


@given(worlds(), BATCH)
@settings(deadline=None)
def test_a_draft_chooses_as_the_slow_way_does(world: World, batch: list[Need]) -> None:
    draft = Draft(fleet_of(world))
    for need in batch:
        chosen = draft.choose(need)
        assert chosen == slow_choice(world, need)
        if chosen is not None:
            draft.promise(need, chosen)
            world = with_guest(world, need, chosen)


@given(worlds(), BATCH, needs())
@settings(deadline=None)
def test_what_is_told_of_each_node_is_what_was_decided(world: World, batch: list[Need], need: Need) -> None:
    """Node by node, in words: the same choice, the same scores, and reasons exactly where it cannot go."""
    fleet = fleet_of(world)
    draft, candidates = Draft(fleet), candidates_of(world, fleet)
    for one in batch:
        if (chosen := draft.choose(one)) is not None:
            draft.promise(one, chosen)
            world = with_guest(world, one, chosen)
    told, seen = draft.with_company(need), [draft.seen(one) for one in candidates]
    placement = choose(told, seen, LIMITS)
    assert placement.node_id == draft.choose(need)
    scores = draft.scores(need)
    for one in placement.scores:
        assert one.total == scores[fleet.columns.row_of[one.node_id]]
    for node, candidate in zip(world.nodes, seen, strict=True):
        assert bool(refusals(told, candidate, LIMITS)) is bool(why_not(world, need, node)), node.name


@given(worlds(), worlds(), BATCH)
@settings(deadline=None)
def test_a_fleet_kept_up_is_like_one_made_anew(before: World, after: World, batch: list[Need]) -> None:
    """Nodes, VMs, volumes and pools come, change and go; whatever was asked in between changes nothing."""
    fleet = fleet_of(before)
    for need in batch:
        Draft(fleet).choose(need)
    _become(fleet, before, after)
    kept_up, anew = Draft(fleet), Draft(fleet_of(after))
    for need in batch:
        chosen = kept_up.choose(need)
        assert chosen == anew.choose(need)
        if chosen is not None:
            kept_up.promise(need, chosen)
            anew.promise(need, chosen)


def _become(fleet: Fleet, before: World, after: World) -> None:
    for guest in before.guests[::2]:
        _forget(fleet, guest)
    fresh = fleet_of(after)
    for node in before.nodes:
        if node.id not in {one.id for one in after.nodes}:
            fleet.drop_node(node.id)
    for node in after.nodes:
        fleet.put_node(node)
    for guest in before.guests[1::2]:
        _forget(fleet, guest)
    for guest in after.guests:
        put_guest(fleet, guest)
    for pool_id, seen in fresh.pools.items():
        fleet.put_pool(pool_id, seen)


def _forget(fleet: Fleet, guest: Guest) -> None:
    fleet.drop_vm(guest.id)
    for disk in guest.need.disks:
        fleet.put_volume(f"{guest.id}-{disk.pool_id}", ())


@given(worlds(), BATCH)
@settings(deadline=None)
def test_the_order_in_which_nodes_came_does_not_matter(world: World, batch: list[Need]) -> None:
    turned = msgspec.structs.replace(world, nodes=world.nodes[::-1])
    assert placed(world, batch)[1] == placed(turned, batch)[1]


# -- what must never be ------------------------------------------------------------------------------------


@given(worlds(), BATCH)
@settings(deadline=None)
def test_nothing_is_promised_twice(world: World, batch: list[Need]) -> None:
    """Where something was put, everything that is there fits."""
    after, where = placed(world, batch)
    for node in after.nodes:
        facts, there = node.facts, [guest.need for guest in after.guests if guest.node_id == node.id]
        if node.id not in where or facts is None:
            continue
        assert sum(need.memory_mib for need in there) <= facts.memory_mib - LIMITS.memory_reserve_mib
        assert sum(need.vcpus for need in there) <= facts.cpu_count * LIMITS.cpu_overcommit
    new = after.guests[len(world.guests) :]
    for pool_id, sizes in after.sizes.items():
        for guest in new:
            counted = [one for one in after.guests if pool_id == SHARED or one.node_id == guest.node_id]
            taken = sum(disk.size_bytes for one in counted for disk in one.need.disks if disk.pool_id == pool_id)
            asks = [disk for disk in guest.need.disks if disk.pool_id == pool_id and disk.size_bytes]
            assert not asks or taken <= sizes[guest.node_id] * LIMITS.disk_overcommit


@given(worlds(), BATCH)
@settings(deadline=None)
def test_no_hard_rule_is_broken(world: World, batch: list[Need]) -> None:
    """Of those who are new, and between them and those who were there."""
    after, _ = placed(world, batch)
    nodes = {node.id: node for node in after.nodes}
    for guest in after.guests[len(world.guests) :]:
        node = nodes[guest.node_id]
        for rule in guest.need.wishes.node_rules:
            labels = node.labels | {NODE_LABEL: node.name}
            assert not rule.hard or matches(rule.labels, labels) is not rule.avoid
        for taint in node.taints:
            held = [one for one in guest.need.wishes.tolerations if one.key == taint.key]
            assert taint.effect is Effect.AVOID or any(one.value in ("", taint.value) for one in held)
        for other in after.guests:
            if other.id != guest.id:
                _check_apart(guest, other, nodes)
                _check_apart(other, guest, nodes)


def _check_apart(holder: Guest, other: Guest, nodes: dict[str, Node]) -> None:
    for rule in holder.need.wishes.vm_rules:
        if rule.hard and rule.kind is RuleKind.APART and matches(rule.labels, other.need.labels):
            mine = place_of(nodes[holder.node_id], rule.over)
            assert mine is None or mine != place_of(nodes[other.node_id], rule.over)


# -- by example --------------------------------------------------------------------------------------------


def wishing(**wishes: object) -> Need:
    return msgspec.structs.replace(NEED, labels={"app": "web"}, wishes=PlacementWishes(**wishes))  # type: ignore[arg-type]


def test_a_batch_never_shares_the_last_bytes() -> None:
    world = a_world(a_node("a", memory_mib=1024 + 128), a_node("b", memory_mib=512 + 128))
    _, where = placed(world, [NEED] * 4)
    assert sorted(one for one in where if one) == ["id-a", "id-a", "id-b"]
    assert where[-1] is None


def test_bytes_of_a_shared_pool_are_promised_once_whatever_the_node() -> None:
    disk = DiskNeed(pool_id=SHARED, pool_name=SHARED, size_bytes=100)
    need = msgspec.structs.replace(NEED, disks=(disk,), pools=(PoolNeed(id=SHARED, name=SHARED),))
    _, where = placed(a_world(a_node("a"), a_node("b")), [need] * 2)
    assert where == ["id-a", None]  # 150 bytes may be promised of 100


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        (PlacementPolicy.SPREAD, ["id-b", "id-b", "id-a"]),
        (PlacementPolicy.PACK, ["id-a", "id-a", "id-a"]),
    ],
)
def test_spread_takes_the_emptiest_and_pack_the_fullest(policy: PlacementPolicy, where: list[str]) -> None:
    there = Guest(id="vm-0", need=msgspec.structs.replace(NEED, memory_mib=600), node_id="id-a")
    assert placed(a_world(a_node("a"), a_node("b"), guests=[there]), [wishing(policy=policy)] * 3)[1] == where


def test_balance_takes_the_node_whose_cpu_and_memory_come_out_alike() -> None:
    much_cpu = Guest(id="vm-0", need=Need(memory_mib=64, vcpus=12), node_id="id-a")
    world = a_world(a_node("a"), a_node("b"), guests=[much_cpu])
    need = msgspec.structs.replace(wishing(policy=PlacementPolicy.BALANCE), memory_mib=2048)
    assert placed(world, [need])[1] == ["id-a"]
    assert placed(world, [msgspec.structs.replace(need, memory_mib=64, vcpus=4)])[1] == ["id-b"]


def test_vms_are_spread_over_zones_and_none_goes_where_another_was() -> None:
    nodes = [a_node(name, labels={"zone": zone}) for name, zone in (("a", "z1"), ("b", "z1"), ("c", "z2"))]
    spread = VmRule(kind=RuleKind.SPREAD, labels={"app": "web"}, over="zone")
    assert placed(a_world(*nodes), [wishing(vm_rules=(spread,))] * 4)[1] == ["id-a", "id-c", "id-b", "id-c"]
    apart = VmRule(kind=RuleKind.APART, labels={"app": "web"}, over="zone")
    assert placed(a_world(*nodes), [wishing(vm_rules=(apart,))] * 3)[1] == ["id-a", "id-c", None]


def test_who_keeps_apart_keeps_others_away_too() -> None:
    apart = VmRule(kind=RuleKind.APART, labels={"app": "web"}, over="zone")
    holder = msgspec.structs.replace(NEED, wishes=PlacementWishes(vm_rules=(apart,)))
    nodes = [a_node(name, labels={"zone": zone}) for name, zone in (("a", "z1"), ("b", "z1"), ("c", "z2"))]
    assert placed(a_world(*nodes), [holder, wishing(), wishing()])[1] == ["id-a", "id-c", "id-c"]
    there = Guest(id="vm-0", need=holder, node_id="id-a")
    assert placed(a_world(*nodes, guests=[there]), [wishing()])[1] == ["id-c"]


def test_a_vm_goes_where_its_company_is_once_there_is_some() -> None:
    together = VmRule(kind=RuleKind.TOGETHER, labels={"app": "web"})
    world = a_world(a_node("a"), a_node("b", memory_mib=8192))
    batch = [wishing(vm_rules=(together,)), NEED, wishing(vm_rules=(together,))]
    assert placed(world, batch)[1] == ["id-b", "id-a", "id-b"]
    there = Guest(id="vm-0", need=wishing(), node_id="id-a")
    assert placed(a_world(*world.nodes, guests=[there]), [wishing(vm_rules=(together,))])[1] == ["id-a"]


def test_taints_keep_vms_away_that_do_not_tolerate_them() -> None:
    refuses = a_node("a", memory_mib=8192, taints=(Taint(key="gpu", value="x"),))
    avoids = a_node("b", taints=(Taint(key="old", effect=Effect.AVOID),))
    world = a_world(refuses, avoids)
    assert placed(world, [NEED])[1] == ["id-b"]
    assert placed(world, [wishing(tolerations=(Toleration(key="gpu"),))])[1] == ["id-a"]
    assert placed(world, [wishing(tolerations=(Toleration(key="gpu", value="y"),))])[1] == ["id-b"]
    assert placed(a_world(a_node("a"), avoids), [NEED] * 2)[1] == ["id-a", "id-a"]


def test_nodes_are_told_by_their_labels_their_names_and_their_architecture() -> None:
    world = a_world(a_node("a", memory_mib=8192), a_node("b", labels={"disk": "ssd"}))
    for labels in ({"disk": ""}, {NODE_LABEL: "b"}, {"disk": "ssd", "novacron.io/arch": "x86_64"}):
        for hard in (True, False):
            assert placed(world, [wishing(node_rules=(NodeRule(labels=labels, hard=hard),))])[1] == ["id-b"]
    assert placed(world, [wishing(node_rules=(NodeRule(labels={"disk": "hdd"}),))])[1] == [None]
    assert placed(world, [wishing(node_rules=(NodeRule(labels={"disk": ""}, avoid=True),))])[1] == ["id-a"]


def test_a_vm_is_not_its_own_company() -> None:
    apart = wishing(vm_rules=(VmRule(kind=RuleKind.APART, labels={"app": "web"}),))
    there = Guest(id="vm-0", need=msgspec.structs.replace(apart, memory_mib=3968), node_id="id-a")
    fleet = fleet_of(a_world(a_node("a"), guests=[there]))
    assert Draft(fleet).choose(there.need) is None
    draft = Draft(fleet)
    draft.without("vm-0")
    assert draft.choose(there.need) == "id-a"
