"""Volumes: what is sent, what is answered, and every call about them, attaching and detaching too."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.devices import DiskIn, Qos, QosIn
from novacron.client.vms import Problem, Vm


class VolumeCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A disk with a life of its own: empty, from an `image`, or from another `volume` (as of a `snapshot`)."""

    name: str
    size_bytes: int | None = None
    pool: str | None = None
    image: str | None = None
    volume: str | None = None
    snapshot: str | None = None
    node: str | None = None
    qos: QosIn = QosIn()
    description: str = ""
    labels: Mapping[str, str] = {}


class VolumeUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them. size_bytes: never smaller."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    size_bytes: int | UnsetType = UNSET
    qos: QosIn | UnsetType = UNSET


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume; `state` and `task` are plain text, so that an old client can read a newer server."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    state: str
    task: str | None
    problem: Problem | None
    pool: str
    pool_id: str
    size_bytes: int
    used_bytes: int
    qos: Qos
    backing_digest: str | None
    source_volume_id: str | None
    source_snapshot_id: str | None
    vm: str | None
    vm_id: str | None
    with_vm: bool
    node: str | None
    node_id: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(volume: VolumeCreate) -> Call[Volume]:
    """Make a volume; the answer is its record, the work goes on behind it."""
    return Call(method="POST", path=path_of("volumes"), answer=Volume, body=volume)


def get(ref: str) -> Call[Volume]:
    return Call(method="GET", path=_path(ref), answer=Volume)


def search(
    *,
    labels: Sequence[str] = (),
    state: str = "",
    pool: str = "",
    vm: str = "",
    cursor: str = "",
    limit: int = MAX_PAGE,
) -> Call[Page[Volume]]:
    """One page of the volumes that meet all `labels`, in that `state`, `pool`, of that `vm`; empty: any."""
    query: Query = {"label": labels, "state": state, "pool": pool, "vm": vm, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("volumes"), answer=Page[Volume], query=query)


def update(ref: str, change: VolumeUpdate, *, revision: int | None = None) -> Call[Volume]:
    """Change a volume; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=_path(ref), answer=Volume, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[Volume]:
    """Delete a volume that is attached to no VM; the answer is its record meanwhile."""
    return Call(method="DELETE", path=_path(ref), answer=Volume, revision=revision)


def attach(vm: str, disk: DiskIn) -> Call[Vm]:
    """Give a VM one more disk, at once while it runs."""
    return Call(method="POST", path=path_of("vms", ref_of("vm", vm), "disks"), answer=Vm, body=disk)


def detach(vm: str, volume: str) -> Call[Vm]:
    """Take a disk away from a VM, at once while it runs; the volume stays."""
    path = path_of("vms", ref_of("vm", vm), f"disks/{ref_of('volume', volume)}")
    return Call(method="DELETE", path=path, answer=Vm)


def _path(ref: str) -> str:
    return path_of("volumes", ref_of("volume", ref))
