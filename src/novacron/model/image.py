"""An image: named files a machine starts from, kept by content digest."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec


class FileRole(StrEnum):
    """What a file of an image is for. A bootable image has a disk, a kernel or a firmware file."""

    DISK = "disk"
    KERNEL = "kernel"
    INITRD = "initrd"
    FIRMWARE = "firmware"


class DiskFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class ImageState(StrEnum):
    """pending: files are still expected. ready: complete and inspected."""

    PENDING = "pending"
    READY = "ready"


class ImageFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stored file: sha256 of its bytes, size; for a disk also its format and virtual size."""

    role: FileRole
    digest: str
    size_bytes: int
    format: DiskFormat | None = None
    virtual_size_bytes: int = 0


class Image(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one image. `cmdline` is the kernel's, for images with a kernel file."""

    id: str
    name: str
    state: ImageState
    created_at: datetime.datetime
    updated_at: datetime.datetime
    labels: dict[str, str] = {}
    description: str = ""
    cmdline: str = ""
    files: tuple[ImageFile, ...] = ()


def file_of(image: Image, role: FileRole) -> ImageFile | None:
    """The image's file with that role, or None."""
    return next((file for file in image.files if file.role is role), None)


def is_bootable(image: Image) -> bool:
    """Whether a machine can start from its files."""
    return any(file.role in (FileRole.DISK, FileRole.KERNEL, FileRole.FIRMWARE) for file in image.files)
