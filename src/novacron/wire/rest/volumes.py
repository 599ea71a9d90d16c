"""Volumes on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Self

from pydantic import Field, model_validator

from novacron.model.volume import VolumeState, VolumeTask
from novacron.wire.rest.common import Description, Labels, Name, Ref, Strict, VmProblem, example
from novacron.wire.rest.devices import QosIn, QosOut, SizeBytes
from novacron.wire.rest.images import ImageRef


class VolumeCreate(Strict):
    """A disk with a life of its own: empty, the content of an image's disk, or that of another volume.

    size_bytes: at least that of what it is made from, and taken from there when left out. pool: where it lies; left
    out: with the volume it is made from, or in the default pool. node: where it lies when nodes do not share the pool.
    volume: cloned as it is (its VM must be stopped), or as of a `snapshot` of it.
    """

    name: Name
    size_bytes: SizeBytes | None = None
    pool: Ref | None = None
    image: ImageRef | None = None
    volume: Ref | None = None
    snapshot: Ref | None = None
    node: Ref | None = None
    qos: QosIn = QosIn()
    description: Description = ""
    labels: Labels = {}

    model_config = Strict.model_config | example(
        {"name": "data-1", "size_bytes": 107374182400, "pool": "fast", "labels": {"app": "db"}}
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.image is not None and self.volume is not None:
            raise ValueError("a volume is made from an `image` or from a `volume`, not from both")
        if self.snapshot is not None and self.volume is None:
            raise ValueError("`snapshot` goes with `volume`: it says as of when")
        if self.size_bytes is None and self.image is None and self.volume is None:
            raise ValueError("an empty volume needs `size_bytes`")
        return self


class VolumeUpdate(Strict):
    """What may be changed; a field left out stays as it is. size_bytes: never smaller."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    size_bytes: SizeBytes | None = None
    qos: QosIn | None = None

    model_config = Strict.model_config | example({"size_bytes": 214748364800, "qos": {"iops": 2000}})


class Volume(Strict):
    """state: the word for people; task: what is being done with it; problem: what is wrong.

    vm: the VM it is attached to; with_vm: it was made with that VM and is deleted with it. used_bytes: what it took in
    its pool when its node last looked. node: where it lies, when nodes do not share the pool.
    """

    id: str
    name: str
    description: str
    labels: dict[str, str]
    state: VolumeState
    task: VolumeTask | None
    problem: VmProblem | None
    pool: str
    pool_id: str
    size_bytes: Annotated[int, Field(ge=0)]
    used_bytes: int
    qos: QosOut
    backing_digest: str | None
    source_volume_id: str | None
    source_snapshot_id: str | None
    vm: str | None
    vm_id: str | None
    with_vm: bool
    node: str | None
    node_id: str | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000004",
            "name": "data-1",
            "description": "",
            "labels": {"app": "db"},
            "state": "attached",
            "task": None,
            "problem": None,
            "pool": "fast",
            "pool_id": "0190b36e-7c1a-7000-8000-000000000006",
            "size_bytes": 107374182400,
            "used_bytes": 2147483648,
            "qos": {"iops": 500, "bytes_per_s": 0},
            "backing_digest": None,
            "source_volume_id": None,
            "source_snapshot_id": None,
            "vm": "web-1",
            "vm_id": "0190b36e-7c1a-7000-8000-000000000001",
            "with_vm": False,
            "node": "node-1",
            "node_id": "0190b36e-7c1a-7000-8000-000000000002",
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:09Z",
            "revision": 42,
        }
    )
