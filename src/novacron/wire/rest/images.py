"""Images on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import StringConstraints

from novacron.model.image import DiskFormat, FileRole, ImageState
from novacron.wire.rest.common import Description, Labels, Name, Strict, example


class ImageCreate(Strict):
    """An image to be filled: PUT its files next. It is ready once it can boot and `POST …/seal` was called."""

    name: Name
    description: Description = ""
    labels: Labels = {}
    cmdline: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[\x20-\x7e]*$")] = ""

    model_config = Strict.model_config | example({"name": "debian-12", "description": "Debian 12 cloud image"})


class ImageUpdate(Strict):
    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None


class ImageFileOut(Strict):
    role: FileRole
    digest: str
    size_bytes: int
    format: DiskFormat | None = None
    virtual_size_bytes: int = 0


class Image(Strict):
    id: str
    name: str
    description: str
    labels: dict[str, str]
    state: ImageState
    cmdline: str
    files: list[ImageFileOut]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int

    model_config = Strict.model_config | example(
        {
            "id": "0190b36e-7c1a-7000-8000-000000000003",
            "name": "debian-12",
            "description": "Debian 12 cloud image",
            "labels": {},
            "state": "ready",
            "cmdline": "",
            "files": [
                {
                    "role": "disk",
                    "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "size_bytes": 345000000,
                    "format": "qcow2",
                    "virtual_size_bytes": 2147483648,
                }
            ],
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:01:00Z",
            "revision": 5,
        }
    )
