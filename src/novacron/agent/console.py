"""The serial log of a machine: its last bytes. Keeping it small is the driver's work."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from novacron.wire.agent import ConsoleText

FILE = "console.log"
MAX_READ_BYTES = 1 << 20


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


def _open(run_dir: Path, flags: int) -> int:
    """The log lies where the machine's own user may write: a link or device put in its place is not followed."""
    handle = os.open(run_dir / FILE, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(handle)
        raise PermissionError(errno.EPERM, "is not an ordinary file", str(run_dir / FILE))
    return handle
