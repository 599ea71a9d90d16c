"""The serial log of a machine: its last bytes, and keeping it small while the hypervisor writes on."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

from novacron.wire.agent import ConsoleText

FILE = "console.log"
MAX_READ_BYTES = 1 << 20
TRIM_OVER_BYTES = 1 << 20
KEEP_BYTES = 256 * 1024

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


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
    kept = content.lstrip(b"\0") if wanted > KEEP_BYTES else content  # a hole where older bytes were dropped
    return ConsoleText(text=kept.decode("latin-1"), truncated=len(kept) < size)


def trim(run_dir: Path) -> bool:
    """Free all but the last 256 KiB once the log holds over 1 MiB of disk; whether it did.

    A hole is punched instead of the file cut: the writer appends all the while, and with a hole there is no moment
    at which a byte of it could be lost or put in the wrong place. Only the apparent size goes on growing.
    """
    try:
        handle = _open(run_dir, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        status = os.fstat(handle)
        if status.st_blocks * 512 <= TRIM_OVER_BYTES:
            return False
        if _libc.fallocate(handle, _KEEP_SIZE | _PUNCH_HOLE, 0, status.st_size - KEEP_BYTES) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), FILE)
        return True
    finally:
        os.close(handle)


def _open(run_dir: Path, flags: int) -> int:
    """The log lies where the machine's own user may write: a link or device put in its place is not followed."""
    handle = os.open(run_dir / FILE, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        raise PermissionError(errno.EPERM, "is not an ordinary file", str(run_dir / FILE))
    return handle
