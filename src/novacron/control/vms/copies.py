"""Copies of a parked VM: decided and recorded here, begun by the reconciler like any other new VM."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Once, Outcome
from novacron.control.pools import quota
from novacron.control.pools.reach import disk_needs, needs_of
from novacron.control.room import Room
from novacron.control.store.kinds import VMS, Kind
from novacron.control.store.records import Records, Write
from novacron.control.store.shelf import Stored
from novacron.control.vms import birth, boot_order
from novacron.control.vms.admitting import Admits
from novacron.control.vms.birth import Means
from novacron.control.vms.connect import Connector, with_macs_of
from novacron.control.vms.drives import Drives
from novacron.control.vms.macs import Macs
from novacron.control.vms.placing import Placing
from novacron.control.vms.turns import record_born
from novacron.errors import NoRoom, Reason, StateConflict
from novacron.model.event import ObjectType
from novacron.model.identity import check_name
from novacron.model.machine import HOT_SLOT, CloudInit, MachineStatus
from novacron.model.vm import Desired, Pins, Task, TaskKind, Vm, VmSpec, status_of
from novacron.wire.rest.vms import CopiesCreate


class Made(msgspec.Struct, frozen=True):
    """What one request made, kept for a repeat of it."""

    id: str
    vm_ids: tuple[str, ...]


MADE: Kind[Made] = Kind("", Made, ObjectType.VM, named=False)
"""Never stored but under an idempotency key."""


def made(vms: Sequence[Vm]) -> Made:
    """What a repeat of the request that made them is answered from."""
    return Made(vms[0].id, tuple(vm.id for vm in vms))


class Copies:
    """pool_id: the default pool's."""

    def __init__(
        self,
        records: Records,
        room: Room,
        clock: Clock,
        pool_id: str,
        admission: Admits,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._pool_id = pool_id
        self._admission = admission
        self._random_bytes = random_bytes

    async def create(
        self, ref: str, asked: CopiesCreate, by: str, held: frozenset[str] | None, once: Once
    ) -> tuple[Sequence[Stored[Vm]], int]:
        """Record them, all or none; the VMs and the status to answer with.

        :raise StateConflict: the VM is not parked. :raise NoRoom: its node, a quota, or the room kept for guarded VMs
            has too little left.
        :raise NotFound, NameTaken, InvalidInput, Conflict, PreconditionFailed
        """
        outcome = await once.perform(MADE, lambda: self._create(ref, asked, by, held, once))
        found = (self._records.get(VMS, vm_id) for vm_id in outcome.stored.record.vm_ids)
        return [stored for stored in found if stored is not None], outcome.status

    async def _create(self, ref: str, asked: CopiesCreate, by: str, held: frozenset[str] | None, once: Once) -> Outcome:
        means = Means(self._records.new_id, Macs(self._records, self._random_bytes).new, by, self._clock.wall())

        def births() -> tuple[list[Vm], list[Write]]:
            parent = self._records.find(VMS, ref)
            check_match(held, parent)
            _check_parked(parent.record)
            boot_order.check_copies(asked.nics)
            born, volumes = self._births(parent.record, asked, means)
            once.warnings = self._admission.judge(born)
            return born, volumes

        born = await record_born(self._records, self._room, once, births, made)
        return Outcome(Stored(made([stored.record for stored in born]), born[0].modified), 202)

    def _births(self, parent: Vm, asked: CopiesCreate, means: Means) -> tuple[list[Vm], list[Write]]:
        slots = self._room.free_slots()
        placing = Placing(self._room)
        drives = Drives(self._records, self._pool_id, means.new_id, means.now)
        connector = Connector(self._records)
        born: list[Vm] = []
        volumes: list[Write] = []
        for number in range(asked.count):
            disks = [drives.copied(disk) for disk in parent.spec.disks]
            nics = [
                msgspec.structs.replace(birth.nic_of(nic, means), slot=HOT_SLOT + place)
                for place, nic in enumerate(asked.nics)
            ]
            spec = msgspec.structs.replace(
                parent.spec,
                disks=tuple(drive.disk for drive in disks),
                nics=tuple(nics),
                cloud_init=_still_the_same(parent),
            )
            spec = connector.born(spec, asked.nics)
            birth.check_macs(spec, [*with_macs_of(self._records, spec), *born])
            vm = _copy(parent, asked, number, spec, means, next(slots))
            need = birth.need_of(
                spec,
                self._pool_id,
                parent.node_id,
                needs_of(self._records, spec.disks),
                labels=asked.labels,
                disks=disk_needs(self._records, (drive.volume for drive in disks)),
            )
            reason = placing.refusal(need, parent.node_id)
            if reason is not None:
                raise NoRoom(f"the node of {parent.name} cannot take {vm.name}: {reason.message}", [reason])
            placing.promise(need, parent.node_id, runs=True)
            born.append(vm)
            volumes += drives.given(vm, disks, with_vm=True)
        quota.check(self._records, drives.made)
        return born, volumes


def _still_the_same(parent: Vm) -> CloudInit | None:
    """Its seed. To cloud-init a copy is no new instance: at its next boot it does not become its parent once more."""
    seed = parent.spec.cloud_init
    if seed is None or seed.meta_data:
        return seed
    return msgspec.structs.replace(seed, meta_data=f"instance-id: {parent.id}\n")


def _check_parked(vm: Vm) -> None:
    if status_of(vm) is not MachineStatus.PARKED or vm.task is not None:
        seen = vm.task.kind.value if vm.task else status_of(vm).value
        reason = Reason("vm.not_parked", f"it is {seen}", vm.name, f"novacron vm park {vm.name}")
        raise StateConflict(f"{vm.name} is not parked", [reason])


def _copy(parent: Vm, asked: CopiesCreate, number: int, spec: VmSpec, means: Means, slot: int) -> Vm:
    index = asked.first_index + number
    task = Task(id=means.new_id(), kind=TaskKind.CREATE, requested_at=means.now, requested_by=means.by)
    return Vm(
        id=means.new_id(),
        name=asked.name if asked.count == 1 else check_name(f"{asked.name}-{index}", "name"),
        labels=asked.labels,
        spec=spec,
        desired=Desired.RUNNING,
        task=task,
        node_id=parent.node_id,
        generation=1,
        isolation_slot=slot,
        pins=Pins(machine_type=parent.pins.machine_type, cpu_model=parent.pins.cpu_model),
        parent_id=parent.id,
        created_at=means.now,
        updated_at=means.now,
    )
