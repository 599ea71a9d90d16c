"""What a hypervisor does with snapshots of a machine that lives, on the volumes of a simulated pool."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Beside, FileAt, Launch, Taken
from novacron.errors import Reason, Unsupported
from novacron.model.snapshot import Consistency
from novacron.testing.fake_world import FakeMachine
from novacron.testing.sim_pool import SimVolume

STOOD_STILL_MS = 5.0


def read(path: Path) -> SimVolume:
    """The disk in a file. One that is not there is blank."""
    data = path.read_bytes() if path.exists() else b""
    return msgspec.json.decode(data, type=SimVolume) if data else SimVolume()


def write(path: Path, content: str) -> None:
    """What its guest writes."""
    _save(path, read(path), content=content)


def _take(path: Path, snapshot_id: str, memory: str | None) -> None:
    disk = read(path)
    if snapshot_id not in disk.snapshots:
        kept = disk.memory if memory is None else {**disk.memory, snapshot_id: memory}
        _save(path, disk, snapshots={**disk.snapshots, snapshot_id: disk.content}, memory=kept)


def _save(path: Path, disk: SimVolume, **changed: object) -> None:
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(disk, **changed)))


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
        _take(path, snapshot_id, machine.memory if memory and number == 0 else None)
    if memory:
        size = len(machine.memory) + 1
        return Taken(consistency=Consistency.MEMORY, memory_bytes=size, stood_still_ms=STOOD_STILL_MS)
    return Taken(consistency=Consistency.QUIESCED if quiesce else Consistency.CRASH, stood_still_ms=STOOD_STILL_MS)


def deleted(machine: FakeMachine, snapshot_id: str) -> None:
    """As Driver.delete_snapshot."""
    for path in _paths(machine.launch):
        disk = read(path)
        if snapshot_id in disk.snapshots:
            _save(
                path, disk, snapshots=_without(disk.snapshots, snapshot_id), memory=_without(disk.memory, snapshot_id)
            )


def memory_of(launch: Launch, snapshot_id: str) -> str:
    """The memory in a snapshot of its disks. :raise Unsupported: there is none, or not of all of them."""
    disks = [read(path) for path in _paths(launch)]
    kept = [disk.memory[snapshot_id] for disk in disks if snapshot_id in disk.memory]
    if not kept or any(snapshot_id not in disk.snapshots for disk in disks):
        raise Unsupported(f"snapshot {snapshot_id} holds no memory of these disks")
    return kept[0]


def reverted(launch: Launch, snapshot_id: str) -> None:
    """All its disks go back."""
    for path in _paths(launch):
        disk = read(path)
        _save(path, disk, content=disk.snapshots[snapshot_id])


def _without(kept: dict[str, str], snapshot_id: str) -> dict[str, str]:
    return {key: value for key, value in kept.items() if key != snapshot_id}


def _paths(launch: Launch) -> list[Path]:
    return [disk.source.path for disk in launch.disks if isinstance(disk.source, FileAt) and disk.format == "qcow2"]
