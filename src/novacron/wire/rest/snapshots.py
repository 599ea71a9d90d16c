"""Snapshots and their schedules on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field

from novacron.model.snapshot import Consistency, SnapshotState
from novacron.wire.rest.common import Description, Labels, Name, Ref, Strict, VmProblem, example

Selector = Annotated[Labels, Field(min_length=1)]
EveryS = Annotated[int, Field(ge=60, le=366 * 86400, description="Seconds between two snapshots.")]
Keep = Annotated[int, Field(ge=1, le=100, description="How many of each VM are kept; older ones are deleted.")]


class SnapshotCreate(Strict):
    """A snapshot of a VM's disks, all of one moment. Without a name it gets one from the time.

    memory: with what the VM has in memory, so that it can run on from there; it must run, and stands still meanwhile.
    quiesce: its guest agent freezes its file systems first; refused when it has none.
    """

    name: Name | None = None
    description: Description = ""
    labels: Labels = {}
    memory: bool = False
    quiesce: bool = False

    model_config = Strict.model_config | example({"name": "before-upgrade", "memory": True})


class SnapshotUpdate(Strict):
    """What is to change; what is left out stays."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None

    model_config = Strict.model_config | example({"labels": {"keep": "yes"}})


class RevertRequest(Strict):
    """start: start the VM from the snapshot's disks. One taken with memory runs on by itself."""

    start: bool = False

    model_config = Strict.model_config | example({"start": True})


class ExportRequest(Strict):
    """A new image whose disk is a volume as it was. volume_id: which one, when the snapshot has several."""

    image: Name
    volume_id: Ref | None = None
    description: Description = ""
    labels: Labels = {}

    model_config = Strict.model_config | example({"image": "golden-1"})


class Snapshot(Strict):
    """consistency: as wished, until it is ready. stood_still_ms: how long the guest waited for it."""

    id: str
    name: str
    vm_id: str
    vm_name: str
    parent_id: str | None
    current: bool
    state: SnapshotState
    consistency: Consistency
    description: str
    labels: dict[str, str]
    volumes: list[str]
    vcpus: int
    memory_mib: int
    size_bytes: int
    stood_still_ms: float
    schedule_id: str | None
    image_id: str | None
    problem: VmProblem | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000021",
            "name": "before-upgrade",
            "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
            "vm_name": "web-1",
            "parent_id": None,
            "current": True,
            "state": "ready",
            "consistency": "memory",
            "description": "",
            "labels": {},
            "volumes": ["0190b36e-7c1a-7000-8000-000000000003"],
            "vcpus": 2,
            "memory_mib": 2048,
            "size_bytes": 181403648,
            "stood_still_ms": 212.5,
            "schedule_id": None,
            "image_id": None,
            "problem": None,
            "created_at": "2026-01-02T03:10:00Z",
            "updated_at": "2026-01-02T03:10:01Z",
            "revision": 71,
        }
    )


class ScheduleCreate(Strict):
    """Snapshots taken by themselves, of the VMs that bear all labels of `selector` (an empty value: any value).

    The first one is taken `every_s` after the schedule was made. Only its own snapshots are ever deleted by it.
    memory counts for VMs that run; quiesce for those with a guest agent, others are taken as they are, with a note.
    """

    name: Name
    selector: Selector
    every_s: EveryS
    keep: Keep = 7
    memory: bool = False
    quiesce: bool = True
    paused: bool = False
    labels: Labels = {}

    model_config = Strict.model_config | example(
        {"name": "hourly", "selector": {"tier": "db"}, "every_s": 3600, "keep": 24}
    )


class ScheduleUpdate(Strict):
    """What is to change; what is left out stays."""

    name: Name | None = None
    selector: Selector | None = None
    every_s: EveryS | None = None
    keep: Keep | None = None
    memory: bool | None = None
    quiesce: bool | None = None
    paused: bool | None = None
    labels: Labels | None = None

    model_config = Strict.model_config | example({"paused": True})


class Schedule(Strict):
    """next_at: when it takes the next ones; null while it is paused."""

    id: str
    name: str
    selector: dict[str, str]
    every_s: int
    keep: int
    memory: bool
    quiesce: bool
    paused: bool
    labels: dict[str, str]
    last_at: datetime.datetime | None
    next_at: datetime.datetime | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000022",
            "name": "hourly",
            "selector": {"tier": "db"},
            "every_s": 3600,
            "keep": 24,
            "memory": False,
            "quiesce": True,
            "paused": False,
            "labels": {},
            "last_at": "2026-01-02T03:00:00Z",
            "next_at": "2026-01-02T04:00:00Z",
            "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-02T03:00:00Z",
            "revision": 72,
        }
    )
