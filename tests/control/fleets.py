"""Small fleets for tests: nodes, VMs and needs as Hypothesis draws them, and where a VM may go, worked out slowly.

`slow_choice` is written for itself: it knows neither arrays nor the filters of the scheduler.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec
from hypothesis import strategies as st

from novacron.control.scheduler.fleet import Claim, Fleet, Lot, Occupant, PoolSeen
from novacron.control.scheduler.snapshot import Candidate, DiskNeed, Limits, Need, PoolNeed
from novacron.control.scheduler.tenants import held_of
from novacron.model.node import Accelerator, DriverFacts, Node, NodeFacts, NodeState, labels_of
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
    tolerates,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LOCAL, SHARED = "pool-local", "pool-shared"
LIMITS = Limits(memory_reserve_mib=128, disk_overcommit=1.5)


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that is there: what it asked for, and on which node it is."""

    id: str
    need: Need
    node_id: str


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What a fleet is made of. reach: by pool, the nodes that reach it; sizes: by pool, its bytes on each node."""

    nodes: list[Node]
    guests: list[Guest]
    reach: Mapping[str, frozenset[str]]
    sizes: Mapping[str, Mapping[str, int]]


def a_node(name: str, **change: object) -> Node:
    """Up, with QEMU, 4 CPUs and 4 GiB. Fields of the node or of its facts may be changed."""
    driver = DriverFacts(
        name="qemu",
        version="7.2",
        features=("tpm",),
        machine_types=("pc-q35-7.2",),
        default_machine_types={"q35": "pc-q35-7.2"},
        cpu_models=("Nehalem",),
        accelerator=Accelerator(name="tcg", reason="no /dev/kvm"),
    )
    facts = NodeFacts(
        hostname=name,
        kernel="6.1",
        architecture="x86_64",
        boot_id="b",
        cpu_model="c",
        cpu_flags=(),
        cpu_count=4,
        memory_mib=4096,
        agent_version="0",
        drivers=(driver,),
    )
    own = {field: change.pop(field) for field in tuple(change) if field in NodeFacts.__struct_fields__}
    node = Node(id=f"id-{name}", name=name, state=NodeState.UP, created_at=NOW, updated_at=NOW, state_since=NOW)
    return msgspec.structs.replace(node, facts=msgspec.structs.replace(facts, **own), **change)


def fleet_of(world: World, limits: Limits = LIMITS) -> Fleet:
    """The fleet told of everything, VMs first."""
    fleet = Fleet(limits)
    for guest in world.guests:
        put_guest(fleet, guest)
    for node in world.nodes:
        fleet.put_node(node)
    for pool_id, reached in world.reach.items():
        why_not = {node.id: "" if node.id in reached else "no" for node in world.nodes}
        seen = PoolSeen(shared=pool_id == SHARED, reached=why_not, size_bytes=world.sizes[pool_id])
        fleet.put_pool(pool_id, seen)
    return fleet


def put_guest(fleet: Fleet, guest: Guest) -> None:
    """As control.promises tells of a VM and its volumes."""
    need = guest.need
    claim = Claim(node_id=guest.node_id, memory_mib=need.memory_mib, vcpus=need.vcpus, owned=True)
    held = held_of(need.wishes.vm_rules)
    fleet.put_vm(guest.id, Occupant(claims=(claim,), labels=need.labels, held=held))
    for disk in need.disks:
        node_id = "" if disk.pool_id == SHARED else guest.node_id
        lots = (Lot(pool_id=disk.pool_id, node_id=node_id, size_bytes=disk.size_bytes),)
        fleet.put_volume(f"{guest.id}-{disk.pool_id}", lots)


def candidates_of(world: World, fleet: Fleet) -> list[Candidate]:
    """The nodes as those see them who look at one at a time."""
    found = []
    for node in world.nodes:
        mine = fleet.committed.get(node.id)
        rooms = {pool_id: fleet.pool_room_bytes(pool_id, node.id) for pool_id in world.reach}
        found.append(
            Candidate(
                node=node,
                committed_memory_mib=mine.memory_mib if mine else 0,
                committed_vcpus=mine.vcpus if mine else 0,
                pools={pool_id: "" if node.id in reached else "no" for pool_id, reached in world.reach.items()},
                pool_room_bytes={pool_id: room for pool_id, room in rooms.items() if room is not None},
            )
        )
    return found


# -- slowly ------------------------------------------------------------------------------------------------


def why_not(world: World, need: Need, node: Node, limits: Limits = LIMITS) -> list[str]:
    """Every reason why the node must not get the VM, in short."""
    facts, found = node.facts, []
    if node.cordoned or node.state is not NodeState.UP or facts is None:
        return ["not open"]
    driver = next((one for one in facts.drivers if one.name == need.driver), None)
    if driver is None or need.machine.value not in driver.default_machine_types:
        found.append("machine")
    if driver is not None:
        found += ["feature" for feature in need.features if feature not in driver.features]
        found += ["model"] if need.cpu_model and need.cpu_model not in driver.cpu_models else []
    found += ["taint" for one in node.taints if one.effect is Effect.REFUSE and not _tolerated(need, one)]
    found += ["label" for rule in need.wishes.node_rules if rule.hard and not _holds(rule, node)]
    found += ["pool" for pool in need.pools if node.id not in world.reach.get(pool.id, ())]
    found += ["elsewhere" for pool in need.pools if pool.node_id not in ("", node.id)]
    found += ["bridge" for bridge in need.bridges if bridge not in facts.bridges]
    there = [guest for guest in world.guests if guest.node_id == node.id]
    memory_mib = sum(guest.need.memory_mib for guest in there) + need.memory_mib
    vcpus = sum(guest.need.vcpus for guest in there) + need.vcpus
    found += ["memory"] if memory_mib > facts.memory_mib - limits.memory_reserve_mib else []
    found += ["vcpus"] if vcpus > int(facts.cpu_count * limits.cpu_overcommit) else []
    for disk in need.disks:
        if disk.size_bytes > _room(world, disk.pool_id, node.id, limits):
            found.append("disk")
    found += ["rule" for rule in need.wishes.vm_rules if rule.hard and _is_broken(world, rule, node)]
    return found + ["kept away" for guest in world.guests if _keeps_away(world, guest, need, node)]


def _room(world: World, pool_id: str, node_id: str, limits: Limits) -> float:
    size = world.sizes.get(pool_id, {}).get(node_id)
    if size is None:
        return float("inf")
    counted = [guest for guest in world.guests if pool_id == SHARED or guest.node_id == node_id]
    taken = sum(disk.size_bytes for guest in counted for disk in guest.need.disks if disk.pool_id == pool_id)
    return int(size * limits.disk_overcommit) - taken


def place_of(node: Node, over: str) -> str | None:
    return node.id if over == NODE_LABEL else labels_of(node).get(over)


def _there(world: World, rule: VmRule, place: str | None) -> int:
    """How many of the rule's VMs are in that place."""
    if place is None:
        return 0
    nodes = {node.id for node in world.nodes if place_of(node, rule.over) == place}
    return sum(guest.node_id in nodes and matches(rule.labels, guest.need.labels) for guest in world.guests)


def _open_places(world: World, rule: VmRule) -> set[str]:
    open_ = [node for node in world.nodes if node.state is NodeState.UP and not node.cordoned and node.facts]
    return {place for node in open_ if (place := place_of(node, rule.over)) is not None}


def _is_broken(world: World, rule: VmRule, node: Node) -> bool:
    place = place_of(node, rule.over)
    mine = _there(world, rule, place)
    if rule.kind is RuleKind.TOGETHER:
        places = {place_of(one, rule.over) for one in world.nodes}
        return mine == 0 and any(_there(world, rule, one) for one in places)
    if place is None:
        return True
    if rule.kind is RuleKind.APART:
        return mine > 0
    return mine > min(_there(world, rule, one) for one in _open_places(world, rule))


def _keeps_away(world: World, guest: Guest, need: Need, node: Node) -> bool:
    home = next((one for one in world.nodes if one.id == guest.node_id), None)
    apart = [rule for rule in guest.need.wishes.vm_rules if rule.hard and rule.kind is RuleKind.APART]
    for rule in apart if home else ():
        place = place_of(home, rule.over) if home else None
        if place is not None and place == place_of(node, rule.over) and matches(rule.labels, need.labels):
            return True
    return False


def _tolerated(need: Need, taint: Taint) -> bool:
    return tolerates(need.wishes.tolerations, taint)


def _holds(rule: NodeRule, node: Node) -> bool:
    return matches(rule.labels, labels_of(node)) is not rule.avoid


def _drawn(world: World, need: Need, node: Node) -> float:
    total = 0.0
    for rule in need.wishes.vm_rules:
        place = place_of(node, rule.over)
        if rule.hard or place is None:
            continue
        mine = _there(world, rule, place)
        if rule.kind is RuleKind.TOGETHER:
            total += rule.weight * (1.0 if mine else 0.0)
        elif rule.kind is RuleKind.APART:
            total += rule.weight * (1 / (1 + mine))
        else:
            fewest = min((_there(world, rule, one) for one in _open_places(world, rule)), default=0)
            total += rule.weight * (1 / (1 + max(mine - fewest, 0)))
    return total


def score(world: World, need: Need, node: Node, limits: Limits = LIMITS) -> float:
    """How good the node is."""
    facts, weights = node.facts, limits.weights
    assert facts is not None
    there = [guest for guest in world.guests if guest.node_id == node.id]
    free_mib = facts.memory_mib - limits.memory_reserve_mib - sum(guest.need.memory_mib for guest in there)
    whole = int(facts.cpu_count * limits.cpu_overcommit)
    memory = (free_mib - need.memory_mib) / facts.memory_mib
    vcpus = (whole - sum(guest.need.vcpus for guest in there) - need.vcpus) / whole
    helped = any(one.accelerator is not None and one.accelerator.name == "kvm" for one in facts.drivers)
    minded = [one for one in node.taints if one.effect is Effect.AVOID and not _tolerated(need, one)]
    total = weights.accelerated * (1.0 if helped else 0.0) + weights.untainted * (0.0 if minded else 1.0)
    soft = sum(rule.weight for rule in (*need.wishes.vm_rules, *need.wishes.node_rules) if not rule.hard)
    on_nodes = [rule for rule in need.wishes.node_rules if not rule.hard]
    if on_nodes:
        total += weights.rules * (sum(rule.weight for rule in on_nodes if _holds(rule, node)) / soft)
    policy = need.wishes.policy or limits.policy
    if policy is PlacementPolicy.SPREAD:
        total += weights.memory * memory + weights.vcpus * vcpus
    elif policy is PlacementPolicy.PACK:
        total += weights.memory * (1 - memory) + weights.vcpus * (1 - vcpus)
    else:
        total += (weights.memory + weights.vcpus) * (1 - abs(memory - vcpus))
    if any(not rule.hard for rule in need.wishes.vm_rules):
        total += weights.rules * (_drawn(world, need, node) / soft)
    return total


def slow_choice(world: World, need: Need, limits: Limits = LIMITS) -> str | None:
    """The node it should go to; None: none can take it."""
    able = [node for node in world.nodes if not why_not(world, need, node, limits)]
    best = min(able, key=lambda node: (-score(world, need, node, limits), node.name), default=None)
    return best.id if best else None


def with_guest(world: World, need: Need, node_id: str) -> World:
    """The world with one more VM of that need on that node."""
    guest = Guest(id=f"new-{len(world.guests)}", need=need, node_id=node_id)
    return msgspec.structs.replace(world, guests=[*world.guests, guest])


# -- as Hypothesis draws them ------------------------------------------------------------------------------

_LABELS = st.sampled_from([{"app": "web"}, {"app": "web", "tier": "x"}, {"app": "db"}, {"tier": ""}, {}])
_WANTED = st.sampled_from([{"app": "web"}, {"app": ""}, {"app": "db"}, {"app": "web", "tier": "x"}, {"tier": ""}])
_OVER = st.sampled_from([NODE_LABEL, "zone", "rack"])
_TAINTS = st.lists(
    st.builds(
        Taint, key=st.sampled_from(["gpu", "old"]), value=st.sampled_from(["", "x"]), effect=st.sampled_from(Effect)
    ),
    max_size=1,
).map(tuple)
_WISHES = st.builds(
    PlacementWishes,
    policy=st.none() | st.sampled_from(PlacementPolicy),
    tolerations=st.lists(
        st.builds(Toleration, key=st.sampled_from(["gpu", "old"]), value=st.sampled_from(["", "x"])), max_size=1
    ).map(tuple),
    vm_rules=st.lists(
        st.builds(
            VmRule,
            kind=st.sampled_from(RuleKind),
            labels=_WANTED,
            over=_OVER,
            hard=st.booleans(),
            weight=st.integers(1, 100),
        ),
        max_size=2,
    ).map(tuple),
    node_rules=st.lists(
        st.builds(
            NodeRule,
            labels=st.dictionaries(
                st.sampled_from(["zone", "disk", NODE_LABEL]), st.sampled_from(["a", "b", ""]), min_size=1, max_size=1
            ),
            avoid=st.booleans(),
            hard=st.booleans(),
            weight=st.integers(1, 100),
        ),
        max_size=1,
    ).map(tuple),
)


def _seldom(draw: st.DrawFn) -> bool:
    return draw(st.integers(0, 9)) == 9


@st.composite
def needs(draw: st.DrawFn) -> Need:
    """What a VM asks for: mostly what some node has."""
    disks = draw(st.dictionaries(st.sampled_from([LOCAL, SHARED]), st.integers(0, 60), max_size=2))
    pools = tuple(PoolNeed(id=pool_id, name=pool_id) for pool_id in sorted(disks))
    if LOCAL in disks and _seldom(draw):
        pools = (PoolNeed(id=LOCAL, name=LOCAL, node_id=draw(st.sampled_from(["id-a", "id-b"]))),)
    return Need(
        memory_mib=draw(st.sampled_from([64, 512, 1024, 0, 2048, 3968])),
        vcpus=draw(st.integers(0, 5)),
        features=("tpm",) if _seldom(draw) else (),
        cpu_model="Nehalem" if _seldom(draw) else "",
        bridges=("br0",) if _seldom(draw) else (),
        pools=pools,
        disks=tuple(DiskNeed(pool_id=one, pool_name=one, size_bytes=disks[one]) for one in sorted(disks)),
        labels=draw(_LABELS),
        wishes=draw(_WISHES),
    )


@st.composite
def _nodes(draw: st.DrawFn, name: str) -> Node:
    labels = {"zone": draw(st.sampled_from(["a", "b", None])), "rack": draw(st.sampled_from(["1", "2", None]))}
    labels["disk"] = draw(st.sampled_from(["a", None]))
    node = a_node(
        name,
        labels={key: value for key, value in labels.items() if value is not None},
        taints=draw(_TAINTS),
        cordoned=_seldom(draw),
        state=NodeState.SUSPECT if _seldom(draw) else NodeState.UP,
        memory_mib=draw(st.sampled_from([2048, 4096, 8192])),
        cpu_count=draw(st.integers(1, 4)),
        bridges=draw(st.sampled_from([(), ("br0",)])),
    )
    if _seldom(draw):
        return msgspec.structs.replace(node, facts=None)
    if draw(st.booleans()) and node.facts is not None:
        driver = msgspec.structs.replace(
            node.facts.drivers[0], features=(), accelerator=Accelerator(name="kvm", reason="")
        )
        return msgspec.structs.replace(node, facts=msgspec.structs.replace(node.facts, drivers=(driver,)))
    return node


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """One to six nodes in no order, with VMs on them that some rule may forbid by now."""
    names = draw(st.permutations(["a", "b", "c", "d", "e", "f"][: draw(st.integers(1, 6))]))
    nodes = [draw(_nodes(name)) for name in names]
    ids = [node.id for node in nodes]
    guests = [
        Guest(id=f"vm-{number}", need=need, node_id=draw(st.sampled_from(ids)))
        for number, need in enumerate(draw(st.lists(needs(), max_size=5)))
    ]
    without = st.sets(st.sampled_from(ids), max_size=1)
    reach = {pool_id: frozenset(ids) - draw(without) for pool_id in (LOCAL, SHARED)}
    sizes = {pool_id: dict.fromkeys(sorted(reach[pool_id]), 100) for pool_id in reach}
    return World(nodes=nodes, guests=guests, reach=reach, sizes=sizes)
