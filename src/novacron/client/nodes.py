"""Nodes: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.migrations import Reason
from novacron.client.placement import Taint


class NodeUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels, taints: all of them."""

    labels: Mapping[str, str] | UnsetType = UNSET
    cordoned: bool | UnsetType = UNSET
    taints: Sequence[Taint] | UnsetType = UNSET


class Accelerator(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    reason: str
    probe_ms: float = 0.0


class Driver(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    version: str
    features: list[str] = []
    machine_types: list[str] = []
    default_machine_types: dict[str, str] = {}
    cpu_models: list[str] = []
    accelerator: Accelerator | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
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
    drivers: list[Driver] = []
    migration_address: str = ""
    privileged: bool = False
    tunnel_address: str = ""
    image_door: str = ""
    image_door_fingerprint: str = ""
    watchdog: str = ""
    abilities: list[str] = []


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What the node uses, as of its last heartbeat."""

    memory_available_mib: int = 0
    load_1m: float = 0.0
    pool_free_bytes: int = 0
    pool_size_bytes: int = 0
    machines_running: int = 0


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node; `state` is plain text, so that an old client can read a newer server."""

    id: str
    name: str
    labels: dict[str, str]
    state: str
    state_reason: str
    state_since: datetime.datetime
    cordoned: bool
    taints: list[Taint]
    facts: Facts | None
    usage: Usage | None
    heard_ago_s: float | None
    epoch: int | None = None  # these two: servers of before memberships do not say them
    fence_class: str | None = None
    vm_count: int
    memory_committed_mib: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of one accelerator. cpu_model: the newest that all of them run; None: there is none."""

    accelerator: str
    nodes: list[str]
    cpu_model: str | None
    cpu_models: list[str]
    cpu_flags: list[str]
    lacks_flags: dict[str, list[str]]
    machine_types: list[str]


class BoundVm(msgspec.Struct, frozen=True, kw_only=True):
    """A VM that not every other node could take. cannot: why; is_locked_in: none could."""

    vm: str
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    cannot: list[Reason]
    could: list[str]
    is_locked_in: bool


class CpuBaseline(msgspec.Struct, frozen=True, kw_only=True):
    """What all nodes run, and the VMs bound to fewer nodes. unknown: nodes that have not said what they have."""

    baselines: list[Baseline]
    vms: list[BoundVm]
    vms_left_off: int
    unknown: list[str]


class NodeAfter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a node is to be. cpu_model: hardware of that model; cpu_flags: hardware with these flags; added: a new one.

    qemu_version: as another node has it.
    """

    gone: bool = False
    added: bool = False
    cpu_model: str | None = None
    cpu_flags: Sequence[str] | None = None
    add_cpu_flags: Sequence[str] = ()
    remove_cpu_flags: Sequence[str] = ()
    qemu_version: str | None = None
    add_machine_types: Sequence[str] = ()
    remove_machine_types: Sequence[str] = ()


class CpuChanges(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Changes to think through, all at once; vms: the CPU model a VM is to have; every_vm: all others."""

    nodes: Mapping[str, NodeAfter] = {}
    vms: Mapping[str, str] = {}
    every_vm: str | None = None


class VmAfter(msgspec.Struct, frozen=True, kw_only=True):
    """A VM for which something changes, or that is locked in then. can_stay: its own node could start it again."""

    vm: str
    vm_id: str
    node: str | None
    cpu_model: str
    machine_type: str
    accelerator: str
    could_now: list[str]
    could: list[str]
    cannot: list[Reason]
    can_stay: bool
    was_locked_in: bool
    is_locked_in: bool
    remedy: str


class CpuBaselinePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster as it would be, and the VMs that something changes for. assumed: what that rests on."""

    baselines: list[Baseline]
    vms: list[VmAfter]
    vms_left_off: int
    vms_unchanged: int
    unknown: list[str]
    assumed: list[str]


def plan_cpu_baseline(changes: CpuChanges) -> Call[CpuBaselinePlan]:
    """Which VMs could go where after these changes. Nothing is changed."""
    return Call(method="POST", path=path_of("cpu-baseline-plans"), answer=CpuBaselinePlan, body=changes)


def cpu_baseline(*, without: Sequence[str] = ()) -> Call[CpuBaseline]:
    """As the cluster is, or would be without these nodes (ids or names)."""
    return Call(method="GET", path=path_of("cpu-baseline"), answer=CpuBaseline, query={"without": list(without)})


class LinkProbeCreate(msgspec.Struct, frozen=True, kw_only=True):
    """bandwidth_bytes_per_s: the burst is to take no more; 0: as it goes."""

    source_node: str
    target_node: str
    bandwidth_bytes_per_s: int = 0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """What the link from one node to another carries; rate_bytes_per_s None: unknown, and `why` says why."""

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


class LinkList(msgspec.Struct, frozen=True, kw_only=True):
    """Links from and to a node."""

    items: list[Link]


def probe_link(source: str, target: str, *, bandwidth_bytes_per_s: int = 0) -> Call[Link]:
    """Measure the link from one node to another, by a burst of at most a second."""
    body = LinkProbeCreate(source_node=source, target_node=target, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    return Call(method="POST", path=path_of("link-probes"), answer=Link, body=body)


def links(ref: str) -> Call[LinkList]:
    """The links from and to a node that were measured for themselves."""
    return Call(method="GET", path=path_of("nodes", ref_of("node", ref), "links"), answer=LinkList)


class NodeTokenCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """node: only for the node of this name, which may be known already; None: for a new node of any name."""

    node: str | None = None
    lasts_s: int = 600


class NodeToken(msgspec.Struct, frozen=True, kw_only=True):
    """token: a secret, shown this once."""

    token: str
    node: str | None
    expires_at: datetime.datetime


class NodeRevoked(msgspec.Struct, frozen=True, kw_only=True):
    """A node whose certificates are honoured no more."""

    node_id: str
    node: str
    reason: str


def create_token(wish: NodeTokenCreate) -> Call[NodeToken]:
    """A token with which one node joins, once and soon."""
    return Call(method="POST", path=path_of("node-tokens"), answer=NodeToken, body=wish)


def revoke(ref: str) -> Call[NodeRevoked]:
    """Honour none of the node's certificates any more; its lines end at once, its VMs run on."""
    return Call(method="POST", path=path_of("nodes", ref_of("node", ref), "revoke"), answer=NodeRevoked)


def get(ref: str) -> Call[Node]:
    return Call(method="GET", path=path_of("nodes", ref_of("node", ref)), answer=Node)


def search(*, labels: Sequence[str] = (), state: str = "", cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[Node]]:
    """One page of the nodes that meet all `labels` and that `state`; empty: any."""
    query: Query = {"label": labels, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("nodes"), answer=Page[Node], query=query)


def update(ref: str, change: NodeUpdate, *, revision: int | None = None) -> Call[Node]:
    """Change a node; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=path_of("nodes", ref_of("node", ref)), answer=Node, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Forget a node that is gone for good."""
    return Call(method="DELETE", path=path_of("nodes", ref_of("node", ref)), answer=type(None), revision=revision)
