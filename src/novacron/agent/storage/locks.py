"""QEMU's locks on image files, seen and held from here: whether a machine has a volume open.

QEMU keeps a lock on one byte for each right it uses (from byte 100) and for each it leaves to nobody else (from 200).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from novacron.errors import Reason, StateConflict

_USES, _DENIES = 100, 200
_WRITE, _RESIZE = 1, 3
_FLOCK = "hhqqi4x"
_CANNOT = (errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # this file system has no such locks; QEMU goes without too


def hold_still(descriptor: int, volume_id: str) -> None:
    """Let nobody write to an open volume until the descriptor is closed.

    :raise StateConflict: somebody has it open for writing now.
    """
    try:
        for right in (_WRITE, _RESIZE):
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, _DENIES + right))
            found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, _USES + right))
            if struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK:
                raise in_use(volume_id)
    except OSError as wrong:
        if wrong.errno not in _CANNOT:
            raise


def in_use(volume_id: str) -> StateConflict:
    """The refusal to touch a volume that a machine has open."""
    words = f"volume {volume_id} is in use by a running machine"
    return StateConflict(words, [Reason("volume.in_use", words, subject=volume_id, remedy="stop the machine first")])


def _lock(kind: int, start: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, 1, 0)
