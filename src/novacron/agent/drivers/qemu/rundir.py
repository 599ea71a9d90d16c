"""A machine's directory: files in a place that belongs to an unprivileged, possibly hostile, user.

The agent may be root and QEMU owns the directory, so no name in it is trusted: every access goes through a
descriptor of the directory, follows no symbolic link, and what the agent itself wrote is only believed when it is
still a plain file of the agent's own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

WAITING = "info: QEMU waiting for connection on:"
SAFE = os.O_NOFOLLOW | os.O_CLOEXEC


class RunDir:
    """File operations inside `path`. All raise OSError when the directory itself is gone or not a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The directory's descriptor."""
        with _directory(str(self.path), None) as directory:
            yield directory

    def write_own(self, name: str, data: bytes) -> None:
        """Replace the file at once or not at all; it belongs to the agent, mode 0600."""
        with self.opened() as directory:
            fresh = f".{name}.new"
            _unlink(fresh, directory)
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, 0o600, dir_fd=directory), "wb"
            ) as f:
                f.write(data)
            os.replace(fresh, name, src_dir_fd=directory, dst_dir_fd=directory)

    def read_own(self, name: str, limit: int) -> bytes | None:
        """At most `limit` bytes of a file that `write_own` made; None: there is none, or somebody else made it."""
        with self.opened() as directory:
            try:
                descriptor = os.open(name, os.O_RDONLY | SAFE, dir_fd=directory)
            except OSError:
                return None
        with os.fdopen(descriptor, "rb") as file:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_nlink != 1:
                return None
            return file.read(limit)

    def tail(self, name: str, limit: int) -> bytes:
        """The last `limit` bytes of a plain file of whatever owner; empty when there is none."""
        with self.opened() as directory:
            try:
                descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=directory)
            except OSError:
                return b""
        with os.fdopen(descriptor, "rb") as file:
            seen = os.fstat(descriptor)
            if not stat.S_ISREG(seen.st_mode):
                return b""
            file.seek(max(0, seen.st_size - limit))
            return file.read(limit)

    def words(self, name: str, limit: int) -> str:
        """The tail of what QEMU wrote to a log, less its telling that it waits for the agent's connection."""
        lines = self.tail(name, limit).decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if WAITING not in line).strip()

    def cut(self, name: str, most: int) -> None:
        """Empty a plain file that has grown over `most` bytes; who appends to it goes on at the beginning."""
        try:
            with self.opened() as directory:
                descriptor = os.open(name, os.O_RDWR | os.O_NONBLOCK | SAFE, dir_fd=directory)
        except OSError:
            return
        with os.fdopen(descriptor, "r+b", buffering=0):
            seen = os.fstat(descriptor)
            if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 1 and seen.st_size > most:
                os.ftruncate(descriptor, 0)

    def create(self, name: str, flags: int, uid: int | None, gid: int | None) -> int:
        """A descriptor of a new file, mode 0600, given to uid:gid; whatever had the name is unlinked first."""
        with self.opened() as directory:
            _unlink(name, directory)
            descriptor = os.open(name, os.O_CREAT | os.O_EXCL | flags | SAFE, 0o600, dir_fd=directory)
        _give(descriptor, uid, gid)
        return descriptor

    def remove(self, *names: str) -> None:
        """Unlink the files that exist."""
        with contextlib.suppress(FileNotFoundError), self.opened() as directory:
            for name in names:
                _unlink(name, directory)

    def make_folder(self, folder: str, uid: int | None, gid: int | None) -> None:
        """A sub-directory (0700) of uid's alone. There already: fine."""
        with self.opened() as directory:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700, dir_fd=directory)
            with _directory(folder, directory) as inner:
                _give(inner, uid, gid)

    def make_secret(self, folder: str, files: Mapping[str, bytes], uid: int | None, gid: int | None) -> None:
        """Files in a sub-directory of their own (0700), readable by uid alone. What had their names is removed."""
        self.remove_secret(folder, *files)
        with self.opened() as directory:
            os.mkdir(folder, 0o700, dir_fd=directory)
            with _directory(folder, directory) as inner:
                for name, data in files.items():
                    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | SAFE, 0o600, dir_fd=inner)
                    with os.fdopen(file, "wb") as opened:
                        opened.write(data)
                        _give(file, uid, gid)
                _give(inner, uid, gid)

    def read_secret(self, folder: str, name: str, limit: int) -> bytes | None:
        """At most `limit` bytes of what `make_secret` made; None: there is none."""
        try:
            with self.opened() as directory, _directory(folder, directory) as inner:
                descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | SAFE, dir_fd=inner)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read(limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None

    def remove_secret(self, folder: str, *names: str) -> None:
        """Remove what `make_secret` made, if it exists. What the machine's user put beside it stays."""
        with contextlib.suppress(OSError), self.opened() as directory:
            with _directory(folder, directory) as inner:
                for name in names:
                    _unlink(name, inner)
            os.rmdir(folder, dir_fd=directory)

    def listen(self, name: str) -> socket.socket:
        """A listening unix socket, mode 0600, owned by the agent: QEMU gets it as a descriptor."""
        with self.opened() as directory:
            _unlink(name, directory)
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.bind(_short(directory, name))
                os.chmod(name, 0o600, dir_fd=directory)
                made.listen(1)
            except BaseException:
                made.close()
                raise
        return made

    def connect(self, name: str) -> socket.socket:
        """A non-blocking connection to a unix socket here. :raise OSError: nobody listens, or its queue is full."""
        with self.opened() as directory:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.setblocking(False)
                made.connect(_short(directory, name))
            except BaseException:
                made.close()
                raise
        return made


@contextlib.contextmanager
def _directory(name: str, inside: int | None) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | SAFE, dir_fd=inside)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _give(descriptor: int, uid: int | None, gid: int | None) -> None:
    if uid is not None or gid is not None:
        os.fchown(descriptor, -1 if uid is None else uid, -1 if gid is None else gid)


def _short(directory: int, name: str) -> str:
    """A path of a socket that fits into its 108 bytes, however deep the directory lies."""
    return f"/proc/self/fd/{directory}/{name}"
