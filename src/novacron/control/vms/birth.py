"""A new VM's record from what was asked: pure; ids, MAC addresses and time are handed in."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from novacron.control.scheduler.snapshot import DiskNeed, Need, PoolNeed
from novacron.errors import Conflict, InvalidInput, Reason, StateConflict
from novacron.model.ha import FenceClass, Protection
from novacron.model.image import FileRole, Image, ImageState, file_of
from novacron.model.machine import CloudInit, Disk, Forward, NetworkKind, Nic
from novacron.model.placement import NO_WISHES, PlacementWishes
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec, features_of
from novacron.wire.rest.devices import NicIn
from novacron.wire.rest.ha import Ha
from novacron.wire.rest.placement import Placement
from novacron.wire.rest.vms import VmCreate


class Means(msgspec.Struct, frozen=True):
    """What a birth needs from outside: fresh ids, MAC addresses that no card has, who asks and when."""

    new_id: Callable[[], str]
    new_mac: Callable[[], str]
    by: str
    now: datetime.datetime


def spec_of(asked: VmCreate, image: Image, means: Means, disks: Sequence[Disk]) -> VmSpec:
    """What was asked for, complete. disks: see control.vms.drives.

    :raise StateConflict: the image is not ready.
    :raise InvalidInput: it does not go with the image.
    """
    if image.state is not ImageState.READY:
        raise StateConflict.of(f"image {image.name}", image.state.value, ("ready",), "make a VM from")
    if asked.kernel_cmdline and file_of(image, FileRole.KERNEL) is None:
        raise InvalidInput.field("kernel_cmdline", "the image has no kernel to hand it to", "leave it out")
    nics = (nic_of(nic, means) for nic in asked.nics)
    return VmSpec(
        image_id=image.id,
        vcpus=asked.vcpus,
        memory_mib=asked.memory_mib,
        type=asked.type,
        machine=asked.machine,
        firmware=asked.firmware,
        kernel_cmdline=asked.kernel_cmdline,
        disks=tuple(msgspec.structs.replace(disk, slot=slot) for slot, disk in enumerate(disks, 1)),
        nics=tuple(msgspec.structs.replace(nic, slot=slot) for slot, nic in enumerate(nics, 1)),
        cloud_init=CloudInit(**asked.cloud_init.model_dump()) if asked.cloud_init else None,
        guest_agent=asked.guest_agent,
        max_vcpus=asked.max_vcpus,
        max_memory_mib=asked.max_memory_mib,
        tpm=asked.tpm,
        secure_boot=asked.secure_boot,
        shared_memory=asked.shared_memory,
        ha=protection_of(asked.ha),
    )


def nic_of(asked: NicIn, means: Means) -> Nic:
    """A new card, not yet on the network it asks for (see connect)."""
    return Nic(
        id=means.new_id(),
        mac=asked.mac or means.new_mac(),
        network=asked.network,
        bridge=asked.bridge,
        forwards=tuple(Forward(guest_port=one.guest_port, host_port=one.host_port) for one in asked.forwards),
        boot_order=asked.boot_order,
    )


def need_of(
    spec: VmSpec,
    pool_id: str,
    node_id: str = "",
    pools: tuple[PoolNeed, ...] = (),
    *,
    labels: Mapping[str, str] = {},
    wishes: PlacementWishes = NO_WISHES,
    disks: tuple[DiskNeed, ...] = (),
) -> Need:
    """What its machine asks of a node. node_id: only this one will do. pools, disks: see control.pools.reach.

    labels, wishes: the VM's.
    """
    return Need(
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        machine=spec.machine,
        features=features_of(spec),
        pool_id=pool_id if any(not disk.pool_id for disk in spec.disks) else "",
        pools=pools,
        bridges=tuple(sorted({nic.bridge for nic in spec.nics if nic.network is NetworkKind.BRIDGE})),
        overlay=any(nic.network is NetworkKind.OVERLAY for nic in spec.nics),
        node_id=node_id,
        labels=labels,
        wishes=wishes,
        disks=disks,
    )


def wishes_of(asked: Placement) -> PlacementWishes:
    """What was wished of its place, for the record."""
    return msgspec.convert(asked.model_dump(mode="json"), PlacementWishes)


def protection_of(asked: Ha) -> Protection:
    """What was asked of high availability, for the record."""
    min_class = FenceClass[asked.min_fence_class.upper()]
    return Protection(policy=asked.policy, min_class=min_class, priority=asked.priority)


def check_macs(spec: VmSpec, vms: Iterable[Vm]) -> None:
    """:raise InvalidInput: a MAC stands twice in it. :raise Conflict: another VM has it."""
    mine = [nic.mac for nic in spec.nics]
    for place, mac in enumerate(mine):
        if mac in mine[:place]:
            raise InvalidInput.field(f"nics.{place}.mac", "stands twice", "give each card its own, or none")
    for vm in vms:
        for nic in vm.spec.nics:
            if nic.mac in mine:
                raise Conflict(
                    f"MAC address {nic.mac} belongs to VM {vm.name}",
                    [Reason("mac.taken", "taken", subject=vm.name, remedy="give another, or none")],
                )


def newborn(asked: VmCreate, spec: VmSpec, means: Means, *, node_id: str, slot: int) -> Vm:
    """The record: owned by its node under the first generation, its creation under way unless it is to stay off."""
    running = asked.desired is Desired.RUNNING
    task = Task(id=means.new_id(), kind=TaskKind.CREATE, requested_at=means.now, requested_by=means.by)
    return Vm(
        id=means.new_id(),
        name=asked.name,
        description=asked.description,
        labels=asked.labels,
        spec=spec,
        desired=asked.desired,
        task=task if running else None,
        node_id=node_id,
        generation=1,
        isolation_slot=slot,
        placement=wishes_of(asked.placement),
        created_at=means.now,
        updated_at=means.now,
    )
