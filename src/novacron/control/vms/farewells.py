"""What a VM's snapshots leave behind when the VM goes: in volumes that stay, and in the records."""

from __future__ import annotations

from collections.abc import Collection

from novacron.control.pools.reach import specs_of
from novacron.control.store.kinds import SNAPSHOTS, VOLUMES
from novacron.control.store.records import Records, Write, remove
from novacron.model.machine import MachineSpec
from novacron.model.vm import Vm
from novacron.wire.snapshot import SnapshotDelete


def of(records: Records, vm: Vm, going: Collection[str]) -> list[SnapshotDelete]:
    """For a VM that goes: what to ask its node, so that volumes which outlive it (not `going`) keep no snapshots of it.

    A volume that is another VM's by now is left alone.
    """
    asks = []
    for stored in records.of_vm(SNAPSHOTS, vm.id):
        disks = tuple(disk for disk in stored.record.spec.disks if disk.volume_id not in going)
        disks = tuple(disk for disk in disks if _is_free(records, disk.volume_id, vm.id))
        if not disks:
            continue
        spec = MachineSpec(
            vm_id=vm.id,
            generation=vm.generation,
            vcpus=vm.spec.vcpus,
            memory_mib=vm.spec.memory_mib,
            disks=disks,
            pools=specs_of(records, disks),
            machine_type=vm.pins.machine_type,
            isolation_slot=vm.isolation_slot,
        )
        asks.append(SnapshotDelete(vm_id=vm.id, generation=vm.generation, spec=spec, snapshot_id=stored.record.id))
    return asks


def ends(records: Records, vm: Vm) -> list[Write]:
    """The records of its snapshots end with a VM."""
    return [remove(SNAPSHOTS, stored) for stored in records.of_vm(SNAPSHOTS, vm.id)]


def _is_free(records: Records, volume_id: str, vm_id: str) -> bool:
    stored = records.get(VOLUMES, volume_id)
    return stored is not None and stored.record.vm_id in ("", vm_id)
