"""Reads the header of a qcow2 file: how large the volume is and whose child, without any tool opening it."""

from __future__ import annotations

import os
import struct

import msgspec

MAGIC = b"QFI\xfb"
HEADER_BYTES = 4096
CLUSTER_BYTES = 65536  # as qemu-img makes them unless told otherwise
MAX_BACKING_NAME = 1023  # as the format says
_DATA_FILE = 1 << 2  # incompatible feature: content lies in another file


class Header(msgspec.Struct, frozen=True):
    """backing: the name as written in the file, empty: none. data_file: its content lies in a file it names."""

    size_bytes: int
    backing: str = ""
    data_file: bool = False


def parse(head: bytes) -> Header | None:
    """The header in the first bytes of a file; None: they are no whole qcow2 header (version 2 or 3)."""
    if len(head) < 72 or head[:4] != MAGIC:
        return None
    version, offset, length = struct.unpack_from(">IQI", head, 4)
    (size,) = struct.unpack_from(">Q", head, 24)
    if version not in (2, 3) or (version == 3 and len(head) < 104):
        return None
    features = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    if offset and (length > MAX_BACKING_NAME or offset + length > len(head)):
        return None
    backing = head[offset : offset + length].decode("utf-8", "replace") if offset else ""
    return Header(int(size), backing, bool(features & _DATA_FILE))


def read(descriptor: int) -> Header | None:
    """The header of an open file; None: it has none."""
    return parse(os.pread(descriptor, HEADER_BYTES, 0))
