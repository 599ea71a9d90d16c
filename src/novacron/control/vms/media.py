"""Decides what requests about the CD-ROM drives of a VM mean, and records it.

Media change as the machine runs; drives come and go at a start.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from novacron.clock import Clock
from novacron.control.once import Change, Once, Outcome
from novacron.control.store.kinds import IMAGES, VMS
from novacron.control.store.records import Records
from novacron.control.vms import asked as verbs
from novacron.control.vms import boot_order, hardware
from novacron.control.vms.asked import Ask
from novacron.errors import InvalidInput, NotFound
from novacron.model.image import FileRole, Image, ImageState, file_of
from novacron.model.machine import HOT_FROM_MIB, DriveBus, MachineKind, Media
from novacron.model.vm import Vm, VmSpec
from novacron.wire.rest.devices import MediaIn, MediaUpdate
from novacron.wire.rest.vms import VmCreate


class MediaService:
    """Add a drive, change what is in it, take it away."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def add(self, ref: str, asked: MediaIn, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """One more drive, from the next start on.

        :raise NotFound, PreconditionFailed. :raise StateConflict, Busy: nothing of it can be changed now.
        :raise InvalidInput: there is no such image, or it is no ISO; its bus or boot order cannot be had.
        :raise Conflict: it has all its drives.
        """
        media_id = self._records.new_id()

        def change(vm: Vm) -> tuple[Media, ...]:
            digest = digest_of(self._records, asked.image, "image") if asked.image else ""
            slot = hardware.free_drive_slot(vm)
            boot_order.check_free(vm.spec, asked.boot_order)
            image = self._records.get(IMAGES, vm.spec.image_id)
            linux = image is not None and _brings_kernel(image.record)
            bus = bus_of(asked, "bus", vm.spec.memory_mib, linux=linux)
            new = Media(id=media_id, digest=digest, boot_order=asked.boot_order, slot=slot, bus=bus)
            return (*vm.spec.media, new)

        return await self._write(ref, "add a drive to", by, held, once, change)

    async def load(self, ref: str, media: str, asked: MediaUpdate, by: str, held: frozenset[str] | None) -> Outcome:
        """Put an image into a drive, or take out what is in it; also while the machine runs (202).

        :raise NotFound, PreconditionFailed, StateConflict, Busy, InvalidInput: see `add`.
        """

        def change(vm: Vm) -> tuple[Media, ...]:
            found = _drive(vm, media)
            digest = digest_of(self._records, asked.image, "image") if asked.image else ""
            return tuple(msgspec.structs.replace(one, digest=digest) if one is found else one for one in vm.spec.media)

        return await self._write(ref, "change the media of", by, held, None, change)

    async def remove(self, ref: str, media: str, by: str, held: frozenset[str] | None) -> Outcome:
        """One drive less, from the next start on. :raise NotFound, PreconditionFailed, StateConflict, Busy"""

        def change(vm: Vm) -> tuple[Media, ...]:
            found = _drive(vm, media)
            return tuple(one for one in vm.spec.media if one is not found)

        return await self._write(ref, "take a drive from", by, held, None, change)

    async def _write(
        self,
        ref: str,
        verb: str,
        by: str,
        held: frozenset[str] | None,
        once: Once | None,
        change: Callable[[Vm], tuple[Media, ...]],
    ) -> Outcome:
        ask = Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall())

        def wished(vm: Vm) -> Vm:
            verbs.check_free(vm, verb)
            check_kind(vm.spec.machine, "vm")
            return hardware.wish(vm, msgspec.structs.replace(vm.spec, media=change(vm)), ask)

        written = Change(self._records, VMS, ref, held, once)
        return await written.write(wished, under_way=lambda vm: vm.task is not None)


def born(records: Records, asked: VmCreate, image: Image) -> tuple[Media, ...]:
    """The drives of a new VM: that of its image's ISO first, when it has one, then those asked for.

    :raise InvalidInput: there is no such image, it is no ISO, or a bus cannot be had.
    """
    own = file_of(image, FileRole.CDROM)
    drives = [(own.digest, MediaIn(), "")] if own else []
    for place, one in enumerate(asked.media):
        digest = digest_of(records, one.image, f"media.{place}.image") if one.image else ""
        drives.append((digest, one, f"media.{place}.bus"))
    if drives:
        check_kind(asked.machine, "machine")
    return tuple(
        Media(
            id=records.new_id(),
            digest=digest,
            boot_order=one.boot_order,
            slot=slot,
            bus=bus_of(one, field, asked.memory_mib, linux=_brings_kernel(image)),
        )
        for slot, (digest, one, field) in enumerate(drives, 1)
    )


def bus_of(asked: MediaIn, field: str, memory_mib: int, *, linux: bool) -> DriveBus:
    """Where a new drive is plugged in: as asked for, else as its guest will most likely know it.

    A VM that starts from its image's kernel runs a Linux, and one which may know no real hardware, as Debian's for
    clouds; no firmware has to read its drives. All else boots by firmware, and may be an installer: of these some know
    no virtio, as that of Windows.

    :raise InvalidInput: the machine is too small for that bus.
    """
    small = memory_mib < HOT_FROM_MIB
    if asked.bus is None:
        return DriveBus.SCSI if linux and not small else DriveBus.SATA
    if asked.bus is DriveBus.SCSI and small:
        raise InvalidInput.field(field, f"scsi needs {HOT_FROM_MIB} MiB of memory", "use sata, or give it more memory")
    return asked.bus


def _brings_kernel(image: Image) -> bool:
    return file_of(image, FileRole.KERNEL) is not None


def check_memory(spec: VmSpec, memory_mib: int | None) -> None:
    """:raise InvalidInput: the machine would be too small for the bus of a drive it has."""
    if memory_mib is not None and memory_mib < HOT_FROM_MIB and any(one.bus is DriveBus.SCSI for one in spec.media):
        why = f"its CD-ROM drives on scsi need {HOT_FROM_MIB} MiB"
        raise InvalidInput.field("memory_mib", why, "give it as much, or remove the drives first")


def digest_of(records: Records, ref: str, field: str) -> str:
    """The ISO of an image. :raise InvalidInput: there is no such image, it is not ready, or has no ISO."""
    try:
        image = records.find(IMAGES, ref).record
    except NotFound as missing:
        raise InvalidInput.field(field, missing.message, "novacron image list shows what there is") from missing
    file = file_of(image, FileRole.CDROM)
    if file is None or image.state is not ImageState.READY:
        raise InvalidInput.field(field, f"{image.name} holds no ISO", "novacron image create NAME --cdrom FILE.iso")
    return file.digest


def check_kind(machine: MachineKind, field: str) -> None:
    """:raise InvalidInput: machines of that kind have no drives."""
    if machine is not MachineKind.Q35:
        raise InvalidInput.field(field, "a microvm has no CD-ROM drives", "use machine q35")


def _drive(vm: Vm, media_id: str) -> Media:
    for one in vm.spec.media:
        if one.id == media_id:
            return one
    raise NotFound(f"VM {vm.name} has no drive {media_id!r}")
