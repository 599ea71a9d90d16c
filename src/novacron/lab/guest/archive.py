"""An initial RAM disk as bytes: the `newc` form of cpio, which is what the kernel unpacks."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple

_TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """One name in the archive, without a leading slash. `mode` holds type and permissions, as in stat."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def character_device(name: str, major: int, minor: int) -> Entry:
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def pack(entries: Iterable[Entry]) -> bytes:
    """The archive; everything belongs to root and carries no times, so equal entries give equal bytes."""
    archive = bytearray()
    for number, entry in enumerate((*entries, Entry(_TRAILER, 0)), start=1):
        archive += _header(number, entry)
        _align(archive)
        archive += entry.data
        _align(archive)
    return bytes(archive)


def _header(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    #        inode   mode        uid gid links time size           device  device that it is  name       checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    return b"070701" + b"".join(b"%08X" % field for field in fields) + name


def _align(archive: bytearray) -> None:
    archive += b"\0" * (-len(archive) % 4)
