"""Filters: each says why a node cannot take a machine, or None when it can. Order = order of asking."""

from __future__ import annotations

from collections.abc import Callable

from novacron.control.scheduler.snapshot import Candidate, Limits, Need, driver_of, free_memory_mib, free_vcpus
from novacron.errors import Reason
from novacron.model.node import NodeState, labels_of
from novacron.model.placement import Effect, Taint, in_words, matches, tolerates

OVERLAY = "overlay"
"""The ability (NodeFacts.abilities) of nodes that span networks."""

Filter = Callable[[Need, Candidate, Limits], Reason | None]


def wanted(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    node = candidate.node
    if need.node_id and node.id != need.node_id:
        return _refuse(candidate, "node.not_asked_for", "another node was asked for")
    if node.id in need.not_nodes:
        return _refuse(candidate, "node.excluded", "it is where the machine is now")
    return None


def accepting(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    node = candidate.node
    if node.cordoned:
        return _refuse(candidate, "node.cordoned", "it is cordoned", f"novacron node uncordon {node.name}")
    if node.state is not NodeState.UP:
        return _refuse(candidate, "node.not_up", f"it is {node.state.value}: {node.state_reason}", "bring it up")
    if node.facts is None:
        return _refuse(candidate, "node.unknown", "it has not reported what it has", "wait for its agent")
    return None


def tolerated(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    minded = [
        taint
        for taint in candidate.node.taints
        if taint.effect is Effect.REFUSE and not tolerates(need.wishes.tolerations, taint)
    ]
    if not minded:
        return None
    told = ", ".join(_taint(taint) for taint in minded)
    return _refuse(candidate, "node.tainted", f"it is tainted {told}", f"have the VM tolerate {minded[0].key}")


def wished(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    labels = labels_of(candidate.node)
    for rule in need.wishes.node_rules:
        if not rule.hard or matches(rule.labels, labels) is not rule.avoid:
            continue
        if rule.avoid:
            return _refuse(candidate, "node.unwished", f"it is labelled {in_words(rule.labels)}", "take the rule away")
        message = f"it is not labelled {in_words(rule.labels)}"
        return _refuse(candidate, "node.not_labelled", message, f"novacron node label {candidate.node.name} …")
    return None


def ruled(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    barred = need.company.barred.get(candidate.node.id)
    return barred[0] if barred else None


def drivable(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    driver = driver_of(candidate, need.driver)
    if driver is None:
        return _refuse(candidate, "driver.missing", f"it has no {need.driver} driver", f"install {need.driver} there")
    if need.machine.value not in driver.default_machine_types:
        return _refuse(candidate, "machine.unsupported", f"its {need.driver} has no {need.machine.value} machine")
    missing = [feature for feature in need.features if feature not in driver.features]
    if missing:
        return _refuse(candidate, "driver.feature_missing", f"its {need.driver} lacks {', '.join(missing)}")
    return None


def compatible(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    driver = driver_of(candidate, need.driver)
    if driver is None:
        return None
    if need.machine_type and need.machine_type not in driver.machine_types:
        return _refuse(candidate, "machine_type.missing", f"it does not know machine type {need.machine_type}")
    if need.cpu_model and need.cpu_model not in driver.cpu_models:
        return _refuse(candidate, "cpu_model.missing", f"it cannot run CPU model {need.cpu_model}")
    has = driver.accelerator.name if driver.accelerator else "none"
    if need.accelerator and need.accelerator != has:
        return _refuse(
            candidate, "accelerator.differs", f"the machine runs under {need.accelerator}, the node has {has}"
        )
    return None


def reachable_storage(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    facts = candidate.node.facts
    if need.pool_id and facts is not None and need.pool_id not in facts.pool_ids:
        return _refuse(candidate, "pool.not_shared", f"it does not see storage pool {need.pool_id}", "mount it there")
    for pool in need.pools:
        if pool.node_id and pool.node_id != candidate.node.id:
            message = f"a disk lies in pool {pool.name}, which nodes do not share, on another node"
            return _refuse(candidate, "pool.elsewhere", message, "take the node the disk lies on")
        why_not = candidate.pools.get(pool.id)
        if why_not is None:
            message = f"it was not asked yet whether it reaches storage pool {pool.name}"
            return _refuse(candidate, "pool.unknown", message, "try again in a moment")
        if why_not:
            message = f"it does not reach storage pool {pool.name}: {why_not}"
            return _refuse(candidate, "pool.unreachable", message, f"mend that, or: novacron pool show {pool.name}")
    return None


def connected(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    facts = candidate.node.facts
    missing = [bridge for bridge in need.bridges if facts is not None and bridge not in facts.bridges]
    if missing:
        return _refuse(candidate, "bridge.missing", f"it has no bridge {', '.join(missing)}", "make the bridge there")
    return None


def overlaid(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    facts = candidate.node.facts
    if not need.overlay or facts is None:
        return None
    if OVERLAY not in facts.abilities:
        return _refuse(candidate, "overlay.missing", "it can span no networks", "its agent needs root, nft and dnsmasq")
    if not facts.tunnel_address:
        return _refuse(candidate, "tunnel.missing", "it has no tunnel address", "give its agent one")
    return None


def roomy_memory(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    free_mib = free_memory_mib(candidate, limits)
    if need.memory_mib > free_mib:
        message = f"{need.memory_mib} MiB of memory asked for, {max(free_mib, 0)} MiB free"
        return _refuse(candidate, "memory.short", message, "stop or move VMs, or ask for less")
    return None


def roomy_vcpus(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    free = free_vcpus(candidate, limits)
    if need.vcpus > free:
        message = f"{need.vcpus} vCPUs asked for, {max(free, 0)} free at {limits.cpu_overcommit:g} per CPU"
        return _refuse(candidate, "vcpus.short", message, "stop or move VMs, or ask for less")
    return None


def roomy(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    """Memory and virtual CPUs at once, for whoever asks of nothing else."""
    return roomy_memory(need, candidate, limits) or roomy_vcpus(need, candidate, limits)


def roomy_pools(need: Need, candidate: Candidate, limits: Limits) -> Reason | None:
    for disk in need.disks:
        left = candidate.pool_room_bytes.get(disk.pool_id)
        if left is not None and disk.size_bytes > left:
            message = f"{disk.size_bytes} bytes asked for in storage pool {disk.pool_name}, {max(left, 0)} left"
            remedy = f"delete volumes there, take another pool, or: novacron pool show {disk.pool_name}"
            return _refuse(candidate, "pool.full", message, remedy)
    return None


FILTERS: tuple[Filter, ...] = (
    *(wanted, accepting, tolerated, wished, drivable, compatible, reachable_storage, connected, overlaid),
    *(roomy_memory, roomy_vcpus, roomy_pools, ruled),
)


def _taint(taint: Taint) -> str:
    return f"{taint.key}={taint.value}" if taint.value else taint.key


def _refuse(candidate: Candidate, code: str, message: str, remedy: str = "") -> Reason:
    return Reason(code, f"{candidate.node.name}: {message}", subject=candidate.node.name, remedy=remedy)
