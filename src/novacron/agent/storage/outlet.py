"""Files that tools write for the agent: whole before they get their name."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from novacron.errors import Conflict, NoRoom


@contextlib.contextmanager
def new_file(to: Path, uid: int | None) -> Iterator[int]:
    """A file for a tool of `uid` to write; named `to`, and the agent's again, when the block ends well.

    :raise Conflict: it is there already. :raise NoRoom: its disk is full.
    """
    making = to.with_name(f".{to.name}.{uuid.uuid4()}")
    descriptor = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if uid is not None:
            os.fchown(descriptor, uid, uid)
        yield descriptor
        if uid is not None:
            os.fchown(descriptor, os.geteuid(), os.getegid())
        os.fsync(descriptor)
        os.link(making, to)
        sync_directory(to.parent)
    except FileExistsError as there:
        raise Conflict(f"{to} is there already") from there
    except OSError as wrong:
        if wrong.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoom(f"there is no room for {to}") from wrong
        raise
    finally:
        os.close(descriptor)
        making.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Have names in it outlive a power cut. Absent: fine."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
