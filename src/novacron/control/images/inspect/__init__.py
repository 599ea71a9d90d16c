"""Looks into an uploaded file before any other program does, and refuses what is not what it should be.

Bounded, and pure but for `inspect_file`: it is given a way to read, reads at most a few pieces of known places, follows
no pointer out of the file and returns data or raises ImageRefused with exactly one Reason. It answers for headers only:
that a file points nowhere else, needs no unknown feature and promises no absurd size.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from novacron.control.images.inspect import boot, ova, qcow2, raw, vmdk
from novacron.control.images.inspect.source import Read, Source
from novacron.model.image import DiskFormat, FileRole, Hints, SourceFormat

__all__ = ["MAX_VIRTUAL_BYTES", "Inspected", "Part", "Read", "inspect", "inspect_disk", "inspect_file"]

MAX_VIRTUAL_BYTES = 64 << 40


class Part(msgspec.Struct, frozen=True):
    """A disk to be converted: what the file is, and where in it the disk lies."""

    source_format: SourceFormat
    offset: int
    length: int


class Inspected(msgspec.Struct, frozen=True):
    """What a file turned out to be. format and virtual size: of disks only.

    part: it is to be converted first (format is None then). hints: what an appliance wants.
    """

    format: DiskFormat | None = None
    virtual_size_bytes: int = 0
    part: Part | None = None
    hints: Hints = Hints()


def inspect(role: FileRole, read: Read, size_bytes: int) -> Inspected:
    """A file of `size_bytes`, uploaded for `role`. :raise ImageRefused: with one Reason."""
    source = Source(role, read, size_bytes)
    if role is FileRole.DISK:
        return _foreign(source) or Inspected(*_disk(source, MAX_VIRTUAL_BYTES))
    boot.CHECKS[role](source)
    return Inspected()


def inspect_file(role: FileRole, path: Path) -> Inspected:
    """As `inspect`, of a file on disk; blocks."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        return inspect(role, lambda offset, length: os.pread(file.fileno(), length, offset), size)


def inspect_disk(read: Read, size_bytes: int, *, max_virtual_bytes: int = MAX_VIRTUAL_BYTES) -> tuple[DiskFormat, int]:
    """A disk's format and virtual size in bytes. :raise ImageRefused: with one Reason."""
    return _disk(Source(FileRole.DISK, read, size_bytes), max_virtual_bytes)


def _foreign(source: Source) -> Inspected | None:
    """A disk in a format that is converted, or None."""
    if vmdk.is_vmdk(source):
        size = vmdk.inspect(source, MAX_VIRTUAL_BYTES)
        return Inspected(None, size, Part(SourceFormat.VMDK, 0, source.size_bytes))
    if ova.is_tar(source):
        disk = ova.inspect(source, MAX_VIRTUAL_BYTES)
        part = Part(SourceFormat.OVA, disk.member.offset, disk.member.length)
        return Inspected(None, disk.virtual_size_bytes, part, Hints(vcpus=disk.vcpus, memory_mib=disk.memory_mib))
    return None


def _disk(source: Source, max_virtual_bytes: int) -> tuple[DiskFormat, int]:
    if qcow2.is_qcow(source):
        return DiskFormat.QCOW2, qcow2.inspect(source, max_virtual_bytes)
    return DiskFormat.RAW, raw.inspect(source, max_virtual_bytes)
