"""The records and reports of a large cluster, from numbers alone: alike in the store and in what its agents say."""

from __future__ import annotations

import ipaddress
import uuid

import msgspec

from novacron.control.scheduler.filters import OVERLAY
from novacron.model.ha import FenceClass, HaPolicy, Protection
from novacron.model.image import DiskFormat, FileRole, Image, ImageFile, ImageState
from novacron.model.machine import Disk, MachineReport, MachineStatus, NetworkKind, Nic
from novacron.model.network import Network, NetworkSpec
from novacron.model.node import Accelerator, DriverFacts, NodeFacts
from novacron.model.vm import Desired, Pins, Vm, VmSpec
from novacron.model.volume import Volume
from tests.bench.records import NOW

DIGEST = "d" * 64
PINS = Pins(machine_type="pc-q35-7.2", cpu_model="qemu64")
TIERS = 100
"""Values of the label `tier`: a selector of one lets through one VM of a hundred."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How large the cluster is. pool_id: of the pool that server and nodes share. protected: of a hundred VMs so many
    are to be restarted elsewhere.
    """

    nodes: int
    vms: int
    pool_id: str
    protected: int = 100

    def networks(self) -> range:
        """The numbers of all."""
        return range(-(-self.nodes // NODES_TOGETHER))

    def on_node(self, node: int) -> range:
        """The numbers of its VMs."""
        return range(node, self.vms, self.nodes)

    def protects(self, number: int) -> bool:
        return number // self.nodes % 100 < self.protected


def an_id(kind: int, number: int) -> str:
    """A UUIDv7 that says what it is of; they ascend with the number."""
    millis = int(NOW.timestamp() * 1000) + number
    return str(uuid.UUID(int=(millis << 80) | (7 << 76) | (kind << 64) | (2 << 62) | number))


def node_id(number: int) -> str:
    return an_id(1, number)


def vm_id(number: int) -> str:
    return an_id(2, number)


def volume_id(number: int) -> str:
    return an_id(3, number)


def image() -> Image:
    """What all VMs were made from."""
    disk = ImageFile(
        role=FileRole.DISK, digest=DIGEST, size_bytes=1 << 30, format=DiskFormat.QCOW2, virtual_size_bytes=10 << 30
    )
    return Image(id=an_id(4, 0), name="debian", state=ImageState.READY, created_at=NOW, updated_at=NOW, files=(disk,))


def network(number: int) -> Network:
    """What the VMs of some nodes have their cards on."""
    spec = NetworkSpec(id=an_id(6, number), vni=4096 + number, ipv4="10.0.0.0/8")
    return Network(id=spec.id, name=f"net-{number:04}", spec=spec, created_at=NOW, updated_at=NOW)


def vm(plan: Plan, number: int) -> Vm:
    """A VM as the API writes it, that has been started and runs."""
    guarded = Protection(policy=HaPolicy.RESTART, min_class=FenceClass.TIMER)
    mac = "52:4e:43:" + ":".join(f"{byte:02x}" for byte in number.to_bytes(3, "big"))
    disk = Disk(volume_id=volume_id(number), size_bytes=10 << 30, backing_digest=DIGEST, slot=1)
    nic = Nic(
        id=an_id(5, number),
        mac=mac,
        slot=1,
        network=NetworkKind.OVERLAY,
        network_id=an_id(6, number % plan.nodes // NODES_TOGETHER),
        addresses=(str(ipaddress.ip_address("10.1.0.0") + number),),
    )
    spec = VmSpec(image_id=an_id(4, 0), vcpus=2, memory_mib=2048, disks=(disk,), nics=(nic,))
    if plan.protects(number):
        spec = msgspec.structs.replace(spec, ha=guarded)
    return Vm(
        id=vm_id(number),
        name=f"vm-{number:06}",
        spec=spec,
        desired=Desired.RUNNING,
        labels={"tier": f"t{number % TIERS}", "stage": "test"},
        observed=report(vm_id(number), 1, MachineStatus.RUNNING),
        node_id=node_id(number % plan.nodes),
        generation=1,
        pins=PINS,
        booted=spec,
        isolation_slot=number + 1,
        created_at=NOW,
        updated_at=NOW,
    )


def volume(plan: Plan, number: int) -> Volume:
    """The disk of that VM."""
    return Volume(
        id=volume_id(number),
        name=f"vm-{number:06}-0",
        pool_id=plan.pool_id,
        size_bytes=10 << 30,
        created_at=NOW,
        updated_at=NOW,
        backing_digest=DIGEST,
        vm_id=vm_id(number),
        with_vm=True,
    )


def report(machine: str, generation: int, status: MachineStatus) -> MachineReport:
    """A machine as its node sees it."""
    return MachineReport(
        vm_id=machine,
        generation=generation,
        status=status,
        since=NOW,
        pid=4000,
        machine_type=PINS.machine_type,
        cpu_model=PINS.cpu_model,
        accelerator="tcg",
    )


def facts(plan: Plan, number: int) -> NodeFacts:
    """A node that has room for half as many VMs again."""
    driver = DriverFacts(
        name="qemu",
        version="7.2",
        machine_types=(PINS.machine_type,),
        default_machine_types={"q35": PINS.machine_type},
        cpu_models=(PINS.cpu_model,),
        accelerator=Accelerator(name="tcg", reason="simulated"),
    )
    most = len(plan.on_node(0)) * 3 // 2 + 16
    return NodeFacts(
        hostname=f"node-{number}",
        kernel="6.1",
        architecture="x86_64",
        boot_id=f"boot-{number}",
        cpu_model="any",
        cpu_flags=("sse2", "avx2"),
        cpu_count=most // 2,
        memory_mib=most * 2048 + 512,
        agent_version="0.1.0",
        pool_ids=(plan.pool_id,),
        abilities=(OVERLAY,),
        tunnel_address=str(ipaddress.ip_address("172.16.0.0") + number),
        drivers=(driver,),
    )


NODES_TOGETHER = 4
"""Their VMs are on one network."""
