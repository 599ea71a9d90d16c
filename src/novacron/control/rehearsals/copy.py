"""What a rehearsal makes, as records: the copy's VM, its disks, and the network that nothing else is on."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.networks.check import free_vni
from novacron.control.store.kinds import NETWORKS, VMS
from novacron.control.store.records import Records, Write, create
from novacron.control.vms.birth import Means
from novacron.control.vms.drives import Drive, Drives
from novacron.model.ha import Protection
from novacron.model.identity import MAX_NAME
from novacron.model.machine import CloudInit, NetworkKind, Nic
from novacron.model.network import Addressing, Network, NetworkSpec
from novacron.model.rehearsal import LABEL
from novacron.model.vm import Desired, Vm, VmSpec, running_spec
from novacron.model.volume import Volume


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """vm: the copy; network: None: it has no card; copies: by volume of the original, the copy's; volumes: those."""

    vm: Vm
    network: Network | None
    copies: dict[str, str]
    volumes: tuple[Volume, ...]
    writes: tuple[Write, ...]


def copy_of(
    records: Records, original: Vm, target_id: str, rehearsal_id: str, pool_id: str, slot: int, means: Means
) -> Made:
    """The copy as it begins, owned by the target and held by the rehearsal. pool_id: the default pool's. slot: free.

    It runs with what the original runs with: the same cards with the same addresses, on a network of its own; the same
    seed, so that to cloud-init it is no new instance. Labels, by which others select VMs, it has none but its own.

    :raise NoRoom: there is no VNI or no unit left.
    """
    drives = Drives(records, pool_id, means.new_id, means.now)
    disks = [_empty(drives.copied(disk)) for disk in running_spec(original).disks]
    network = _network(records, original, rehearsal_id, means) if running_spec(original).nics else None
    vm = Vm(
        id=means.new_id(),
        name=name_of(original.name, rehearsal_id),
        labels={LABEL: rehearsal_id},
        description=f"a copy of {original.name}, made by a migration rehearsal and deleted by it",
        spec=_spec(original, disks, network, means),
        desired=Desired.RUNNING,
        node_id=target_id,
        generation=1,
        migration_id=rehearsal_id,
        isolation_slot=slot,
        pins=original.pins,
        created_at=means.now,
        updated_at=means.now,
    )
    writes = [create(VMS, vm), *drives.given(vm, disks, with_vm=True)]
    if network is not None:
        writes.append(create(NETWORKS, network))
    pairs = zip(running_spec(original).disks, vm.spec.disks, strict=True)
    return Made(
        vm=vm,
        network=network,
        copies={old.volume_id: new.volume_id for old, new in pairs},
        volumes=tuple(drives.made),
        writes=tuple(writes),
    )


def name_of(vm_name: str, rehearsal_id: str) -> str:
    """Of the copy, and of its network: whose it is, and by the end of the rehearsal's id which."""
    end = f"-{rehearsal_id[-12:]}"
    return f"rehearsal-{vm_name}"[: MAX_NAME - len(end)] + end


def _empty(drive: Drive) -> Drive:
    """It begins as a disk that its node is told to fill, not as a clone that its node makes."""
    disk = msgspec.structs.replace(drive.disk, source_volume_id="")
    volume = msgspec.structs.replace(drive.volume, source_volume_id="")
    return msgspec.structs.replace(drive, disk=disk, volume=volume)


def _spec(original: Vm, disks: Sequence[Drive], network: Network | None, means: Means) -> VmSpec:
    runs = running_spec(original)
    return msgspec.structs.replace(
        runs,
        disks=tuple(drive.disk for drive in disks),
        nics=tuple(_card(nic, network, means) for nic in runs.nics) if network else (),
        cloud_init=_seed(original),
        shared_memory=False,
        ha=Protection(),
    )


def _card(nic: Nic, network: Network, means: Means) -> Nic:
    """The same hardware in the same place; what its guest sends reaches nobody."""
    return Nic(
        id=means.new_id(),
        mac=nic.mac,
        network=NetworkKind.OVERLAY,
        network_id=network.id,
        anti_spoofing=False,
        boot_order=nic.boot_order,
        slot=nic.slot,
    )


def _seed(original: Vm) -> CloudInit | None:
    seed = running_spec(original).cloud_init
    if seed is None or seed.meta_data:
        return seed
    return msgspec.structs.replace(seed, meta_data=f"instance-id: {original.id}\n")


def _network(records: Records, original: Vm, rehearsal_id: str, means: Means) -> Network:
    """Isolated, without a subnet: no node has an address on it, and it has no way to anywhere."""
    network_id = means.new_id()
    vni = free_vni(stored.record for stored in records.all(NETWORKS))
    return Network(
        id=network_id,
        name=name_of(original.name, rehearsal_id),
        labels={LABEL: rehearsal_id},
        description=f"for the copy of {original.name} alone",
        spec=NetworkSpec(id=network_id, vni=vni, addressing=Addressing.NONE),
        created_at=means.now,
        updated_at=means.now,
    )
