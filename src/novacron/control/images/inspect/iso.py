"""ISO 9660 images: what a CD-ROM drive holds."""

from __future__ import annotations

import struct

from novacron.control.images.inspect.source import Source

SECTOR = 2048
DESCRIPTOR_AT = 16 * SECTOR
PRIMARY = 1


def check_iso(source: Source) -> None:
    """Begins with the volume descriptor of ISO 9660, and is as long as it says. :raise ImageRefused"""
    head = source.piece(DESCRIPTOR_AT, SECTOR)
    if len(head) < SECTOR or head[0] != PRIMARY or head[1:6] != b"CD001":
        raise source.refusal("image.iso", "it is no ISO 9660 image", "upload a CD or DVD image, usually named .iso")
    (sectors,) = struct.unpack_from("<I", head, 80)
    if sectors * SECTOR > source.size_bytes:
        raise source.refusal("image.truncated", "it is shorter than its header says", "upload the whole file")
