"""A snapshot: a VM's disks, and if wished its memory, as they were at one moment; and schedules that take them."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.model.vm import Problem, VmSpec


class SnapshotState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    REVERTING = "reverting"
    DELETING = "deleting"
    EXPORTING = "exporting"
    ERROR = "error"


class Consistency(StrEnum):
    """crash: as after a power cut. quiesced: the guest's file systems were frozen. memory: the running machine.
    stopped: it did not run.
    """

    CRASH = "crash"
    QUIESCED = "quiesced"
    MEMORY = "memory"
    STOPPED = "stopped"


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """A volume of a snapshot that is to become an image's disk."""

    image_id: str
    volume_id: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one snapshot of one VM. Names are unique within a VM.

    parent_id: the snapshot the VM stood on when it was taken, empty: none. spec: of the machine then; what a revert
    restores. volumes: ids, all of one moment. consistency: as wished, until it is ready. size_bytes: what the memory
    took; stood_still_ms: how long the guest waited for it. schedule_id: who took it. task_id: of the VM's task that
    does what the state says; start: (reverting) start the VM afterwards; export: (exporting) what becomes what.
    """

    id: str
    name: str
    vm_id: str
    state: SnapshotState
    consistency: Consistency
    spec: VmSpec
    volumes: tuple[str, ...]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    parent_id: str = ""
    description: str = ""
    labels: dict[str, str] = {}
    problem: Problem | None = None
    size_bytes: int = 0
    stood_still_ms: float = 0.0
    schedule_id: str = ""
    task_id: str = ""
    start: bool = False
    export: Export | None = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Snapshots taken by themselves: of the VMs that bear `selector`'s labels, every `every_s`, the newest `keep` kept.

    Only its own snapshots are ever deleted by it. last_at: when it last took one.
    """

    id: str
    name: str
    selector: dict[str, str]  # an empty value: the label is there, whatever it says
    every_s: int
    keep: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    memory: bool = False
    quiesce: bool = True
    paused: bool = False
    labels: dict[str, str] = {}
    last_at: datetime.datetime | None = None
