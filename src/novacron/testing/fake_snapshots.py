"""Disks of simulated machines: small files with content and snapshots, which pools and fake hypervisors share."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Beside, FileAt, Launch, Taken
from novacron.errors import NotFound, Reason, Unsupported
from novacron.model.snapshot import Consistency
from novacron.testing.fake_world import FakeMachine

STOOD_STILL_MS = 5.0


class Kept(msgspec.Struct, frozen=True):
    """The content at one moment, and what the machine had in memory then (None: it was not kept)."""

    content: str
    memory: str | None = None


class FakeDisk(msgspec.Struct, kw_only=True):
    """What a volume's file holds. An empty or missing file is an empty disk."""

    content: str = ""
    snapshots: dict[str, Kept] = {}


def read(path: Path) -> FakeDisk:
    """The disk in a file."""
    data = path.read_bytes() if path.exists() else b""
    return msgspec.json.decode(data, type=FakeDisk) if data else FakeDisk()


def write(path: Path, content: str) -> None:
    """What its guest writes."""
    disk = read(path)
    disk.content = content
    _save(path, disk)


def take(path: Path, snapshot_id: str, memory: str | None = None) -> None:
    """Of the content now. There already: fine."""
    disk = read(path)
    if snapshot_id not in disk.snapshots:
        disk.snapshots[snapshot_id] = Kept(disk.content, memory)
        _save(path, disk)


def revert(path: Path, snapshot_id: str) -> Kept:
    """The content is the snapshot's. :raise NotFound"""
    disk = read(path)
    kept = disk.snapshots.get(snapshot_id)
    if kept is None:
        raise NotFound(f"{path.name} has no snapshot {snapshot_id}")
    disk.content = kept.content
    _save(path, disk)
    return kept


def delete(path: Path, snapshot_id: str) -> None:
    """Absent: fine."""
    disk = read(path)
    if disk.snapshots.pop(snapshot_id, None) is not None:
        _save(path, disk)


def _save(path: Path, disk: FakeDisk) -> None:
    path.write_bytes(msgspec.json.encode(disk))


# -- what a hypervisor does with the disks of a machine that lives -------------------------------------------


async def taken(machine: FakeMachine, snapshot_id: str, *, memory: bool, quiesce: bool, beside: Beside | None) -> Taken:
    """As Driver.take_snapshot."""
    paths = _paths(machine.launch)
    if memory and not paths:
        reason = Reason("snapshot.no_place_for_memory", "it has no disk", remedy="take one without memory")
        raise Unsupported("a snapshot cannot hold its memory: it has no disk", [reason])
    if quiesce and not machine.launch.spec.guest_agent:
        reason = Reason("guest_agent.missing", "it has no guest agent", remedy="take the snapshot without quiesce")
        raise Unsupported("its file systems cannot be frozen: it has no guest agent", [reason])
    if beside is not None:
        await beside()
    for number, path in enumerate(paths):
        take(path, snapshot_id, machine.memory if memory and number == 0 else None)
    if memory:
        return Taken(
            consistency=Consistency.MEMORY, memory_bytes=len(machine.memory) + 1, stood_still_ms=STOOD_STILL_MS
        )
    return Taken(consistency=Consistency.QUIESCED if quiesce else Consistency.CRASH, stood_still_ms=STOOD_STILL_MS)


def deleted(machine: FakeMachine, snapshot_id: str) -> None:
    """As Driver.delete_snapshot."""
    for path in _paths(machine.launch):
        delete(path, snapshot_id)


def memory_of(launch: Launch, snapshot_id: str) -> str:
    """The memory in a snapshot of its disks. :raise Unsupported: there is none."""
    for path in _paths(launch):
        kept = read(path).snapshots.get(snapshot_id)
        if kept is not None and kept.memory is not None:
            return kept.memory
    raise Unsupported(f"snapshot {snapshot_id} holds no memory")


def reverted(launch: Launch, snapshot_id: str) -> None:
    """All its disks go back."""
    for path in _paths(launch):
        revert(path, snapshot_id)


def _paths(launch: Launch) -> list[Path]:
    return [disk.source.path for disk in launch.disks if isinstance(disk.source, FileAt) and disk.format == "qcow2"]
