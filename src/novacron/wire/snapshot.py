"""Verbs about snapshots. Each names all volumes of the machine; a snapshot holds all or none."""

from __future__ import annotations

import msgspec

from novacron.model.machine import MachineSpec
from novacron.model.snapshot import Consistency
from novacron.wire.verb import MachineVerb


class SnapshotTake(MachineVerb, frozen=True, kw_only=True):
    """Of a machine that runs or does not. memory: with what it has in memory (it must run). quiesce: have the guest
    agent freeze its file systems; refused when there is none. Asked again: the same snapshot. → SnapshotTaken
    """

    spec: MachineSpec
    snapshot_id: str
    memory: bool = False
    quiesce: bool = False


class SnapshotTaken(msgspec.Struct, frozen=True, kw_only=True):
    consistency: Consistency
    memory_bytes: int = 0
    stood_still_ms: float = 0.0


class SnapshotRevert(MachineVerb, frozen=True, kw_only=True):
    """Make the disks as they were. The machine is ended first; with memory it runs on from that moment, else it is
    left stopped. `spec`: as it was when the snapshot was taken. task_id: of this asking; asked again with the same
    one it is done once, so that what the machine did since is not thrown away. epoch: as of machine.start.
    → MachineReport
    """

    spec: MachineSpec
    snapshot_id: str
    task_id: str
    memory: bool = False
    epoch: int = 0


class SnapshotDelete(MachineVerb, frozen=True, kw_only=True):
    """While it runs or does not; the other snapshots and the disks keep their content. Absent: fine. → None"""

    spec: MachineSpec
    snapshot_id: str


class SnapshotExport(MachineVerb, frozen=True, kw_only=True):
    """Write one volume as it was, as a qcow2 file of its own, among the default pool's images. → SnapshotExported"""

    spec: MachineSpec
    snapshot_id: str
    volume_id: str


class SnapshotExported(msgspec.Struct, frozen=True, kw_only=True):
    """digest: sha256 of the file, which lies among the pool's images from now on."""

    digest: str
    size_bytes: int
    virtual_size_bytes: int


VERBS: dict[str, type[msgspec.Struct]] = {
    "snapshot.take": SnapshotTake,
    "snapshot.revert": SnapshotRevert,
    "snapshot.delete": SnapshotDelete,
    "snapshot.export": SnapshotExport,
}
