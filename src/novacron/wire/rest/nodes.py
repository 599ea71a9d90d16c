"""Nodes on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from novacron.model.node import NodeState
from novacron.wire.rest.common import Labels, Name, ReasonOut, Ref, Strict, example
from novacron.wire.rest.placement import Taint

Word = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""A CPU model, a CPU flag, a machine type or a version."""
Flags = Annotated[list[Word], Field(max_length=1000)]
Words = Annotated[list[Word], Field(max_length=100)]


class AcceleratorOut(Strict):
    name: str
    reason: str
    probe_ms: float = 0.0


class DriverOut(Strict):
    name: str
    version: str
    features: list[str] = []
    machine_types: list[str] = []
    default_machine_types: dict[str, str] = {}
    cpu_models: list[str] = []
    accelerator: AcceleratorOut | None = None


class FactsOut(Strict):
    """What the node has, by its own account."""

    hostname: str
    kernel: str
    architecture: str
    boot_id: str
    cpu_model: str
    cpu_flags: list[str]
    cpu_count: int
    memory_mib: int
    agent_version: str
    pool_ids: list[str] = []
    bridges: list[str] = []
    drivers: list[DriverOut] = []
    migration_address: str = ""
    privileged: bool = False
    tunnel_address: str = ""
    image_door: str = ""
    image_door_fingerprint: str = ""
    watchdog: str = ""
    abilities: list[str] = []


class UsageOut(Strict):
    """What the node uses, as of its last heartbeat."""

    memory_available_mib: int = 0
    load_1m: float = 0.0
    pool_free_bytes: int = 0
    pool_size_bytes: int = 0
    machines_running: int = 0


class Node(Strict):
    id: str
    name: str
    labels: dict[str, str]
    state: NodeState
    state_reason: str
    state_since: datetime.datetime
    cordoned: bool
    taints: list[Taint]
    facts: FactsOut | None
    usage: UsageOut | None
    heard_ago_s: float | None
    epoch: Annotated[int | None, Field(description="Of its membership; null: its agent takes no part")]
    fence_class: Annotated[str | None, Field(description="How surely it ends machines at their deadline")]
    vm_count: int
    memory_committed_mib: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000002",
            "name": "node-1",
            "labels": {"rack": "a"},
            "state": "up",
            "state_reason": "its agent joined",
            "state_since": "2026-01-02T03:04:05Z",
            "cordoned": False,
            "taints": [{"key": "gpu", "value": "", "effect": "refuse"}],
            "facts": None,
            "usage": {
                "memory_available_mib": 14000,
                "load_1m": 0.4,
                "pool_free_bytes": 90000000000,
                "pool_size_bytes": 100000000000,
                "machines_running": 1,
            },
            "heard_ago_s": 0.8,
            "epoch": 3,
            "fence_class": "timer",
            "vm_count": 1,
            "memory_committed_mib": 2048,
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z",
            "revision": 7,
        }
    )


class NodeUpdate(Strict):
    """cordoned: no new VM is placed here; those that run go on running. taints: all of them, at most one of a key."""

    labels: Labels | None = None
    cordoned: bool | None = None
    taints: Annotated[list[Taint], Field(max_length=32)] | None = None

    @field_validator("taints")
    @classmethod
    def _one_of_a_key(cls, taints: list[Taint] | None) -> list[Taint] | None:
        keys = [taint.key for taint in taints or ()]
        if len(set(keys)) < len(keys):
            raise ValueError("a key stands twice: a node has one taint of it")
        return taints

    model_config = Strict.model_config | example({"cordoned": True})


class BaselineOut(Strict):
    """Nodes of one accelerator. cpu_model: the newest that all of them run; null: there is none. lacks_flags: by node,
    what other hosts have and it has not.
    """

    accelerator: str
    nodes: list[str]
    cpu_model: str | None
    cpu_models: list[str]
    cpu_flags: list[str]
    lacks_flags: dict[str, list[str]]
    machine_types: list[str]


class BoundVm(Strict):
    """A VM that not every other node could take, by its CPU model, machine type and accelerator. is_locked_in: none."""

    vm: str
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    cannot: list[ReasonOut]
    could: list[str]
    is_locked_in: bool


class CpuBaseline(Strict):
    """vms: those that are bound, the locked-in ones first, at most 500; vms_left_off: how many more there are.

    unknown: nodes that have not said what they have.
    """

    baselines: list[BaselineOut]
    vms: list[BoundVm]
    vms_left_off: int
    unknown: list[str]

    model_config = Strict.model_config | example(
        {
            "baselines": [
                {
                    "accelerator": "kvm",
                    "nodes": ["node-1", "node-2"],
                    "cpu_model": "Cascadelake-Server",
                    "cpu_models": ["Cascadelake-Server", "Skylake-Server", "qemu64"],
                    "cpu_flags": ["avx2", "sse2"],
                    "lacks_flags": {"node-1": ["avx512_vnni"]},
                    "machine_types": ["pc-q35-7.2"],
                }
            ],
            "vms": [],
            "vms_left_off": 0,
            "unknown": [],
        }
    )


class NodeAfter(Strict):
    """How a node is to be. gone: no more there. added: new; it has the QEMU of one that is there, and cpu_model or
    cpu_flags say the rest.

    cpu_model: its hardware is what this QEMU model is named after. cpu_flags: it has these, as in /proc/cpuinfo.
    qemu_version: as another node has it, with its machine types.
    """

    gone: bool = False
    added: bool = False
    cpu_model: Word | None = None
    cpu_flags: Flags | None = None
    add_cpu_flags: Words = []
    remove_cpu_flags: Words = []
    qemu_version: Word | None = None
    add_machine_types: Words = []
    remove_machine_types: Words = []


class CpuChanges(Strict):
    """All at once. nodes: by id or name, an added one by its new name. vms: by id or name, the CPU model each is to
    have; every_vm: the one that all others are to have.
    """

    nodes: Annotated[dict[Ref, NodeAfter], Field(max_length=100)] = {}
    vms: Annotated[dict[Ref, Word], Field(max_length=500)] = {}
    every_vm: Word | None = None

    model_config = Strict.model_config | example(
        {
            "nodes": {
                "node-1": {"cpu_model": "Icelake-Server"},
                "node-2": {"remove_machine_types": ["pc-q35-7.2"]},
                "node-3": {"gone": True},
            },
            "vms": {"web-1": "Haswell"},
        }
    )


class VmAfter(Strict):
    """A VM of which something changes, or that is locked in then. node: where it is, null: nowhere.

    could_now, could: where else it could go, now and then; cannot: why not then. can_stay: its own node, if it is still
    there, could start it again. was_locked_in, is_locked_in: no other node could take it.
    """

    vm: Name
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    could_now: list[str]
    could: list[str]
    cannot: list[ReasonOut]
    can_stay: bool
    was_locked_in: bool
    is_locked_in: bool
    remedy: str


class CpuBaselinePlan(Strict):
    """baselines: as they would be. vms: the worst off first, at most 500; vms_left_off: how many more there are;
    vms_unchanged: how many are not told of, as nothing changes for them.

    unknown: nodes that have not said what they have. assumed: what the answer rests on beside what nodes say.
    """

    baselines: list[BaselineOut]
    vms: list[VmAfter]
    vms_left_off: int
    vms_unchanged: int
    unknown: list[str]
    assumed: list[str]

    model_config = Strict.model_config | example(
        {
            "baselines": [],
            "vms": [
                {
                    "vm": "web-1",
                    "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
                    "node": "node-1",
                    "cpu_model": "Haswell",
                    "machine_type": "pc-q35-7.2",
                    "accelerator": "kvm",
                    "could_now": ["node-2"],
                    "could": [],
                    "cannot": [
                        {
                            "code": "machine_type.missing",
                            "message": "node-2: it does not know machine type pc-q35-7.2",
                            "subject": "node-2",
                            "remedy": "",
                        }
                    ],
                    "can_stay": True,
                    "was_locked_in": False,
                    "is_locked_in": True,
                    "remedy": "leave node-2 as it is, or web-1 can leave node-1 no more",
                }
            ],
            "vms_left_off": 0,
            "vms_unchanged": 12,
            "unknown": [],
            "assumed": [],
        }
    )


class LinkProbeCreate(Strict):
    """bandwidth_bytes_per_s: the burst is to take no more; 0: as it goes."""

    source_node: Ref
    target_node: Ref
    bandwidth_bytes_per_s: Annotated[int, Field(ge=0, le=1 << 40)] = 0

    model_config = Strict.model_config | example({"source_node": "node-1", "target_node": "node-2"})


class Link(Strict):
    """What the link from one node to another carries, as it was measured. Null: unknown, and `why` says why.

    rtt_ms: the shortest round trip. is_capped: it was to take no more than that, so the link may carry more.
    """

    source_node: str
    source_node_id: str
    target_node: str
    target_node_id: str
    measured_at: datetime.datetime | None
    age_s: float | None
    rate_bytes_per_s: float | None
    rtt_ms: float | None
    sent_bytes: int
    is_capped: bool
    why: str

    model_config = Strict.model_config | example(
        {
            "source_node": "node-1",
            "source_node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "target_node": "node-2",
            "target_node_id": "0190b36e-7c1a-7000-8000-000000000003",
            "measured_at": "2026-01-02T03:04:05Z",
            "age_s": 0.1,
            "rate_bytes_per_s": 11800000.0,
            "rtt_ms": 40.2,
            "sent_bytes": 12500000,
            "is_capped": False,
            "why": "",
        }
    )


class LinkList(Strict):
    items: list[Link]
