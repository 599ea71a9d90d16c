"""Where a proxy meets a QEMU that waits: a unix socket in a directory whose owner nobody trusts."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def connected(path: Path, uid: int | None) -> socket.socket:
    """A non-blocking connection to it, however long its path. uid: who must be listening; None: anybody.

    Its directory's owner may have put there what leads elsewhere: who answers is asked before anything is said.
    :raise OSError: nobody waits there, or somebody else.
    """
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.connect(f"/proc/self/fd/{directory}/{path.name}")
        _check_listener(made, uid)
    except BaseException:
        made.close()
        raise
    finally:
        os.close(directory)
    return made


def _check_listener(made: socket.socket, uid: int | None) -> None:
    listener = _CREDENTIALS.unpack(made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
    if uid not in (None, listener):
        raise PermissionError(0, f"user {listener} listens there, not {uid}")
