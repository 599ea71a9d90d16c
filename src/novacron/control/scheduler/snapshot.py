"""What a placement decision is made from: the need of a machine, the nodes as they stand, the house's limits."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from novacron.errors import Reason
from novacron.model.machine import MachineKind
from novacron.model.node import DriverFacts, Node
from novacron.model.placement import NO_WISHES, WEIGHTS, PlacementPolicy, PlacementWishes, Weights


class PoolNeed(msgspec.Struct, frozen=True, kw_only=True):
    """A storage pool that a disk lies in. node_id: the disk is there already, and nodes do not share the pool."""

    id: str
    name: str
    node_id: str = ""


class DiskNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that new disks may come to in a storage pool, all of them together."""

    pool_id: str
    pool_name: str
    size_bytes: int


class Company(msgspec.Struct, frozen=True, kw_only=True):
    """What rules between VMs say of each node, by its id. barred: why the VM must not go there.

    drawn: how far its soft rules are fulfilled there, each from 0 to 1 times its weight; absent: not at all.
    """

    barred: Mapping[str, tuple[Reason, ...]] = {}
    drawn: Mapping[str, float] = {}


ALONE = Company()


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine asks of a node. Empty text asks for nothing.

    pool_id: the default pool; pools: others. node_id: only this node will do. not_nodes: these will not.
    machine_type, cpu_model, accelerator: pinned (a machine that already ran must find them again).
    disks: new ones, one entry a pool. labels: the VM's, for the rules of others; wishes: its own. company: what rules
    between VMs come to, for those who look at one node at a time; a Draft finds that out by itself.
    """

    memory_mib: int
    vcpus: int
    machine: MachineKind = MachineKind.Q35
    driver: str = "qemu"
    pool_id: str = ""
    pools: tuple[PoolNeed, ...] = ()
    bridges: tuple[str, ...] = ()
    overlay: bool = False
    features: tuple[str, ...] = ()
    machine_type: str = ""
    cpu_model: str = ""
    accelerator: str = ""
    node_id: str = ""
    not_nodes: tuple[str, ...] = ()
    disks: tuple[DiskNeed, ...] = ()
    labels: Mapping[str, str] = {}
    wishes: PlacementWishes = NO_WISHES
    company: Company = ALONE


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A node and what is already promised on it (by records, not by what runs this moment).

    pools: by id, those it was asked for: why it does not reach them, empty when it does. pool_room_bytes: by id, what
    may still be promised to disks there; absent: not known.
    """

    node: Node
    committed_memory_mib: int = 0
    committed_vcpus: int = 0
    pools: Mapping[str, str] = {}
    pool_room_bytes: Mapping[str, int] = {}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """cpu_overcommit: virtual CPUs promised per real one; memory_reserve_mib: kept for the host itself.

    disk_overcommit: bytes promised to disks per byte of a pool; disks are thin. policy: of VMs that wish for none.
    """

    cpu_overcommit: float = 4.0
    memory_reserve_mib: int = 512
    disk_overcommit: float = 10.0
    policy: PlacementPolicy = PlacementPolicy.SPREAD
    weights: Weights = WEIGHTS


def driver_of(candidate: Candidate, name: str) -> DriverFacts | None:
    """The node's facts about one driver, or None when it has no such driver."""
    facts = candidate.node.facts
    if facts is None:
        return None
    return next((driver for driver in facts.drivers if driver.name == name), None)


def free_memory_mib(candidate: Candidate, limits: Limits) -> int:
    """Memory that may still be promised; negative when too much already is."""
    facts = candidate.node.facts
    total_mib = facts.memory_mib if facts else 0
    return total_mib - limits.memory_reserve_mib - candidate.committed_memory_mib


def free_vcpus(candidate: Candidate, limits: Limits) -> int:
    """Virtual CPUs that may still be promised."""
    facts = candidate.node.facts
    return int((facts.cpu_count if facts else 0) * limits.cpu_overcommit) - candidate.committed_vcpus


def policy_of(need: Need, limits: Limits) -> PlacementPolicy:
    """What the VM wishes for, else what the server does."""
    return need.wishes.policy or limits.policy


def promised(candidate: Candidate, need: Need) -> Candidate:
    """The node after one more machine of that need was promised on it; other nodes' company is not looked at."""
    return msgspec.structs.replace(
        candidate,
        committed_memory_mib=candidate.committed_memory_mib + need.memory_mib,
        committed_vcpus=candidate.committed_vcpus + need.vcpus,
    )
