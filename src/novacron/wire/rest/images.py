"""Images on the wire."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from novacron.model.identity import NAME_PATTERN
from novacron.model.image import MAX_TAGS, TAG_PATTERN, DiskFormat, FilePhase, FileRole, ImageState, SourceFormat
from novacron.wire.rest.common import Description, Labels, Name, Strict, VmProblem, example

_PART = NAME_PATTERN[1:-1]
ImageRef = Annotated[str, StringConstraints(min_length=1, max_length=127, pattern=f"^{_PART}(?::{_PART})?$")]
"""An id, a name, or a tag such as `debian:latest`."""

Tag = Annotated[str, StringConstraints(max_length=127, pattern=TAG_PATTERN)]
Sha256Text = Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")]
Sha256OrLater = Annotated[str, StringConstraints(pattern="^([0-9a-fA-F]{64})?$")]


class ImageCreate(Strict):
    """An image to be filled: PUT its files next. It is ready once it can boot and `POST …/seal` was called."""

    name: Name
    description: Description = ""
    labels: Labels = {}
    cmdline: Annotated[str, StringConstraints(max_length=1024, pattern=r"^[\x20-\x7e]*$")] = ""

    model_config = Strict.model_config | example({"name": "debian-12", "description": "Debian 12 cloud image"})


class ImageUpdate(Strict):
    """tags: all of them; one that another image has is taken from it. protected: it cannot be deleted."""

    name: Name | None = None
    description: Description | None = None
    labels: Labels | None = None
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)] | None = None
    protected: bool | None = None


class UploadCreate(Strict):
    """A file that will be sent in pieces. sha256: what the whole file must have; empty: it is told at the end."""

    size_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    sha256: Sha256OrLater = ""

    model_config = Strict.model_config | example(
        {"size_bytes": 345000000, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
    )


class UploadFinish(Strict):
    """The end of a file that was sent in pieces. sha256: what the whole file must have, if not told before."""

    sha256: Sha256OrLater = ""

    model_config = Strict.model_config | example(
        {"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}
    )


class Upload(Strict):
    """A file on its way. offset_bytes: how much has come; the next piece begins there."""

    id: str
    image_id: str
    role: FileRole
    size_bytes: int
    offset_bytes: int
    sha256: str
    created_at: datetime.datetime


class ImageImport(Strict):
    """A file to be fetched over https. sha256: what it must have; without it anything that arrives is taken."""

    url: Annotated[str, StringConstraints(min_length=9, max_length=2048, pattern=r"^[\x21-\x7e]+$")]
    sha256: Sha256Text | None = None

    model_config = Strict.model_config | example({"url": "https://images.example/debian-12.qcow2"})


class ImageFileOut(Strict):
    role: FileRole
    digest: str
    size_bytes: int
    format: DiskFormat | None = None
    virtual_size_bytes: int = 0
    source_format: SourceFormat | None = None
    source_digest: str = ""


class FileTaskOut(Strict):
    """Work on a file that is not there yet. size_bytes 0: not known yet. problem: why it failed."""

    role: FileRole
    phase: FilePhase
    url: str = ""
    done_bytes: int = 0
    size_bytes: int = 0
    requested_at: datetime.datetime
    problem: VmProblem | None = None


class HintsOut(Strict):
    """What an appliance says it wants; 0: it does not say."""

    vcpus: int = 0
    memory_mib: int = 0


class Image(Strict):
    id: str
    name: str
    description: str
    labels: dict[str, str]
    state: ImageState
    cmdline: str
    files: list[ImageFileOut]
    tags: list[str] = []
    protected: bool = False
    tasks: list[FileTaskOut] = []
    hints: HintsOut = HintsOut()
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
            "tags": ["debian:latest"],
            "protected": False,
            "tasks": [],
            "hints": {"vcpus": 0, "memory_mib": 0},
            "created_at": "2026-01-02T03:00:00Z",
            "updated_at": "2026-01-02T03:01:00Z",
            "revision": 5,
        }
    )
