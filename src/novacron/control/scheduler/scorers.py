"""Scorers: each gives a node that passed the filters a number from 0 (worst) to 1 (best).

`Draft` (draft.py) works out the same over all nodes at once, and adds up in the same order.
"""

from __future__ import annotations

from novacron.control.scheduler.snapshot import Candidate, Limits, Need, free_memory_mib, free_vcpus, policy_of
from novacron.model.node import labels_of
from novacron.model.placement import Effect, NodeRule, PlacementPolicy, VmRule, matches, tolerates


def parts_of(need: Need, candidate: Candidate, limits: Limits) -> tuple[dict[str, float], ...]:
    """What the node's score is made of, each part weighted: what stands, what room it leaves, what company it keeps.

    A part that says nothing here is left out.
    """
    weights, soft = limits.weights, soft_weight(need)
    standing = {
        "accelerated": weights.accelerated * accelerated(need, candidate),
        "untainted": weights.untainted * untainted(need, candidate),
    }
    if soft_node_rules(need):
        standing["node_rules"] = weights.rules * (wished_nodes(need, candidate) / soft)
    memory, vcpus = memory_left(need, candidate, limits), vcpus_left(need, candidate, limits)
    match policy_of(need, limits):
        case PlacementPolicy.SPREAD:
            room = {"memory_left": weights.memory * memory, "vcpus_left": weights.vcpus * vcpus}
        case PlacementPolicy.PACK:
            room = {"memory_used": weights.memory * (1 - memory), "vcpus_used": weights.vcpus * (1 - vcpus)}
        case PlacementPolicy.BALANCE:
            room = {"evenness": (weights.memory + weights.vcpus) * (1 - abs(memory - vcpus))}
    if all(rule.hard for rule in need.wishes.vm_rules):
        return standing, room
    return standing, room, {"vm_rules": weights.rules * (need.company.drawn.get(candidate.node.id, 0.0) / soft)}


def memory_left(need: Need, candidate: Candidate, limits: Limits) -> float:
    """The share of memory that stays free after placing."""
    facts = candidate.node.facts
    total_mib = facts.memory_mib if facts else 0
    return _share(free_memory_mib(candidate, limits) - need.memory_mib, total_mib)


def vcpus_left(need: Need, candidate: Candidate, limits: Limits) -> float:
    """The share of virtual CPUs that stays free after placing."""
    facts = candidate.node.facts
    return _share(
        free_vcpus(candidate, limits) - need.vcpus, int((facts.cpu_count if facts else 0) * limits.cpu_overcommit)
    )


def accelerated(need: Need, candidate: Candidate) -> float:
    """1 where the hardware helps, 0 where instructions are translated."""
    facts = candidate.node.facts
    verdicts = [driver.accelerator for driver in facts.drivers if driver.name == need.driver] if facts else []
    return 1.0 if any(verdict is not None and verdict.name == "kvm" for verdict in verdicts) else 0.0


def untainted(need: Need, candidate: Candidate) -> float:
    """0 where a taint would rather have it elsewhere."""
    minded = (taint for taint in candidate.node.taints if taint.effect is Effect.AVOID)
    return 1.0 if all(tolerates(need.wishes.tolerations, taint) for taint in minded) else 0.0


def soft_weight(need: Need) -> int:
    """All that its soft rules weigh."""
    rules: tuple[VmRule | NodeRule, ...] = (*need.wishes.vm_rules, *need.wishes.node_rules)
    return sum(rule.weight for rule in rules if not rule.hard)


def soft_node_rules(need: Need) -> tuple[NodeRule, ...]:
    """Those that only weigh."""
    return tuple(rule for rule in need.wishes.node_rules if not rule.hard)


def wished_nodes(need: Need, candidate: Candidate) -> float:
    """The weight of those of its soft rules about nodes that this one meets."""
    labels = labels_of(candidate.node)
    return sum(rule.weight for rule in soft_node_rules(need) if matches(rule.labels, labels) is not rule.avoid)


def _share(part: int, whole: int) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0
