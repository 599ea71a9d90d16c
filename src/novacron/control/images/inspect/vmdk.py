"""The header of a streamOptimized VMDK, field by field, with nothing taken on trust.

Only this one of the many kinds of VMDK lies whole in one file. Every other kind (flat, sparse in extents, a descriptor
that names files, a delta of a parent) is refused. QEMU reads a second header from the end of the file when the first
one says so, and a descriptor of extents when the first one says it has no capacity: both are checked or refused here.
"""

from __future__ import annotations

import re
import struct

import msgspec

from novacron.control.images.inspect.source import Source
from novacron.errors import ImageRefused

MAGIC = b"KDMV"
SECTOR = 512
GD_AT_END = (1 << 64) - 1
COMPRESSED, MARKERS = 1 << 16, 1 << 17
KNOWN_FLAGS = 0b11 | 1 << 2 | COMPRESSED | MARKERS
DEFLATE = 1
NEWLINES = b"\n \r\n"
MAX_DESCRIPTOR_SECTORS = 128
MAX_DIRECTORY_BYTES = 32 << 20
FOOTER_BYTES = 3 * SECTOR  # marker, footer, marker
MARKER_EOS, MARKER_FOOTER = 0, 3
CONVERT = (
    "export it as streamOptimized (ovftool, VBoxManage --variant Stream), or convert it: qemu-img convert -O qcow2"
)

_LAYOUT = struct.Struct("<4sIIQQQQIQQQB4sH")
_EXTENT = re.compile(r"^(RW|RDONLY|NOACCESS)\s+(\d{1,15})\s+([A-Z]+)\b", re.MULTILINE)


class Header(msgspec.Struct, frozen=True):
    """The fixed part; sizes and offsets in sectors, names as in VMware's specification."""

    magic: bytes
    version: int
    flags: int
    capacity: int
    grain_size: int
    descriptor_offset: int
    descriptor_size: int
    gtes_per_gt: int
    rgd_offset: int
    gd_offset: int
    overhead: int
    unclean: int
    newlines: bytes
    compression: int


def is_vmdk(source: Source) -> bool:
    """Whether it begins as a sparse VMDK does."""
    return source.piece(0, len(MAGIC)) == MAGIC


def inspect(source: Source, max_virtual_bytes: int) -> int:
    """The virtual size in bytes. :raise ImageRefused"""
    header = _header(source, 0)
    _check_kind(source, header)
    _check_size(source, header, max_virtual_bytes)
    if header.gd_offset == GD_AT_END:
        header = _footer(source, header)
    _check_directory(source, header)
    _check_descriptor(source, header)
    return header.capacity * SECTOR


def _header(source: Source, offset: int) -> Header:
    return Header(*_LAYOUT.unpack(source.whole(offset, _LAYOUT.size)))


def _check_kind(source: Source, header: Header) -> None:
    if header.version not in (1, 2, 3) or header.flags & ~KNOWN_FLAGS:
        raise _refusal(source, f"it is a VMDK of an unknown version ({header.version}) or with unknown features")
    streamed = header.flags & COMPRESSED and header.flags & MARKERS and header.compression == DEFLATE
    if not streamed or header.capacity == 0:
        raise _refusal(source, "it is a VMDK, and not a streamOptimized one")
    if header.unclean:
        raise _refusal(source, "it is a VMDK that was not closed properly")
    if header.flags & 1 and header.newlines != NEWLINES:
        raise _refusal(source, "it is a VMDK that was changed by a text transfer")


def _check_size(source: Source, header: Header, max_virtual_bytes: int) -> None:
    if header.capacity * SECTOR > max_virtual_bytes:
        raise source.refusal(
            "image.virtual_size",
            f"its disk of {header.capacity * SECTOR} bytes is larger than {max_virtual_bytes} bytes",
            "make the disk smaller",
        )
    grain = header.grain_size
    if not 8 <= grain <= 2048 or grain & (grain - 1) or header.gtes_per_gt != 512:
        raise _refusal(source, f"its grains of {grain} sectors, {header.gtes_per_gt} a table, are not allowed")
    if _directory_bytes(header) > MAX_DIRECTORY_BYTES:
        raise _refusal(source, "its grain directory is larger than 32 MiB")


def _directory_bytes(header: Header) -> int:
    covered = header.grain_size * header.gtes_per_gt
    return -(-header.capacity // covered) * 4


def _footer(source: Source, header: Header) -> Header:
    """The header that counts when the first one says that the directory stands at the end."""
    begin = source.size_bytes - FOOTER_BYTES
    if begin < SECTOR or source.size_bytes % SECTOR:
        raise source.refusal("image.truncated", "it is a VMDK that ends before its footer", "upload the whole file")
    size, kind = struct.unpack("<II", source.whole(begin + 8, 8))
    end_value, end_size, end_kind = struct.unpack("<QII", source.whole(begin + 2 * SECTOR, 16))
    footer = _header(source, begin + SECTOR)
    marked = (size, kind) == (0, MARKER_FOOTER) and (end_value, end_size, end_kind) == (0, 0, MARKER_EOS)
    if not marked or footer.magic != MAGIC:
        raise source.refusal("image.truncated", "it is a VMDK without its footer", "upload the whole file")
    if footer.gd_offset == GD_AT_END or msgspec.structs.replace(footer, gd_offset=GD_AT_END) != header:
        raise _refusal(source, "it is a VMDK whose header and footer contradict each other")
    return footer


def _check_directory(source: Source, header: Header) -> None:
    begin = header.gd_offset * SECTOR
    if begin < SECTOR or begin + _directory_bytes(header) > source.size_bytes:
        raise _refusal(source, "its grain directory lies outside the file")
    if header.flags & 2 and header.rgd_offset != 0 and header.rgd_offset * SECTOR >= source.size_bytes:
        raise _refusal(source, "its second grain directory lies outside the file")


def _check_descriptor(source: Source, header: Header) -> None:
    """It must say the same: one sparse extent, which is this file, and no parent."""
    if not 0 < header.descriptor_size <= MAX_DESCRIPTOR_SECTORS or header.descriptor_offset < 1:
        raise _refusal(source, "its descriptor is missing or larger than 64 KiB")
    raw = source.whole(header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR)
    text = raw.partition(b"\0")[0].decode("utf-8", "replace")
    values = dict(_settings(text))
    if values.get("createtype") != "streamOptimized":
        raise _refusal(source, "its descriptor does not say streamOptimized")
    if values.get("parentcid", "ffffffff").lower() != "ffffffff" or "parentfilenamehint" in values:
        raise source.refusal("image.backing_file", "it is a VMDK that reads from another file, its parent", CONVERT)
    extents = _EXTENT.findall(text)
    if [(access, kind) for access, _, kind in extents] != [("RW", "SPARSE")] or int(extents[0][1]) != header.capacity:
        raise source.refusal("image.data_file", "it is a VMDK whose descriptor names other extents", CONVERT)


def _settings(text: str) -> list[tuple[str, str]]:
    lines = (line.strip() for line in text.splitlines())
    parts = (line.partition("=") for line in lines if not line.startswith("#") and "=" in line)
    return [(key.strip().lower(), value.strip().strip('"')) for key, _, value in parts]


def _refusal(source: Source, message: str) -> ImageRefused:
    return source.refusal("image.vmdk", message, CONVERT)
