"""Asks a running QEMU what it consists of."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.agent.drivers.qemu import devices
from novacron.agent.drivers.qemu.difference import Cpu, DiskRuns, Runs
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.qmp import Monitor
from novacron.errors import Reason, StateConflict
from novacron.model.machine import MachineSpec, Qos


class _Child(msgspec.Struct):
    name: str
    type: str


class _Image(msgspec.Struct, rename="kebab"):
    virtual_size: int = 0


class _Inserted(msgspec.Struct, rename="kebab"):
    """What is in a disk or drive."""

    image: _Image
    node_name: str = ""
    file: str = ""
    iops: int = 0
    bps: int = 0


class _Block(msgspec.Struct):
    qdev: str = ""
    inserted: _Inserted | None = None


class _Node(msgspec.Struct, rename="kebab"):
    node_name: str


class _Place(msgspec.Struct, rename="kebab"):
    """Where a vCPU is or can be."""

    type: str
    props: dict[str, Any]
    qom_path: str = ""


class _Memory(msgspec.Struct):
    type: str
    data: dict[str, Any]


async def look(machine: Machine, before: MachineSpec) -> Runs:
    """The machine as it is now. :raise MonitorFailed, DeadlineExceeded, MachineDied"""
    monitor = machine.door()
    blocks = [(devices.device_in(one.qdev), one) for one in await monitor.ask(list[_Block], "query-block")]
    return Runs(
        before=before,
        accelerator=machine.record.accelerator,
        devices=await _children(monitor, "/machine/peripheral"),
        nodes=await node_names(monitor),
        objects=await _children(monitor, "/objects"),
        disks={
            name.removeprefix(devices.DISK): _disk(one.qdev, one.inserted)
            for name, one in blocks
            if name.startswith(devices.DISK) and one.inserted is not None
        },
        drives={
            name: one.inserted.file if one.inserted else "" for name, one in blocks if name.startswith(devices.DRIVE)
        },
        cpus=await _cpus(monitor) if devices.is_hot(before) else (),
        dimms_mib=await _dimms(monitor) if devices.is_hot(before) else (),
    )


async def disk_nodes(monitor: Monitor) -> dict[str, str]:
    """By volume id, the node that its device works with."""
    blocks = [(devices.device_in(one.qdev), one) for one in await monitor.ask(list[_Block], "query-block")]
    return {
        name.removeprefix(devices.DISK): one.inserted.node_name
        for name, one in blocks
        if name.startswith(devices.DISK) and one.inserted is not None
    }


async def node_names(monitor: Monitor) -> frozenset[str]:
    """Every block node there is."""
    found = await monitor.ask(list[_Node], "query-named-block-nodes", {"flat": True})
    return frozenset(node.node_name for node in found)


def check_may_leave(machine: Machine) -> None:
    """:raise StateConflict: QEMU (7.2) would refuse to send it: it was sent while it was paused, and was taken back.
    Nothing but letting its guest run ends that.
    """
    if machine.resume_first:
        why = "it was taken back from a move while it was paused, and its hypervisor sends it again once it has run"
        words = f"machine {machine.vm_id} cannot be sent: {why}"
        raise StateConflict(words, [Reason("machine.resume_first", why, machine.vm_id, "resume it first")])


async def check_whole(machine: Machine) -> None:
    """Whether it has every device its record says: the target builds the same, and QEMU itself would not tell.

    :raise StateConflict: its guest has let go of one since.
    """
    spec = machine.record.spec
    if spec is None:
        return
    names = {devices.disk_id(disk.volume_id) for disk in spec.disks} | {devices.nic_id(nic.id) for nic in spec.nics}
    gone = names - await _children(machine.door(), "/machine/peripheral")
    if gone:
        why = f"without {', '.join(sorted(gone))}, which its guest has let go of"
        raise StateConflict.of(f"machine {machine.vm_id}", why, ("adjusted to what it has",), "send")


async def _children(monitor: Monitor, path: str) -> frozenset[str]:
    found = await monitor.ask(list[_Child], "qom-list", {"path": path})
    return frozenset(child.name for child in found if child.type.startswith("child<"))


def _disk(qdev: str, inserted: _Inserted) -> DiskRuns:
    qos = Qos(iops=inserted.iops, bytes_per_s=inserted.bps)
    return DiskRuns(qdev=qdev, node=inserted.node_name, size_bytes=inserted.image.virtual_size, qos=qos)


async def _cpus(monitor: Monitor) -> tuple[Cpu, ...]:
    found = await monitor.ask(list[_Place], "query-hotpluggable-cpus")
    places = [Cpu(type=one.type, props=one.props, path=one.qom_path) for one in found]
    return tuple(sorted(places, key=lambda cpu: tuple(sorted(cpu.props.items()))))


async def _dimms(monitor: Monitor) -> tuple[int, ...]:
    """Sizes in MiB, in the order in which they were plugged in."""
    found = [one.data for one in await monitor.ask(list[_Memory], "query-memory-devices") if one.type == "dimm"]
    return tuple(int(one["size"]) >> 20 for one in sorted(found, key=lambda one: int(one["slot"])))
