"""The qcow2 header, version 3, field by field (QEMU's docs/interop/qcow2.txt), with nothing taken on trust.

Version 2 is refused: it has no feature bits, so a dirty or corrupt image looks like a sound one, and every QEMU since
2013 writes version 3. What a machine's base image never needs (backing, data file, encryption, snapshots, bitmaps) is
refused rather than followed, and so is every feature or extension that is unknown here.
"""

from __future__ import annotations

import struct

import msgspec

from novacron.control.images.inspect.source import MAX_PIECE_BYTES, Source

MAGIC = b"QFI\xfb"
HEADER_BYTES = 104
SECTOR = 512
MAX_L1_BYTES = 32 << 20  # QEMU's own bounds
MAX_REFTABLE_BYTES = 8 << 20

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
RAW_DATA_FILE = 1 << 1  # of the autoclear bits
ZLIB, ZSTD = 0, 1

EXTENSION_END = 0
EXTENSION_FEATURE_NAMES = 0x6803F857
REFUSED_EXTENSIONS = {
    0xE2792ACA: ("image.backing_file", "it names the format of a backing file"),
    0x44415441: ("image.data_file", "it names an external data file"),
    0x0537BE77: ("image.encrypted", "it is encrypted"),
    0x23852875: ("image.bitmaps", "it carries dirty bitmaps"),
}
FLATTEN = "make it one plain file: qemu-img convert -O qcow2 OLD NEW"


class Header(msgspec.Struct, frozen=True):
    """The fixed part, as it stands at offset 4; names as in the specification."""

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    refcount_order: int
    header_length: int


_LAYOUT = struct.Struct(">IQIIQIIQQIIQQQQII")


def is_qcow(source: Source) -> bool:
    """Whether QEMU would take it for a qcow image of any version."""
    return source.piece(0, len(MAGIC)) == MAGIC


def inspect(source: Source, max_virtual_bytes: int) -> int:
    """The virtual size in bytes. :raise ImageRefused"""
    (version,) = struct.unpack(">I", source.whole(4, 4))
    if version != 3:
        raise source.refusal(
            "image.version",
            f"it is qcow version {version}, only 3 is taken",
            "qemu-img amend -f qcow2 -o compat=1.1 FILE",
        )
    header = Header(*_LAYOUT.unpack(source.whole(4, _LAYOUT.size)))
    _check_reach(source, header)
    _check_features(source, header)
    _check_shape(source, header)
    _check_size(source, header, max_virtual_bytes)
    _check_tables(source, header)
    _check_extensions(source, header)
    return header.size


def _check_reach(source: Source, header: Header) -> None:
    """It must need no other file and no key."""
    if header.backing_file_offset or header.backing_file_size:
        raise source.refusal("image.backing_file", "it reads from another file, its backing file", FLATTEN)
    if header.incompatible_features & DATA_FILE or header.autoclear_features & RAW_DATA_FILE:
        raise source.refusal("image.data_file", "its content lies in another file, its data file", FLATTEN)
    if header.crypt_method:
        raise source.refusal("image.encrypted", "it is encrypted", "convert it to an unencrypted one")


def _check_features(source: Source, header: Header) -> None:
    bits = header.incompatible_features
    if bits & CORRUPT:
        raise source.refusal("image.corrupt", "it is marked as corrupt", "repair it: qemu-img check -r all FILE")
    if bits & DIRTY:
        raise source.refusal("image.dirty", "it was not closed properly", "repair it: qemu-img check -r all FILE")
    if bits & ~KNOWN_INCOMPATIBLE:
        raise source.refusal("image.feature", f"it needs unknown features (bits {bits:#x})", FLATTEN)
    kind = source.whole(HEADER_BYTES, 1)[0] if header.header_length > HEADER_BYTES else ZLIB
    if kind != (ZSTD if bits & COMPRESSION else ZLIB):
        raise source.refusal(
            "image.compression", f"its compression type {kind} is unknown or contradicts itself", FLATTEN
        )


def _check_shape(source: Source, header: Header) -> None:
    smallest = 14 if header.incompatible_features & EXTENDED_L2 else 9  # subclusters are whole sectors
    if not smallest <= header.cluster_bits <= 21:
        raise source.refusal(
            "image.cluster_size", f"its clusters of 2^{header.cluster_bits} bytes are not allowed", FLATTEN
        )
    if header.refcount_order > 6:
        raise source.refusal("image.refcounts", "its reference counts are wider than 64 bits", FLATTEN)
    length = header.header_length
    if length < HEADER_BYTES or length % 8 or length > 1 << header.cluster_bits:
        raise source.refusal("image.header_size", f"its header of {length} bytes is not allowed", FLATTEN)
    if header.nb_snapshots:
        raise source.refusal("image.snapshots", f"it has {header.nb_snapshots} internal snapshots", FLATTEN)


def _check_size(source: Source, header: Header, max_virtual_bytes: int) -> None:
    if header.size == 0 or header.size % SECTOR:
        raise source.refusal(
            "image.sectors",
            f"its disk of {header.size} bytes is not made of whole sectors",
            "give it a size: qemu-img resize",
        )
    if header.size > max_virtual_bytes:
        raise source.refusal(
            "image.virtual_size",
            f"its disk of {header.size} bytes is larger than {max_virtual_bytes} bytes",
            "make the disk smaller",
        )


def _check_tables(source: Source, header: Header) -> None:
    """The two tables must lie in the file, cover the disk and stay within QEMU's own bounds."""
    cluster = 1 << header.cluster_bits
    entries = cluster // (16 if header.incompatible_features & EXTENDED_L2 else 8)
    needed = -(-header.size // (cluster * entries))
    if header.l1_size * 8 > MAX_L1_BYTES or header.l1_size < needed:
        raise source.refusal(
            "image.l1_table", f"its L1 table of {header.l1_size} entries does not fit its disk", FLATTEN
        )
    _check_lies_within(source, "image.l1_table", "L1", header.l1_table_offset, header.l1_size * 8, cluster)
    clusters = header.refcount_table_clusters
    if not 0 < clusters * cluster <= MAX_REFTABLE_BYTES:
        raise source.refusal("image.refcounts", f"its refcount table of {clusters} clusters is absurd", FLATTEN)
    _check_lies_within(source, "image.refcounts", "refcount", header.refcount_table_offset, clusters * cluster, cluster)


def _check_lies_within(source: Source, code: str, name: str, offset: int, length: int, cluster: int) -> None:
    end = -(-source.size_bytes // cluster) * cluster  # the last cluster need not be written to its end
    if offset % cluster or offset < cluster or offset >= source.size_bytes or offset + length > end:
        raise source.refusal(
            code, f"its {name} table lies outside the file or where it must not", "upload the whole file"
        )


def _check_extensions(source: Source, header: Header) -> None:
    """What follows the header, up to its end mark: only the table of feature names is let through."""
    area = source.piece(header.header_length, min(MAX_PIECE_BYTES, (1 << header.cluster_bits) - header.header_length))
    place = 0
    while len(area) - place >= 8:
        kind, length = struct.unpack_from(">II", area, place)
        if kind == EXTENSION_END:
            return
        if kind in REFUSED_EXTENSIONS:
            raise source.refusal(*REFUSED_EXTENSIONS[kind], FLATTEN)
        if kind != EXTENSION_FEATURE_NAMES:
            raise source.refusal("image.extension", f"it has an unknown header extension {kind:#010x}", FLATTEN)
        place += 8 + (length + 7) // 8 * 8
    if header.header_length + place != 1 << header.cluster_bits:  # a full header cluster needs no end mark
        raise source.refusal("image.extension", "its header extensions do not end", FLATTEN)
