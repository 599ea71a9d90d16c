"""A lab node's first process: `python -I -S init.py BOOT_ID_FILE`, as PID 1 of a process namespace of its own.

All processes of the node end with it, as in a power cut. It ends when it is told to, or when its standard input does:
with whoever made the node. It reaps what lost its parent, and knows nothing of NovaCron, nor needs it installed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_MS_BIND = 1 << 12
_BOOT_ID = b"/proc/sys/kernel/random/boot_id"


def main() -> None:
    """Say `ready` when the node's processes may start."""
    libc = ctypes.CDLL(None, use_errno=True)
    boot_id = os.fsencode(sys.argv[1])
    if libc.mount(b"proc", b"/proc", b"proc", 0, None) or libc.mount(boot_id, _BOOT_ID, None, _MS_BIND, None):
        sys.exit(f"cannot show the node its own processes: {os.strerror(ctypes.get_errno())}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # else PID 1 is not to be ended kindly
    os.write(1, b"ready\n")
    os.read(0, 1)


if __name__ == "__main__":
    main()
