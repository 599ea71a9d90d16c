"""The serial log of a machine: its last bytes, and how it is kept from filling the disk."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from novacron.agent.drivers.base import CONSOLE_FILE
from novacron.wire.agent import ConsoleText

MAX_READ_BYTES = 1 << 20
TRIM_FROM_BYTES = 4 << 20
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h
_BLOCK_BYTES = 512  # the unit of st_blocks

_libc = ctypes.CDLL(None, use_errno=True)


def tail(run_dir: Path, max_bytes: int) -> ConsoleText:
    """The last `max_bytes` (1 MiB at most) of the log; empty when there is none. Bytes become Latin-1 text."""
    try:
        handle = _open(run_dir, os.O_RDONLY)
    except FileNotFoundError:
        return ConsoleText(text="", truncated=False)
    try:
        size = os.fstat(handle).st_size
        wanted = max(0, min(max_bytes, MAX_READ_BYTES, size))
        content = os.pread(handle, wanted, size - wanted)
    finally:
        os.close(handle)
    kept = content.lstrip(b"\0")  # a hole, where a driver has dropped older bytes
    return ConsoleText(text=kept.decode("latin-1"), truncated=len(kept) < size)


def trim(run_dir: Path) -> None:
    """Give back the disk under all but the last MAX_READ_BYTES, once more than TRIM_FROM_BYTES are taken.

    The hypervisor appends meanwhile and loses nothing: older bytes become a hole. Where the file system makes no
    holes the log is emptied: better no log than a full disk.
    """
    try:
        handle = _open(run_dir, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(handle)
        if status.st_blocks * _BLOCK_BYTES > TRIM_FROM_BYTES and not _punch(handle, status.st_size - MAX_READ_BYTES):
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _punch(handle: int, length: int) -> bool:
    """Make a hole of the first `length` bytes; whether that could be done."""
    done: int = _libc.fallocate(handle, _KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(length))
    return done == 0


def _open(run_dir: Path, flags: int) -> int:
    """The log lies where the machine's own user may write: a link or device put in its place is not followed."""
    handle = os.open(run_dir / CONSOLE_FILE, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        raise PermissionError(errno.EPERM, "is not an ordinary file", str(run_dir / CONSOLE_FILE))
    return handle
