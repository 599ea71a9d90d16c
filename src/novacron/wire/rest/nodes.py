"""Nodes on the wire."""

from __future__ import annotations

import datetime

from novacron.model.node import NodeState
from novacron.wire.rest.common import Labels, ReasonOut, Strict, example


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
    facts: FactsOut | None
    usage: UsageOut | None
    heard_ago_s: float | None
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
            "facts": None,
            "usage": {
                "memory_available_mib": 14000,
                "load_1m": 0.4,
                "pool_free_bytes": 90000000000,
                "pool_size_bytes": 100000000000,
                "machines_running": 1,
            },
            "heard_ago_s": 0.8,
            "vm_count": 1,
            "memory_committed_mib": 2048,
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z",
            "revision": 7,
        }
    )


class NodeUpdate(Strict):
    """cordoned: no new VM is placed here; those that run go on running."""

    labels: Labels | None = None
    cordoned: bool | None = None

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
