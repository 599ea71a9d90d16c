"""Decides what requests about the disks of a VM that exists mean, and records it: VM and volume in one transaction.

Disks come and go as hardware does (control.vms.hardware). A volume that is taken from a machine that runs belongs to
its VM until the machine has let go of it: the volumes' worker sees that.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Once, Outcome
from novacron.control.pools import quota
from novacron.control.pools.reach import needs_of
from novacron.control.room import Room
from novacron.control.scheduler.filters import reachable_storage
from novacron.control.scheduler.snapshot import Need
from novacron.control.store.kinds import VMS, VOLUMES
from novacron.control.store.records import WRITE_TRIES, Records, Write, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.control.vms import asked as verbs
from novacron.control.vms import boot_order, hardware
from novacron.control.vms.asked import Ask
from novacron.control.vms.drives import Drives
from novacron.errors import Busy, CompareFailed, NoRoom, NotFound, Reason
from novacron.model.machine import ENDED, Disk
from novacron.model.vm import TaskKind, Vm, VmSpec, status_of
from novacron.model.volume import Volume, VolumeTask
from novacron.wire.rest.devices import DiskIn

Plan = Callable[[Stored[Vm]], tuple[Vm, list[Write]]]


class DiskService:
    """Attach and detach. Each write takes its turn: volumes are given to VMs one at a time."""

    def __init__(self, records: Records, room: Room, clock: Clock, default_pool_id: str) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._default_id = default_pool_id

    async def attach(self, ref: str, asked: DiskIn, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """One more disk, which outlives the VM; a machine that runs gets it as it runs (202).

        :raise NotFound, PreconditionFailed. :raise StateConflict, Busy: nothing of it can be changed now.
        :raise InvalidInput: there is no such volume or pool, or another device has its boot order. :raise Conflict: the
        volume belongs to another, or the machine takes no more disks.
        :raise NoRoom: its node does not reach the pool, or a quota does not allow it.
        """
        ask = self._ask(by)

        def plan(stored: Stored[Vm]) -> tuple[Vm, list[Write]]:
            vm = stored.record
            if asked.volume is not None and _has(vm, self._records, asked.volume):
                return vm, []
            verbs.check_free(vm, "attach a disk to")
            boot_order.check_free(vm.spec, asked.boot_order)
            drives = Drives(self._records, self._default_id, self._records.new_id, ask.now)
            drive = drives.one(asked)
            quota.check(self._records, drives.made)
            disk = msgspec.structs.replace(drive.disk, slot=hardware.free_disk_slot(vm))
            self._check_reach(vm, disk)
            new = hardware.wish(vm, _with(vm.spec, (*vm.spec.disks, disk)), ask)
            return new, drives.given(new, [drive], task=VolumeTask.CREATE)

        return await self._write(ref, held, once, plan)

    async def detach(self, ref: str, volume: str, by: str, held: frozenset[str] | None) -> Outcome:
        """One disk less; a machine that runs loses it as it runs (202). The volume stays.

        :raise NotFound, PreconditionFailed. :raise StateConflict, Busy: nothing of it can be changed now.
        """
        ask = self._ask(by)

        def plan(stored: Stored[Vm]) -> tuple[Vm, list[Write]]:
            vm = stored.record
            verbs.check_free(vm, "detach a disk from")
            named = self._records.find(VOLUMES, volume)
            if all(disk.volume_id != named.record.id for disk in vm.spec.disks):
                raise NotFound(f"volume {named.record.name} is no disk of VM {vm.name}")
            kept = tuple(disk for disk in vm.spec.disks if disk.volume_id != named.record.id)
            new = hardware.wish(vm, _with(vm.spec, kept), ask)
            vm_id = "" if is_at_rest(vm) else vm.id
            free = msgspec.structs.replace(named.record, vm_id=vm_id, with_vm=False, updated_at=ask.now)
            return new, [update(VOLUMES, named, free)]

        return await self._write(ref, held, None, plan)

    async def _write(self, ref: str, held: frozenset[str] | None, once: Once | None, plan: Plan) -> Outcome:
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = self._records.find(VMS, ref)
                check_match(held, stored)
                new, beside = plan(stored)
                outcome = Outcome(Stored(new, stored.modified), 202 if new.task else 200)
                change = update(VMS, stored, new) if new != stored.record else unchanged(VMS, stored)
                note = once.note(new, outcome.status, 0 if beside else stored.modified) if once else ()
                try:
                    revision = await self._records.commit(change, *beside, ticket, *note)
                except CompareFailed:
                    if once and await once.is_used():
                        raise
                    await self._records.refresh()
                    continue
                return outcome if new == stored.record else Outcome(Stored(new, revision), outcome.status)
        raise CompareFailed(f"VM {ref!r} is being changed by others: try again")

    def _check_reach(self, vm: Vm, disk: Disk) -> None:
        mine = next((one for one in self._room.candidates() if one.node.id == vm.node_id), None)
        need = Need(memory_mib=0, vcpus=0, pools=needs_of(self._records, [disk]))
        reason = reachable_storage(need, mine, self._room.limits) if mine else None
        if reason is not None:
            raise NoRoom(f"{vm.name} cannot have that disk where it is: {reason.message}", [reason])

    def _ask(self, by: str) -> Ask:
        return Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall())


def is_at_rest(vm: Vm) -> bool:
    """Whether no machine has its disks open, nor is about to."""
    return status_of(vm) in ENDED and vm.task is None and not vm.migration_id


def reshaped(vm: Vm, volume: Volume, ask: Ask) -> Vm:
    """The VM with its disk as its volume is to be: size and limits.

    :raise StateConflict: it is being deleted, or its node is lost. :raise Busy: a migration holds it, or it is being
    started.
    """
    verbs.check_free(vm, "change a disk of")
    if vm.task is not None and vm.task.kind is not TaskKind.ADJUST and status_of(vm) in ENDED:
        reason = Reason("vm.task_under_way", vm.task.kind.value, vm.task.id, "wait until it has ended")
        raise Busy(f"cannot change a disk of {vm.name}: its task {vm.task.kind.value} is under way", [reason])
    disks = tuple(
        msgspec.structs.replace(disk, size_bytes=volume.size_bytes, qos=volume.qos)
        if disk.volume_id == volume.id
        else disk
        for disk in vm.spec.disks
    )
    return hardware.wish(vm, _with(vm.spec, disks), ask)


def _with(spec: VmSpec, disks: tuple[Disk, ...]) -> VmSpec:
    return msgspec.structs.replace(spec, disks=disks)


def _has(vm: Vm, records: Records, ref: str) -> bool:
    try:
        volume_id = records.find(VOLUMES, ref).record.id
    except NotFound:
        return False
    return any(disk.volume_id == volume_id for disk in vm.spec.disks)
