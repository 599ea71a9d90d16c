"""Copies files: sharing blocks where the file system can, else only what is not a hole, a piece at a time."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os

_FICLONE = 0x40049409
_PIECE_BYTES = 64 << 20
_CANNOT_SHARE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS)
_CANNOT_COPY = (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_READ_BYTES = 1 << 20


async def copy(source: int, target: int) -> None:
    """Make the empty open file `target` the same as `source`. :raise OSError"""
    if await asyncio.to_thread(share, source, target):
        return
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    offset = 0
    while (piece := await asyncio.to_thread(_next, source, offset, size)) is not None:
        offset, end = piece
        while offset < end:
            offset += await asyncio.to_thread(_piece, source, target, offset, min(end - offset, _PIECE_BYTES))


def share(source: int, target: int) -> bool:
    """Whether the file system could make `target` a second name for `source`'s blocks (reflink)."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as wrong:
        if wrong.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def _next(source: int, offset: int, size: int) -> tuple[int, int] | None:
    """Where the next data begins and ends; None: only a hole is left."""
    if offset >= size:
        return None
    try:
        start = os.lseek(source, offset, os.SEEK_DATA)
    except OSError as wrong:
        if wrong.errno == errno.ENXIO:
            return None
        raise
    return start, os.lseek(source, start, os.SEEK_HOLE)


def _piece(source: int, target: int, offset: int, length: int) -> int:
    """How many bytes from `offset` on were copied."""
    try:
        done = os.copy_file_range(source, target, length, offset, offset)
    except OSError as wrong:
        if wrong.errno not in _CANNOT_COPY:
            raise
        done = os.pwrite(target, os.pread(source, min(length, _READ_BYTES), offset), offset)
    if done == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return done
