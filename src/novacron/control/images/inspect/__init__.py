"""Looks into an uploaded file before any other program does, and refuses what is not what it should be.

Pure and bounded: it is given a way to read, reads at most a few pieces of known places, follows no pointer out of the
file and returns data or raises ImageRefused with exactly one Reason. It answers for headers only: that a file points
nowhere else, needs no unknown feature and promises no absurd size.
"""

from __future__ import annotations

import msgspec

from novacron.control.images.inspect import boot, qcow2, raw
from novacron.control.images.inspect.source import Read, Source
from novacron.model.image import DiskFormat, FileRole

__all__ = ["MAX_VIRTUAL_BYTES", "Inspected", "Read", "inspect", "inspect_disk"]

MAX_VIRTUAL_BYTES = 64 << 40


class Inspected(msgspec.Struct, frozen=True):
    """What a file turned out to be. format and virtual size: of disks only."""

    format: DiskFormat | None = None
    virtual_size_bytes: int = 0


def inspect(role: FileRole, read: Read, size_bytes: int) -> Inspected:
    """A file of `size_bytes`, uploaded for `role`. :raise ImageRefused: with one Reason."""
    source = Source(role, read, size_bytes)
    if role is FileRole.DISK:
        return Inspected(*_disk(source, MAX_VIRTUAL_BYTES))
    boot.CHECKS[role](source)
    return Inspected()


def inspect_disk(read: Read, size_bytes: int, *, max_virtual_bytes: int = MAX_VIRTUAL_BYTES) -> tuple[DiskFormat, int]:
    """A disk's format and virtual size in bytes. :raise ImageRefused: with one Reason."""
    return _disk(Source(FileRole.DISK, read, size_bytes), max_virtual_bytes)


def _disk(source: Source, max_virtual_bytes: int) -> tuple[DiskFormat, int]:
    if qcow2.is_qcow(source):
        return DiskFormat.QCOW2, qcow2.inspect(source, max_virtual_bytes)
    return DiskFormat.RAW, raw.inspect(source, max_virtual_bytes)
