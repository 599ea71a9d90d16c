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
