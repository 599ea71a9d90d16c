"""nbdkit serving every file of a directory as an export, at a unix socket or a port of loopback."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.system.servers.process import serving

missing = None if shutil.which("nbdkit") else "nbdkit is not installed"


@contextlib.contextmanager
def nbdkit(directory: Path, sizes: dict[str, int]) -> Iterator[Path]:
    """The socket. sizes: exports to make, in bytes."""
    exports = directory / "exports"
    exports.mkdir()
    for name, size in sizes.items():
        with (exports / name).open("wb") as file:
            file.truncate(size)
    at, listens = directory / "nbd.sock", directory / "nbdkit.pid"  # a socket is there before anybody listens at it
    words = ("nbdkit", "--foreground", "--exit-with-parent", "-P", listens, "-U", at, "file", f"dir={exports}")
    with serving(words, directory / "nbdkit.log", listens.exists):
        yield at
