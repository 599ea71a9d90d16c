"""A node: a host that runs machines. What it has (facts), what it uses, and whether it may be given more."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.model.placement import ARCHITECTURE_LABEL, NODE_LABEL, Taint


class NodeState(StrEnum):
    """joining → up → cordoned/draining at an operator's wish; suspect → fencing → fenced when it falls silent."""

    JOINING = "joining"
    UP = "up"
    CORDONED = "cordoned"
    DRAINING = "draining"
    SUSPECT = "suspect"
    FENCING = "fencing"
    FENCED = "fenced"
    DOWN = "down"


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The verdict of the acceleration probe: `kvm` only after a guest ran in long mode on this host."""

    name: str  # kvm | tcg
    reason: str
    probe_ms: float = 0.0


class DriverFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one driver can do on this node; `features` are found by asking the hypervisor, never by its version."""

    name: str
    version: str
    features: tuple[str, ...] = ()
    machine_types: tuple[str, ...] = ()
    default_machine_types: dict[str, str] = {}  # q35 -> pc-q35-7.2
    cpu_models: tuple[str, ...] = ()
    accelerator: Accelerator | None = None


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node has. Sizes in MiB and bytes; `pool_ids` are the storage pools it sees, `bridges` its bridges."""

    hostname: str
    kernel: str
    architecture: str
    boot_id: str
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cpu_count: int
    memory_mib: int
    agent_version: str
    pool_ids: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()
    drivers: tuple[DriverFacts, ...] = ()
    migration_address: str = ""
    privileged: bool = False
    tunnel_address: str = ""  # where the other nodes reach this one's overlay networks; empty: it has none
    image_door: str = ""  # host:port where other nodes fetch image files; empty: not offered
    image_door_fingerprint: str = ""  # sha256 of the certificate shown there
    watchdog: str = ""  # which device resets it and how soon, or why none does; empty: none is set
    abilities: tuple[
        str, ...
    ] = ()  # what is installed: overlay, tpm, secure-boot, and storage drivers as pool.<driver>; and COPIES


COPIES = "copies"
"""The ability (NodeFacts.abilities) of agents that know what a copy of disks lacks which was cut off."""


class NodeUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a node uses now, by its own count. Changes with every heartbeat and is not stored."""

    memory_available_mib: int = 0
    load_1m: float = 0.0
    pool_free_bytes: int = 0
    pool_size_bytes: int = 0
    machines_running: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one node. `state_reason` says why it is in this state, for people."""

    id: str
    name: str
    state: NodeState
    created_at: datetime.datetime
    updated_at: datetime.datetime
    state_since: datetime.datetime
    labels: dict[str, str] = {}
    facts: NodeFacts | None = None
    state_reason: str = ""
    cordoned: bool = False  # an operator's wish, kept while the node is away
    taints: tuple[Taint, ...] = ()  # keep VMs away that do not tolerate them


def labels_of(node: Node) -> dict[str, str]:
    """Its labels, and those every node has by itself."""
    own = {NODE_LABEL: node.name}
    if node.facts is not None:
        own[ARCHITECTURE_LABEL] = node.facts.architecture
    return node.labels | own
