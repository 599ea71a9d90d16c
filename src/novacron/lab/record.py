"""What a lab has made, written down in `lab.json` before it is made, so that a later run can end what is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

import msgspec

from novacron.lab.failure import LabFailed

FILE = "lab.json"


class Record(msgspec.Struct, kw_only=True):
    """commands: the exact argument lists of the processes it starts. Its directories all lie below its own."""

    commands: list[list[str]] = []


class LabDir:
    """A lab's directory, held by at most one living process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._record = Record()

    def take(self) -> None:
        """Make it, or take over what a run that was cut off left.

        :raise LabFailed: a living process holds it, or it is not ours.
        """
        self.path.mkdir(mode=0o711, exist_ok=True)
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_ours(self.path, os.fstat(lock))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise LabFailed.because(f"another lab runs in {self.path}", "end it with Ctrl-C first") from None
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        self._record = read(self.path)

    def note(self, command: list[str]) -> None:
        """Write down that this command is about to be started here."""
        self._record.commands.append(command)
        fresh = self.path / f".{FILE}"
        fresh.write_bytes(msgspec.json.encode(self._record))
        fresh.replace(self.path / FILE)

    def let_go(self) -> None:
        """Remove it if it is empty, and hold it no longer."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lab in `path`."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def read(path: Path) -> Record:
    """The record in a lab's directory; an empty one when there is none."""
    try:
        return msgspec.json.decode((path / FILE).read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except msgspec.DecodeError as wrong:
        raise LabFailed.because(f"{path / FILE} cannot be read: {wrong}", f"look at {path} and remove it") from wrong


def _check_ours(path: Path, seen: os.stat_result) -> None:
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
        raise LabFailed.because(f"{path} is not a directory of ours alone", "remove it, or ask its owner to")
