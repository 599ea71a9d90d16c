"""The fake driver's disks that move: copied to the target's own, kept alike as the guest writes, and let go of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, FileAt
from novacron.agent.drivers.handoff import DiskReception
from novacron.errors import MigrationFailed, Reason
from novacron.model.machine import ENDED, MachineSpec
from novacron.model.migration import COPY_LOST
from novacron.testing import fake_snapshots
from novacron.testing.fake_world import FakeHost, FakeMachine, FakeWorld


def guest_writes(world: FakeWorld, vm_id: str, before: str, content: str) -> bool:
    """The guest writes to all its disks, wherever it runs; whether it did.

    before: what it wrote last. One that finds anything else there has lost a write: a violation, recorded for ever.
    """
    names = world.running(vm_id)
    if len(names) != 1:
        return False
    machine = world.hosts[names[0]].machines[vm_id]
    for disk in machine.launch.disks:
        found = fake_snapshots.read(_path(disk)).content
        if found != before:
            world.violations.append(f"{vm_id} wrote {before} and finds {found} on {names[0]}")
        _write(world, machine, disk, content)
    return True


def _write(world: FakeWorld, machine: FakeMachine, disk: DiskFile, content: str) -> None:
    fake_snapshots.write(_path(disk), content)
    other = machine.mirrors.get(disk.volume_id)
    if other is None:
        return
    if not machine.new_files and (machine.mirrored_to is None or world.filled_at(machine.mirrored_to) is None):
        machine.mirrors = {}  # the target is gone, and with it the copy
    else:
        fake_snapshots.write(other, content)


async def copied(
    world: FakeWorld,
    host: FakeHost,
    machine: FakeMachine,
    migration_id: str,
    to: DiskReception,
    volume_ids: tuple[str, ...],
) -> int:
    """As Driver.copy_disks. Of a copy that breaks off half has come, which is good for nothing else."""
    if to.resumed and machine.trail not in (migration_id, to.resumes):
        raise MigrationFailed("it is not known what is lacking there", [Reason(COPY_LOST, "it was started anew")])
    machine.trail = migration_id
    if set(machine.mirrors) != set(volume_ids) or machine.mirrored_to != to:
        machine.mirrored_to, machine.mirrors = to, {}
        for path in _there(world, to).values():
            fake_snapshots.write(path, "half of it")
        await world.clock.sleep(world.transfer_s)
        found = world.filled_at(to)
        if found is None or world.is_cut(found[0].name, host.name) or machine.report.status in ENDED:
            raise MigrationFailed("its disks could not be copied; the source runs as before")
        there = _there(world, to)
        for disk in machine.launch.disks:
            if disk.volume_id in volume_ids:
                machine.mirrors[disk.volume_id] = there[disk.volume_id]
                fake_snapshots.write(there[disk.volume_id], fake_snapshots.read(_path(disk)).content)
    disks = [disk for disk in machine.launch.spec.disks if disk.volume_id in volume_ids]
    return sum(disk.size_bytes // (2 if disk.volume_id in to.resumed else 1) for disk in disks)


def _there(world: FakeWorld, to: DiskReception) -> dict[str, Path]:
    """By volume, the files that are filled there."""
    found = world.filled_at(to)
    disks = found[1].launch.disks if found else ()
    return {disk.volume_id: _path(disk) for disk in disks if found and disk.volume_id in found[1].receives}


async def copied_out(
    world: FakeWorld, host: FakeHost, machine: FakeMachine, to: DiskReception, exports: Mapping[str, str]
) -> int:
    """As Driver.copy_out."""
    await world.clock.sleep(world.transfer_s)
    found = world.filled_at(to)
    if found is None or world.is_cut(found[0].name, host.name) or machine.report.status in ENDED:
        raise MigrationFailed("its disks could not be copied; the machine runs on")
    there = {disk.volume_id: _path(disk) for disk in found[1].launch.disks if disk.volume_id in found[1].receives}
    here = {disk.volume_id: _path(disk) for disk in machine.launch.disks}
    for volume_id, name in exports.items():
        fake_snapshots.write(there[name], fake_snapshots.read(here[volume_id]).content)
    return sum(disk.size_bytes for disk in machine.launch.spec.disks if disk.volume_id in exports)


def finished(world: FakeWorld, machine: FakeMachine, migration_id: str, volume_ids: tuple[str, ...]) -> None:
    """The guest stands still: the copies are whole. :raise MigrationFailed: they may not be."""
    if not volume_ids or machine.copied == migration_id:
        return
    filled = machine.mirrored_to is not None and world.filled_at(machine.mirrored_to) is not None
    there = filled or bool(machine.new_files)
    if set(machine.mirrors) != set(volume_ids) or not there:
        raise MigrationFailed("its disks are not alike on both sides")
    machine.copied, machine.mirrors = migration_id, {}


async def copied_here(world: FakeWorld, machine: FakeMachine, files: tuple[DiskFile, ...]) -> int:
    """As Driver.copy_here."""
    wanted = {file.volume_id: file for file in files}
    if machine.new_files != wanted:
        machine.new_files, machine.mirrors = {}, {}
        await world.clock.sleep(world.transfer_s)
        if machine.report.status in ENDED:
            raise MigrationFailed("its disks could not be copied")
        machine.new_files = wanted
        for disk in machine.launch.disks:
            if disk.volume_id in wanted:
                machine.mirrors[disk.volume_id] = _path(wanted[disk.volume_id])
                fake_snapshots.write(machine.mirrors[disk.volume_id], fake_snapshots.read(_path(disk)).content)
    return sum(disk.size_bytes for disk in machine.launch.spec.disks if disk.volume_id in wanted)


def pivoted(machine: FakeMachine, migration_id: str, wanted: MachineSpec) -> None:
    """As Driver.pivot."""
    if machine.copied == migration_id:
        return
    if machine.report.status in ENDED or set(machine.mirrors) != set(machine.new_files) or not machine.mirrors:
        raise MigrationFailed("its disks are not alike")
    new = machine.new_files
    disks = tuple(new.get(disk.volume_id, disk) for disk in machine.launch.disks)
    spec = msgspec.structs.replace(machine.launch.spec, disks=wanted.disks, pools=wanted.pools)
    machine.launch = msgspec.structs.replace(machine.launch, disks=disks, spec=spec)
    machine.copied, machine.mirrors, machine.new_files = migration_id, {}, {}


def _path(disk: DiskFile) -> Path:
    if not isinstance(disk.source, FileAt):
        raise TypeError(f"a simulated disk is a file, not {disk.source}")
    return disk.source.path
