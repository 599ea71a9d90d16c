"""Nodes: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of


class NodeUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them."""

    labels: Mapping[str, str] | UnsetType = UNSET
    cordoned: bool | UnsetType = UNSET


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
    facts: Facts | None
    usage: Usage | None
    heard_ago_s: float | None
    vm_count: int
    memory_committed_mib: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


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
