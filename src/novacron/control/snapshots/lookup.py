"""Snapshots found in the records, and what a node is told of the machine as it was."""

from __future__ import annotations

from novacron.control.networks.states import wiring_of
from novacron.control.pools.reach import specs_of
from novacron.control.store.kinds import IMAGES, SNAPSHOTS
from novacron.control.store.records import Records
from novacron.control.vms import decide
from novacron.errors import NotFound
from novacron.model.machine import MachineSpec
from novacron.model.snapshot import Snapshot
from novacron.model.vm import Vm, VmSpec


def of_volume(records: Records, volume_id: str) -> list[Snapshot]:
    """Snapshots that the volume has a part of: they are lost with it."""
    return [stored.record for stored in records.all(SNAPSHOTS) if volume_id in stored.record.volumes]


def told(records: Records, vm: Vm, spec: VmSpec) -> MachineSpec:
    """What the VM's node is told of the machine with that spec. :raise NotFound: its image is gone."""
    image = records.get(IMAGES, spec.image_id)
    if image is None:
        raise NotFound(f"the image of {vm.name} ({spec.image_id}) is gone")
    wiring, pools = wiring_of(records, spec.nics), specs_of(records, spec.disks)
    return decide.machine_spec(vm, image.record, spec, wiring=wiring, pools=pools)
