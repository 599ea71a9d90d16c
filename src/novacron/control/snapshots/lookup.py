"""Snapshots found in the records: of a VM, of a volume, by a reference; and what a node is told of one."""

from __future__ import annotations

from novacron.control.pools.reach import specs_of
from novacron.control.store.records import IMAGES, SNAPSHOTS, Records, Stored, Write, remove
from novacron.control.vms import decide
from novacron.errors import NotFound
from novacron.model.machine import Disk, MachineSpec
from novacron.model.snapshot import Snapshot
from novacron.model.vm import Vm, VmSpec
from novacron.wire.snapshot import SnapshotDelete


def of_vm(records: Records, vm_id: str) -> list[Stored[Snapshot]]:
    """Every snapshot of the VM, oldest first."""
    return [stored for stored in records.all(SNAPSHOTS) if stored.record.vm_id == vm_id]


def of_volume(records: Records, volume_id: str) -> list[Snapshot]:
    """Snapshots that the volume has a part of: they are lost with it."""
    return [stored.record for stored in records.all(SNAPSHOTS) if volume_id in stored.record.volumes]


def told(records: Records, vm: Vm, spec: VmSpec) -> MachineSpec:
    """What the VM's node is told of the machine with that spec. :raise NotFound: its image is gone."""
    image = records.get(IMAGES, spec.image_id)
    if image is None:
        raise NotFound(f"the image of {vm.name} ({spec.image_id}) is gone")
    return decide.machine_spec(vm, image.record, spec, pools=specs_of(records, spec.disks))


def parting(records: Records, vm: Vm, kept: tuple[Disk, ...]) -> tuple[list[SnapshotDelete], list[Write]]:
    """For a VM that goes: what to ask its node for the disks that are kept, and the end of the records."""
    mine = of_vm(records, vm.id)
    asks = []
    for stored in mine:
        volumes = stored.record.volumes
        disks = tuple(disk for disk in kept if disk.volume_id in volumes)
        if disks:
            spec = MachineSpec(
                vm_id=vm.id,
                generation=vm.generation,
                vcpus=1,
                memory_mib=1,
                disks=disks,
                pools=specs_of(records, disks),
                machine_type=vm.pins.machine_type,
                isolation_slot=vm.isolation_slot,
            )
            asks.append(SnapshotDelete(vm_id=vm.id, generation=vm.generation, spec=spec, snapshot_id=stored.record.id))
    return asks, [remove(SNAPSHOTS, stored) for stored in mine]
