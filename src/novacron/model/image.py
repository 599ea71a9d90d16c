"""An image: named files a machine starts from, kept by content digest; its tags, its sizing hints, work under way."""

from __future__ import annotations

import datetime
import re
from enum import StrEnum

import msgspec

from novacron.model.vm import Problem

TAG_PATTERN = r"^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?:[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$"
MAX_TAGS = 16

_TAG = re.compile(TAG_PATTERN.removesuffix("$") + r"\Z")


class FileRole(StrEnum):
    """What a file of an image is for. A bootable image has a disk, a kernel, a firmware file or an ISO."""

    DISK = "disk"
    KERNEL = "kernel"
    INITRD = "initrd"
    FIRMWARE = "firmware"
    CDROM = "cdrom"


class DiskFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class ImageState(StrEnum):
    """pending: files are still expected. ready: complete and inspected."""

    PENDING = "pending"
    READY = "ready"


class SourceFormat(StrEnum):
    """What a disk may have been before it was converted to qcow2."""

    VMDK = "vmdk"
    OVA = "ova"


class ImageFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stored file: sha256 of its bytes, size; for a disk also its format and virtual size.

    source_format, source_digest: what was sent, when it was converted; its digest then is that of what was sent.
    """

    role: FileRole
    digest: str
    size_bytes: int
    format: DiskFormat | None = None
    virtual_size_bytes: int = 0
    source_format: SourceFormat | None = None
    source_digest: str = ""


class FilePhase(StrEnum):
    """What is being done for a file that is not there yet."""

    FETCHING = "fetching"
    CONVERTING = "converting"
    FAILED = "failed"


class FileTask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Work on one file of a pending image; at most one a role. It goes when the file is there.

    upload_id: where its bytes gather; url: where they come from, empty: they were uploaded. sha256: what they must
    have, empty: anything. done_bytes of size_bytes (0: not known yet). problem: why it failed.
    """

    role: FileRole
    phase: FilePhase
    upload_id: str
    requested_at: datetime.datetime
    url: str = ""
    sha256: str = ""
    done_bytes: int = 0
    size_bytes: int = 0
    problem: Problem | None = None


class Hints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an appliance says it wants; 0: it does not say. Only shown, never applied."""

    vcpus: int = 0
    memory_mib: int = 0


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one image. `cmdline` is the kernel's, for images with a kernel file.

    tags: `name:tag`, each on one image at a time; `protected`: it is not deleted; `hints`: from an OVA.
    """

    id: str
    name: str
    state: ImageState
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    cmdline: str = ""
    files: tuple[ImageFile, ...] = ()
    tags: tuple[str, ...] = ()
    protected: bool = False
    tasks: tuple[FileTask, ...] = ()
    hints: Hints = Hints()


def file_of(image: Image, role: FileRole) -> ImageFile | None:
    """The image's file with that role, or None."""
    return next((file for file in image.files if file.role is role), None)


def is_bootable(image: Image) -> bool:
    """Whether a machine can start from its files."""
    return any(file.role in (FileRole.DISK, FileRole.KERNEL, FileRole.FIRMWARE, FileRole.CDROM) for file in image.files)


def task_of(image: Image, role: FileRole) -> FileTask | None:
    """The work on the file of that role, or None."""
    return next((task for task in image.tasks if task.role is role), None)


def is_tag(text: str) -> bool:
    """Whether `text` has the form of a tag, `name:tag`; names and ids never have it."""
    return _TAG.match(text) is not None
