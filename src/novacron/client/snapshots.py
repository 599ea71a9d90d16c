"""Snapshots: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.images import Image
from novacron.client.vms import Problem


class SnapshotCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot of a VM's disks. memory: with what it has in memory; quiesce: its guest agent freezes it first."""

    name: str | None = None
    description: str = ""
    labels: Mapping[str, str] = {}
    memory: bool = False
    quiesce: bool = False


class SnapshotUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET


class RevertRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """start: start the VM afterwards; from a snapshot with memory it runs on by itself."""

    start: bool = False


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A new image whose disk is a volume as it was. volume_id: which one, when the snapshot has several."""

    image: str
    volume_id: str | None = None
    description: str = ""
    labels: Mapping[str, str] = {}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot; `state` and `consistency` are plain text, so that an old client can read a newer server."""

    id: str
    name: str
    vm_id: str
    vm_name: str
    parent_id: str | None
    current: bool
    state: str
    consistency: str
    description: str
    labels: dict[str, str]
    volumes: list[str]
    vcpus: int
    memory_mib: int
    size_bytes: int
    stood_still_ms: float
    schedule_id: str | None
    image_id: str | None
    problem: Problem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(vm: str, snapshot: SnapshotCreate) -> Call[Snapshot]:
    """Take a snapshot; the answer is the record to watch."""
    return Call(method="POST", path=path_of("vms", ref_of("vm", vm), "snapshots"), answer=Snapshot, body=snapshot)


def get(snapshot_id: str) -> Call[Snapshot]:
    return Call(method="GET", path=_path(snapshot_id), answer=Snapshot)


def search(
    *,
    labels: Sequence[str] = (),
    vm: str = "",
    name: str = "",
    state: str = "",
    cursor: str = "",
    limit: int = MAX_PAGE,
) -> Call[Page[Snapshot]]:
    """One page of the snapshots that meet all `labels`, of that `vm`, `name`, `state`; empty: any."""
    query: Query = {"label": labels, "vm": vm, "name": name, "state": state, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("snapshots"), answer=Page[Snapshot], query=query)


def update(snapshot_id: str, change: SnapshotUpdate, *, revision: int | None = None) -> Call[Snapshot]:
    """Change a snapshot's words; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=_path(snapshot_id), answer=Snapshot, body=change, revision=revision)


def delete(snapshot_id: str, *, revision: int | None = None) -> Call[Snapshot]:
    """Delete a snapshot; the answer is its record meanwhile."""
    return Call(method="DELETE", path=_path(snapshot_id), answer=Snapshot, revision=revision)


def revert(snapshot_id: str, how: RevertRequest | None = None) -> Call[Snapshot]:
    """Have its VM go back to it; the answer is the record to watch."""
    body = how or RevertRequest()
    return Call(method="POST", path=f"{_path(snapshot_id)}/revert", answer=Snapshot, body=body)


def export(snapshot_id: str, wish: ExportRequest) -> Call[Image]:
    """Make an image of one of its volumes; the answer is the image, which is ready later."""
    return Call(method="POST", path=f"{_path(snapshot_id)}/export", answer=Image, body=wish)


def _path(snapshot_id: str) -> str:
    return path_of("snapshots", ref_of("snapshot", snapshot_id))
