"""An OVA: a tar archive with a description (OVF) first and the disk it names. Nothing is ever extracted.

Only the headers of its members are read: regular files of plain names, each once. The disk stays where it lies in the
archive; whoever converts it is told offset and length.
"""

from __future__ import annotations

import msgspec

from novacron.control.images.inspect import ovf, vmdk
from novacron.control.images.inspect.source import MAX_PIECE_BYTES, Source
from novacron.errors import ImageRefused

BLOCK = 512
MAX_MEMBERS = 64
READ_BYTES = ovf.MAX_BYTES + MAX_MEMBERS * BLOCK + (256 << 10)
REGULAR = (b"0", b"\0")
REPACK = "make it anew: export one machine with one disk as OVA, or send the disk alone"


class Member(msgspec.Struct, frozen=True):
    """One file in the archive: its name as written there, and where its content lies."""

    name: str
    offset: int
    length: int


class Disk(msgspec.Struct, frozen=True):
    """The disk in the archive, its virtual size, and what the description wants."""

    member: Member
    virtual_size_bytes: int
    vcpus: int
    memory_mib: int


def is_tar(source: Source) -> bool:
    return source.piece(257, 5) == b"ustar"


def inspect(source: Source, max_virtual_bytes: int) -> Disk:
    """:raise ImageRefused"""
    wide = source.again(READ_BYTES)
    found = members(wide)
    if not found or not found[0].name.lower().endswith(".ovf"):
        raise source.refusal("image.archive", "it is a tar archive and no OVA", "unpack it and upload the disk in it")
    try:
        described = ovf.read(_content(wide, found[0]))
    except ovf.BadOvf as wrong:
        raise _refusal(source, str(wrong)) from wrong
    disk = next((one for one in found if one.name == described.disk), None)
    if disk is None:
        raise _refusal(source, "the disk its description names is not in it")
    part = source.part(disk.offset, disk.length)
    if not vmdk.is_vmdk(part) or disk.length % BLOCK:
        raise _refusal(source, "its disk is no VMDK")
    size = vmdk.inspect(part, max_virtual_bytes)
    return Disk(disk, size, described.vcpus, described.memory_mib)


def members(source: Source) -> list[Member]:
    """The archive's files in order. :raise ImageRefused: anything in it is not a plain file of a plain name."""
    found: list[Member] = []
    place = 0
    while place + BLOCK <= source.size_bytes:
        head = source.whole(place, BLOCK)
        if not head.strip(b"\0"):
            return found
        if len(found) == MAX_MEMBERS:
            raise _refusal(source, f"it has more than {MAX_MEMBERS} files")
        member = _member(source, head, place + BLOCK)
        if member.name.casefold() in {one.name.casefold() for one in found}:
            raise _refusal(source, "it has two files of one name")
        found.append(member)
        place = member.offset + -(-member.length // BLOCK) * BLOCK
    raise source.refusal("image.truncated", "it is an OVA that ends too early", "upload the whole file")


def _member(source: Source, head: bytes, offset: int) -> Member:
    if head[257:262] != b"ustar" or _octal(head[148:156]) != sum(head[:148] + b" " * 8 + head[156:]):
        raise _refusal(source, "it is a damaged tar archive")
    if head[156:157] not in REGULAR:
        raise _refusal(source, "it has something in it that is no regular file")
    name = head[:100].partition(b"\0")[0]
    plain = name.isascii() and name.decode("ascii", "replace").isprintable() and b"/" not in name and b"\\" not in name
    prefix = head[345:500].strip(b"\0") if head[257:263] == b"ustar\0" else b""
    if not plain or name in (b"", b".", b"..") or prefix:
        raise _refusal(source, "it has a file in it whose name is a path or is not readable")
    length = _length(head[124:136])
    if length is None or offset + length > source.size_bytes:
        raise source.refusal("image.truncated", "it is an OVA that ends within a file", "upload the whole file")
    return Member(name.decode("ascii"), offset, length)


def _length(field: bytes) -> int | None:
    """Octal, or in binary where that is too short (GNU tar, from 8 GiB on)."""
    return int.from_bytes(field[4:]) if field[:4] == b"\x80\0\0\0" else _octal(field)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and not digits.strip(b"01234567") else None


def _content(source: Source, member: Member) -> bytes:
    if member.length > ovf.MAX_BYTES:
        raise _refusal(source, f"its description has more than {ovf.MAX_BYTES} bytes")
    pieces = range(0, member.length, MAX_PIECE_BYTES)
    return b"".join(source.whole(member.offset + at, min(MAX_PIECE_BYTES, member.length - at)) for at in pieces)


def _refusal(source: Source, message: str) -> ImageRefused:
    return source.refusal("image.ova", message, REPACK)
