"""The fake driver's disks as blocks: each has one, and it is known whether it was written since its machine came."""

from __future__ import annotations

from pathlib import Path

from novacron.agent.drivers.base import FileAt
from novacron.errors import MonitorFailed, StateConflict
from novacron.model.blocks import BlockDigests
from novacron.model.machine import ENDED
from novacron.testing import fake_snapshots
from novacron.testing.fake_world import FakeMachine


def watch(machine: FakeMachine, volume_ids: tuple[str, ...]) -> None:
    """As Driver.take_over."""
    machine.watched = {volume_id: _content(machine, volume_id) for volume_id in volume_ids}


def digests(machine: FakeMachine, volume_id: str, numbers: tuple[int, ...], *, written: bool) -> BlockDigests:
    """As Driver.digest_blocks."""
    if machine.report.status in ENDED:
        raise StateConflict.of(f"machine {machine.report.vm_id}", machine.report.status, ("alive",), "read blocks of")
    if written and volume_id not in machine.watched:
        raise MonitorFailed("nobody noted what was written")
    now = _content(machine, volume_id)
    changed = numbers if written and machine.watched[volume_id] != now else ()
    return BlockDigests(blocks=numbers, digests=tuple(now if not one else "" for one in numbers), written=changed)


def _content(machine: FakeMachine, volume_id: str) -> str:
    disk = next(disk for disk in machine.launch.disks if disk.volume_id == volume_id)
    path = disk.source.path if isinstance(disk.source, FileAt) else Path()
    return fake_snapshots.read(path).content
