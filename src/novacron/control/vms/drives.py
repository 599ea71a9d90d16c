"""A VM's disks: which volumes they are, new or there before, and what is written of those beside the VM's record.

One Drives serves one turn (see control.room): it remembers what it gave away.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

import msgspec

from novacron.control.named import named
from novacron.control.pools.reach import free_unit
from novacron.control.store.kinds import POOLS, VMS, VOLUMES
from novacron.control.store.records import Records, Write, create, remove, update
from novacron.control.store.shelf import Stored
from novacron.errors import Conflict, InvalidInput, NotFound, Reason, StateConflict, Unavailable
from novacron.model.image import FileRole, Image, file_of
from novacron.model.machine import Disk, Qos
from novacron.model.pool import Pool
from novacron.model.vm import Vm
from novacron.model.volume import Volume, VolumeTask, disk_of, name_for, state_of
from novacron.wire.rest.devices import DiskIn, QosIn
from novacron.wire.rest.vms import VmCreate


class Drive(msgspec.Struct, frozen=True, kw_only=True):
    """A disk, and its volume. before: the volume's record when there is one already. shared: by all nodes."""

    disk: Disk
    volume: Volume
    before: Stored[Volume] | None = None
    shared: bool = True


class Drives:
    """Disks of new VMs, and new disks of VMs there are. default_id: of the pool that is meant when none is named."""

    def __init__(self, records: Records, default_id: str, new_id: Callable[[], str], now: datetime.datetime) -> None:
        self._records = records
        self._default_id = default_id
        self._new_id = new_id
        self._now = now
        self._units: list[tuple[str, str]] = []  # pool ids, and the units that this turn has given away there
        self._given: set[str] = set()  # names and ids of volumes that this turn has given to a VM
        self.made: list[Volume] = []  # volumes of this turn that were not there before

    def born(self, asked: VmCreate, image: Image) -> list[Drive]:
        """The disks of a new VM: the image's first, then those asked for.

        :raise InvalidInput: one does not go with the image, or names what is not there. :raise Conflict: as `one`.
        """
        root = self._root(asked, image)
        return [*root, *(self.one(disk, f"disks.{number}.") for number, disk in enumerate(asked.disks))]

    def one(self, asked: DiskIn, field: str = "") -> Drive:
        """A disk as it is asked for. `field`: what the paths of its fields begin with.

        :raise InvalidInput: there is no such pool or volume. :raise Conflict: the volume belongs to a VM.
        """
        if asked.volume is not None:
            return self._existing(asked, f"{field}volume")
        pool = self._pool(asked.pool, f"{field}pool")
        return self._new(pool, asked.size_bytes or 0, asked.qos, boot_order=asked.boot_order)

    def copied(self, disk: Disk) -> Drive:
        """A disk that begins as a copy of another's volume, in the same pool and at the same place."""
        pool = self._records.find(POOLS, disk.pool_id).record if disk.pool_id else self._default()
        drive = self._new(pool, disk.size_bytes, None, digest=disk.backing_digest, boot_order=disk.boot_order)
        volume = msgspec.structs.replace(drive.volume, source_volume_id=disk.volume_id, qos=disk.qos)
        place = {"slot": disk.slot, "qos": disk.qos, "source_volume_id": disk.volume_id}
        return msgspec.structs.replace(drive, volume=volume, disk=msgspec.structs.replace(drive.disk, **place))

    def given(
        self, vm: Vm, drives: Sequence[Drive], *, with_vm: bool = False, task: VolumeTask | None = None
    ) -> list[Write]:
        """What to write of the volumes now that they are this VM's. with_vm, task: of those that are new."""
        writes = []
        for drive in drives:
            node_id = "" if drive.shared else drive.volume.node_id or vm.node_id
            volume = msgspec.structs.replace(drive.volume, vm_id=vm.id, node_id=node_id, updated_at=self._now)
            if drive.before is not None:
                writes.append(update(VOLUMES, drive.before, volume))
                continue
            at = next(at for at, disk in enumerate(vm.spec.disks) if disk.volume_id == volume.id)
            name = name_for(vm.name, at, volume.id, self._is_taken)
            self._given.add(name)
            writes.append(create(VOLUMES, msgspec.structs.replace(volume, name=name, with_vm=with_vm, task=task)))
        return writes

    # -- parts ---------------------------------------------------------------------------------------------

    def _root(self, asked: VmCreate, image: Image) -> list[Drive]:
        file = file_of(image, FileRole.DISK)
        if file is None:
            for field in ("root_disk_bytes", "root_pool", "root_qos"):
                if getattr(asked, field) is not None:
                    raise InvalidInput.field(field, "the image has no disk", "ask for an empty one in disks")
            return []
        size = file.virtual_size_bytes if asked.root_disk_bytes is None else asked.root_disk_bytes
        if size < file.virtual_size_bytes:
            raise InvalidInput.field(
                "root_disk_bytes",
                f"is smaller than the image's disk of {file.virtual_size_bytes} bytes",
                f"give at least {file.virtual_size_bytes}, or leave it out",
            )
        return [self._new(self._pool(asked.root_pool, "root_pool"), size, asked.root_qos, digest=file.digest)]

    def _new(self, pool: Pool, size_bytes: int, qos: QosIn | None, *, digest: str = "", boot_order: int = 0) -> Drive:
        volume_id = self._new_id()
        unit = free_unit(self._records, pool, volume_id, [unit for place, unit in self._units if place == pool.id])
        self._units.append((pool.id, unit))
        volume = Volume(
            id=volume_id,
            name="",
            pool_id=pool.id,
            unit=unit,
            size_bytes=size_bytes,
            backing_digest=digest,
            qos=Qos(**qos.model_dump()) if qos else Qos(),
            created_at=self._now,
            updated_at=self._now,
        )
        self.made.append(volume)
        return self._drive(volume, pool, None, boot_order)

    def _existing(self, asked: DiskIn, field: str) -> Drive:
        stored: Stored[Volume] = named(self._records, VOLUMES, asked.volume or "", field)
        volume = stored.record
        check_unattached(self._records, volume)
        if volume.id in self._given:
            raise InvalidInput.field(field, f"volume {volume.name} stands twice", "give each disk its own")
        self._given.add(volume.id)
        if asked.qos is not None:
            volume = msgspec.structs.replace(volume, qos=Qos(**asked.qos.model_dump()))
        pool = (
            self._records.find(POOLS, volume.pool_id).record if volume.pool_id != self._default_id else self._default()
        )
        return self._drive(volume, pool, stored, asked.boot_order)

    def _drive(self, volume: Volume, pool: Pool, before: Stored[Volume] | None, boot_order: int) -> Drive:
        disk = disk_of(volume, pool_id="" if pool.id == self._default_id else pool.id, boot_order=boot_order)
        return Drive(disk=disk, volume=volume, before=before, shared=pool.shared)

    def _pool(self, ref: str | None, field: str) -> Pool:
        if ref is None:
            return self._default()
        return named(self._records, POOLS, ref, field).record

    def _default(self) -> Pool:
        stored = self._records.get(POOLS, self._default_id)
        if stored is None:
            raise NotFound("the default pool is not recorded: restart the server")
        return stored.record

    def _is_taken(self, name: str) -> bool:
        if name in self._given:
            return True
        try:
            self._records.find(VOLUMES, name)
        except NotFound:
            return False
        return True


def check_unattached(records: Records, volume: Volume) -> None:
    """:raise Conflict: it belongs to a VM; says which. :raise StateConflict: it is being deleted."""
    if volume.task is VolumeTask.DELETE:
        raise StateConflict.of(f"volume {volume.name}", state_of(volume).value, ("available",), "attach")
    if volume.vm_id:
        name = records.name(VMS, volume.vm_id)
        remedy = f"novacron volume detach {volume.name}, and wait until it is available"
        raise Conflict(
            f"volume {volume.name} belongs to VM {name}",
            [Reason("volume.attached", "it belongs to a VM", subject=name, remedy=remedy)],
        )


def check_ready(records: Records, vm: Vm, *, starting: bool) -> None:
    """Whether its volumes are there. :raise Unavailable: one is still being made, grown or read."""
    mine = {disk.volume_id for disk in vm.spec.disks}
    for volume in (stored.record for stored in records.busy(VOLUMES)):
        is_made = volume.task in (VolumeTask.CREATE, VolumeTask.CLONE)
        if volume.id in mine and (is_made or starting):
            raise Unavailable(f"volume {volume.name} of {vm.name} is not ready: its {volume.task} is under way")
        if starting and volume.task is VolumeTask.CLONE and volume.source_volume_id in mine:
            raise Unavailable(f"volume {volume.name} is being cloned from a disk of {vm.name}")


def parting(records: Records, vm: Vm) -> tuple[tuple[str, ...], list[Write]]:
    """When a VM goes: the ids of the volumes that go with it, and what to write of all that belong to it."""
    mine = records.of_vm(VOLUMES, vm.id)
    writes = [
        remove(VOLUMES, stored)
        if stored.record.with_vm
        else update(VOLUMES, stored, msgspec.structs.replace(stored.record, vm_id=""))
        for stored in mine
    ]
    staying = {stored.record.id for stored in mine if not stored.record.with_vm}
    going = dict.fromkeys(disk.volume_id for disk in vm.spec.disks if disk.volume_id not in staying)
    return tuple(going), writes
