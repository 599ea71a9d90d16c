"""What a hypervisor can change of a machine that runs, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from novacron.agent.drivers.base import Launch
from novacron.errors import Reason
from novacron.model.machine import HOT_SLOT, Disk, Nic
from novacron.testing.fake_world import FakeMachine

Part = TypeVar("Part", Disk, Nic)


def adjust(machine: FakeMachine, launch: Launch) -> tuple[Reason, ...]:
    """Make the machine as the launch says; the reasons why some of it waits."""
    runs, wished = machine.launch.spec, launch.spec
    reasons: list[Reason] = []
    vcpus = wished.vcpus
    if vcpus > max(runs.max_vcpus, runs.vcpus):
        vcpus = runs.vcpus
        reasons.append(Reason("vcpus.limit", "it was started with fewer vCPUs to grow to", "vcpus"))
    memory_mib = wished.memory_mib
    if memory_mib > max(runs.max_memory_mib, runs.memory_mib):
        memory_mib = runs.memory_mib
        reasons.append(Reason("memory.limit", "it was started with less memory to grow to", "memory_mib"))
    disks = tuple(
        _in_order(disk, {one.volume_id: one for one in runs.disks}, disk.volume_id, reasons) for disk in wished.disks
    ) + _stays(
        {disk.volume_id: disk for disk in runs.disks}, {disk.volume_id for disk in wished.disks}, machine, reasons
    )
    nics = tuple(_in_order(nic, {one.id: one for one in runs.nics}, nic.id, reasons) for nic in wished.nics) + _stays(
        {nic.id: nic for nic in runs.nics}, {nic.id for nic in wished.nics}, machine, reasons
    )
    grown = memory_mib - runs.memory_mib
    dimms = (*runs.dimms_mib, grown) if grown > 0 else runs.dimms_mib
    now = msgspec.structs.replace(
        runs, dimms_mib=dimms, vcpus=vcpus, memory_mib=memory_mib, disks=disks, nics=nics, media=wished.media
    )
    machine.launch = msgspec.structs.replace(launch, spec=now)
    return tuple(reasons)


def _in_order(part: Part, runs: Mapping[str, Part], name: str, reasons: list[Reason]) -> Part:
    """The disk or card in the place of the starting order that it had when the machine started."""
    order = runs[name].boot_order if name in runs else 0
    if order != part.boot_order:
        why = "its place in the starting order counts from the next start"
        reasons.append(Reason("boot_order.waits", why, name, "novacron vm restart"))
    return msgspec.structs.replace(part, boot_order=order)


def _stays(
    runs: dict[str, Disk] | dict[str, Nic], wished: set[str], machine: FakeMachine, reasons: list[Reason]
) -> tuple[Disk | Nic, ...]:
    """What is to go and cannot: it sits on the board, or its guest keeps it."""
    found: list[Disk | Nic] = []
    for name, part in runs.items():
        if name not in wished and (part.slot < HOT_SLOT or name in machine.keeps):
            found.append(part)
            reasons.append(
                Reason("unplug.waits", "it cannot leave while the machine runs", name, "novacron vm restart")
            )
    return tuple(found)
