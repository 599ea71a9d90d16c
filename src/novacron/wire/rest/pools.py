"""Storage pools on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from novacron.model.pool import PoolDriver
from novacron.wire.rest.common import Description, Labels, Name, Strict, example

OptionKey = Annotated[str, StringConstraints(max_length=32, pattern=r"^[a-z][a-z_]*$")]
OptionValue = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$")]
MAX_BYTES = 1 << 60


def _bound_keys(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False


Options = Annotated[
    dict[OptionKey, OptionValue],
    Field(
        max_length=16,
        json_schema_extra=_bound_keys,
        description="What the driver must be told, by name. Secrets are paths of files on the nodes.",
    ),
]
Bytes = Annotated[int, Field(ge=0, le=MAX_BYTES)]


class PoolCreate(Strict):
    """A place where volumes lie. shared: nodes that reach it see the same volumes; left out: as the driver usually is.

    image_cache_bytes: how much of image files a node may keep in it that no volume needs; 0: without limit.
    quota_bytes: how large its volumes may be together; 0: without limit.
    """

    name: Name
    driver: PoolDriver
    options: Options = {}
    shared: bool | None = None
    description: Description = ""
    labels: Labels = {}
    image_cache_bytes: Bytes = 0
    quota_bytes: Bytes = 0

    model_config = Strict.model_config | example(
        {"name": "fast", "driver": "directory", "options": {"path": "/srv/fast"}, "labels": {"disk": "nvme"}}
    )


class PoolUpdate(Strict):
    """What may be changed; a field left out stays as it is. options: all of them, and only while nothing lies in it.

    quota_bytes: may be less than is promised; then nothing is made or grows in it until it is more again.
    """

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    options: Options | None = None
    image_cache_bytes: Bytes | None = None
    quota_bytes: Bytes | None = None

    model_config = Strict.model_config | example({"description": "NVMe of the first rack"})


class ReachOut(Strict):
    """A pool as one node found it. reason: why it is not available. Sizes 0: not known."""

    node: str
    node_id: str
    available: bool
    reason: str = ""
    free_bytes: int = 0
    size_bytes: int = 0
    checked_at: datetime.datetime


class Pool(Strict):
    """reach: one entry a node that was asked. free_bytes, size_bytes: of all nodes together when it is not shared.

    promised_bytes: what its volumes would take if their guests filled them; quota_bytes: the most that may be, 0: any.
    """

    id: str
    name: str
    description: str
    labels: dict[str, str]
    driver: PoolDriver
    options: dict[str, str]
    shared: bool
    is_default: bool
    image_cache_bytes: int
    quota_bytes: int
    reach: list[ReachOut]
    free_bytes: int
    size_bytes: int
    volume_count: int
    promised_bytes: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000006",
            "name": "fast",
            "description": "",
            "labels": {"disk": "nvme"},
            "driver": "directory",
            "options": {"path": "/srv/fast"},
            "shared": False,
            "is_default": False,
            "image_cache_bytes": 0,
            "quota_bytes": 107374182400,
            "reach": [
                {
                    "node": "node-1",
                    "node_id": "0190b36e-7c1a-7000-8000-000000000002",
                    "available": True,
                    "free_bytes": 500000000000,
                    "size_bytes": 1000000000000,
                    "checked_at": "2026-01-02T03:04:05Z",
                }
            ],
            "free_bytes": 500000000000,
            "size_bytes": 1000000000000,
            "volume_count": 3,
            "promised_bytes": 32212254720,
            "created_at": "2026-01-02T03:04:05Z",
            "updated_at": "2026-01-02T03:04:05Z",
            "revision": 12,
        }
    )
