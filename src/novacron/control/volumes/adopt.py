"""Disks of VMs that were made before volumes had records: each gets one, once, as the server starts."""

from __future__ import annotations

from novacron.clock import Clock
from novacron.control.store.kinds import VMS, VOLUMES
from novacron.control.store.records import Records, create, unchanged
from novacron.control.store.shelf import Stored
from novacron.errors import NotFound
from novacron.model.machine import Disk
from novacron.model.vm import Vm
from novacron.model.volume import Volume, name_for


async def adopt_disks(records: Records, clock: Clock, default_pool_id: str) -> None:
    """They were made with their VMs, and go with them."""
    for stored in records.all(VMS):
        for number, disk in enumerate(stored.record.spec.disks):
            if records.get(VOLUMES, disk.volume_id) is None:
                await _adopt(records, clock, default_pool_id, stored, number, disk)


async def _adopt(
    records: Records, clock: Clock, default_pool_id: str, stored: Stored[Vm], number: int, disk: Disk
) -> None:
    vm, now = stored.record, clock.wall()
    volume = Volume(
        id=disk.volume_id,
        name=name_for(vm.name, number, disk.volume_id, lambda name: _is_taken(records, name)),
        pool_id=disk.pool_id or default_pool_id,
        size_bytes=disk.size_bytes,
        backing_digest=disk.backing_digest,
        qos=disk.qos,
        vm_id=vm.id,
        with_vm=True,
        created_at=vm.created_at,
        updated_at=now,
    )
    await records.commit(create(VOLUMES, volume), unchanged(VMS, stored))


def _is_taken(records: Records, name: str) -> bool:
    try:
        records.find(VOLUMES, name)
    except NotFound:
        return False
    return True
