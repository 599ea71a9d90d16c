"""A volume: a disk with a life of its own. What was asked, where it is, to which VM it belongs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from enum import StrEnum

import msgspec

from novacron.model.identity import MAX_NAME
from novacron.model.machine import Disk, Qos
from novacron.model.vm import Problem


class VolumeState(StrEnum):
    """The one word people see."""

    CREATING = "creating"
    AVAILABLE = "available"
    ATTACHED = "attached"
    DELETING = "deleting"
    ERROR = "error"


class VolumeTask(StrEnum):
    """What its node is to do with it; at most one, done by the volumes' worker. Empty volumes need none until a
    machine starts with them: a machine's first start makes what is missing.
    """

    CREATE = "create"
    CLONE = "clone"
    GROW = "grow"
    DELETE = "delete"


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where a volume lies: fields as in Volume."""

    pool_id: str
    node_id: str = ""
    unit: str = ""


class Volume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The record of one volume.

    backing_digest: the image file it is a copy-on-write child of; source_volume_id, source_snapshot_id: what it was
    cloned from. vm_id: the VM it is attached to. with_vm: it was made with that VM and is deleted with it.
    node_id: where it lies, for pools that are not shared. unit: which unit of the pool it has, for pools that are made
    of units. other: while a migration copies it, where its other copy lies: the one being made, or, once that is the
    one that counts, the one it was made from. used_bytes: as its node last counted.
    """

    id: str
    name: str
    pool_id: str
    size_bytes: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    backing_digest: str = ""
    source_volume_id: str = ""
    source_snapshot_id: str = ""
    qos: Qos = Qos()
    vm_id: str = ""
    with_vm: bool = False
    node_id: str = ""
    unit: str = ""
    other: Place | None = None
    task: VolumeTask | None = None
    problem: Problem | None = None
    used_bytes: int = 0


def state_of(volume: Volume) -> VolumeState:
    """The word people see, from what is being done, what went wrong and who has it."""
    if volume.task is VolumeTask.DELETE:
        return VolumeState.DELETING
    if volume.problem is not None:
        return VolumeState.ERROR
    if volume.task in (VolumeTask.CREATE, VolumeTask.CLONE):
        return VolumeState.CREATING
    return VolumeState.ATTACHED if volume.vm_id else VolumeState.AVAILABLE


def places(volume: Volume) -> tuple[Place, ...]:
    """Where it takes room: where it lies, and where its other copy does."""
    here = Place(pool_id=volume.pool_id, node_id=volume.node_id, unit=volume.unit)
    return (here,) if volume.other is None else (here, volume.other)


def lies_in(volume: Volume, pool_id: str) -> bool:
    """Whether it, or its other copy, takes room in the pool."""
    return any(place.pool_id == pool_id for place in places(volume))


def swapped(volume: Volume) -> Volume:
    """The other copy is the one that counts from now on. Without another: as it is."""
    if volume.other is None:
        return volume
    here, there = places(volume)
    return msgspec.structs.replace(volume, pool_id=there.pool_id, node_id=there.node_id, unit=there.unit, other=here)


def alone(volume: Volume) -> Volume:
    """No other copy of it counts or is to be."""
    return msgspec.structs.replace(volume, other=None)


def disk_of(volume: Volume, *, pool_id: str, boot_order: int = 0) -> Disk:
    """It as a machine's disk. pool_id: empty for the default pool, else the volume's."""
    return Disk(
        volume_id=volume.id,
        size_bytes=volume.size_bytes,
        backing_digest=volume.backing_digest,
        pool_id=pool_id,
        qos=volume.qos,
        boot_order=boot_order,
    )


def name_for(vm_name: str, number: int, volume_id: str, is_taken: Callable[[str], bool]) -> str:
    """A legal name for the VM's disk of that number: `<vm>-<n>`, with the end of its id when that is taken."""
    plain, longer = f"-{number}", f"-{number}-{volume_id[-12:]}"
    name = vm_name[: MAX_NAME - len(plain)] + plain
    return vm_name[: MAX_NAME - len(longer)] + longer if is_taken(name) else name
