"""A raw disk: anything that is whole sectors, unless it is known to be something else that was meant to be converted.

A raw disk has no header, so other formats would pass as one. Every tool of ours is told the format, so none would
follow what they say; they are refused because a machine could not start from them, and to leave no polyglots about.
"""

from __future__ import annotations

import msgspec

from novacron.control.images.inspect.source import Source

SECTOR = 512
HEAD_BYTES = 1024


class Mark(msgspec.Struct, frozen=True):
    """Bytes that give a format away. offset: from the beginning, or (negative) from the end of the file."""

    magic: bytes
    code: str
    name: str
    offset: int = 0


MARKS = (
    Mark(b"KDMV", "image.vmdk", "a VMDK disk"),
    Mark(b"COWD", "image.vmdk", "a VMDK disk"),
    Mark(b"# Disk DescriptorFile", "image.vmdk", "a VMDK descriptor, which points at other files"),
    Mark(b"conectix", "image.vhd", "a VHD disk"),
    Mark(b"conectix", "image.vhd", "a VHD disk", -512),
    Mark(b"conectix", "image.vhd", "a VHD disk", -511),  # as early Virtual PC wrote them
    Mark(b"vhdxfile", "image.vhdx", "a VHDX disk"),
    Mark(b"QED\x00", "image.qed", "a QED disk"),
    Mark(b"\x7f\x10\xda\xbe", "image.vdi", "a VDI disk", 0x40),
    Mark(b"WithoutFreeSpace", "image.parallels", "a Parallels disk"),
    Mark(b"WithouFreSpacExt", "image.parallels", "a Parallels disk"),
    Mark(b"Bochs Virtual HD Image", "image.bochs", "a Bochs disk"),
    Mark(b"#!/bin/sh\n#V2.0 Format", "image.cloop", "a compressed loop image"),
    Mark(b"koly", "image.dmg", "a DMG disk", -512),
    Mark(b"LUKS\xba\xbe", "image.encrypted", "a disk encrypted with LUKS"),
    Mark(b"SKUL\xba\xbe", "image.encrypted", "a disk encrypted with LUKS"),
    Mark(b"CD001", "image.iso", "a CD image", 0x8001),
    Mark(b"BEA01", "image.iso", "a DVD image", 0x8001),
    Mark(b"\x1f\x8b", "image.compressed", "a gzip file"),
    Mark(b"\xfd7zXZ\x00", "image.compressed", "an xz file"),
    Mark(b"\x28\xb5\x2f\xfd", "image.compressed", "a zstd file"),
    Mark(b"BZh", "image.compressed", "a bzip2 file"),
    Mark(b"\x04\x22\x4d\x18", "image.compressed", "an lz4 file"),
    Mark(b"PK\x03\x04", "image.archive", "a zip archive"),
    Mark(b"7z\xbc\xaf\x27\x1c", "image.archive", "a 7z archive"),
    Mark(b"ustar", "image.archive", "a tar archive", 257),
)
_REMEDIES = {
    "image.compressed": "unpack it and upload what is in it",
    "image.archive": "unpack it and upload the disk in it",
    "image.iso": "upload a disk image; CDs are not taken yet",
}
CONVERT = "convert it: qemu-img convert -O qcow2 OLD NEW"


def inspect(source: Source, max_virtual_bytes: int) -> int:
    """The size in bytes. :raise ImageRefused"""
    head = source.piece(0, HEAD_BYTES)
    for mark in MARKS:
        offset = mark.offset if mark.offset >= 0 else source.size_bytes + mark.offset
        end = offset + len(mark.magic)
        found = head[offset:end] if offset >= 0 and end <= len(head) else source.piece(offset, len(mark.magic))
        if found == mark.magic:
            remedy = _REMEDIES.get(mark.code, CONVERT)
            raise source.refusal(mark.code, f"it is {mark.name}, neither raw nor qcow2", remedy)
    if source.size_bytes == 0 or source.size_bytes % SECTOR:
        raise source.refusal(
            "image.sectors",
            f"it is neither qcow2 nor, with {source.size_bytes} bytes, a raw disk of whole sectors",
            "upload the whole file",
        )
    if source.size_bytes > max_virtual_bytes:
        raise source.refusal(
            "image.virtual_size",
            f"its {source.size_bytes} bytes are more than {max_virtual_bytes} bytes",
            "make the disk smaller",
        )
    return source.size_bytes
