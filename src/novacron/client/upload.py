"""A file of an image on its way to the server: read in pieces, hashed as it goes, compared in the end."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from novacron.client.images import Image
from novacron.errors import ImageRefused, InvalidInput, Reason
from novacron.model.image import FileRole

PIECE_BYTES = 1 << 20

OnProgress = Callable[[int, int], None]
"""Told how many bytes have been handed over, and of how many."""


class Upload:
    """One regular file, opened; a context manager that closes it."""

    def __init__(self, path: Path, role: FileRole, on_progress: OnProgress) -> None:
        """:raise InvalidInput: it cannot be read or is no regular file."""
        self._path = path
        self._role = role
        self._on_progress = on_progress
        self._hash = hashlib.sha256()
        self._sent = 0
        try:
            # O_NONBLOCK: opening a pipe must not wait for somebody to write to it.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as wrong:
            raise InvalidInput.field(role.value, f"cannot read {path}: {wrong.strerror}") from wrong
        status = os.fstat(handle)
        self.size_bytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise InvalidInput.field(role.value, f"{path} is not a regular file")
        self._file = os.fdopen(handle, "rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": "application/octet-stream", "Content-Length": str(self.size_bytes)}

    def read(self) -> bytes:
        """The next piece, empty at the end; may block."""
        return self._file.read(PIECE_BYTES)

    def count(self, piece: bytes) -> bytes:
        """The piece, noted as handed over.

        :raise InvalidInput: the file changes its size while it is read.
        """
        self._sent += len(piece)
        if self._sent > self.size_bytes or (not piece and self._sent != self.size_bytes):
            raise InvalidInput.field(
                self._role.value, f"{self._path} changed while it was read", "upload it when nobody writes it"
            )
        self._hash.update(piece)
        if piece:
            self._on_progress(self._sent, self.size_bytes)
        return piece

    def pieces(self) -> Iterator[bytes]:
        """Every piece, each counted."""
        while piece := self.count(self.read()):
            yield piece

    def checked(self, image: Image) -> Image:
        """`image` as the server answered, if it holds exactly what was sent.

        :raise ImageRefused: it does not; the image is not to be sealed.
        """
        mine = self._hash.hexdigest()
        stored = next((file for file in image.files if file.role == self._role.value), None)
        if stored is None or stored.digest != mine:
            raise ImageRefused(
                f"{self._path} did not arrive whole",
                [
                    Reason(
                        "image.digest",
                        f"sent sha256 {mine}, stored {stored.digest if stored else 'nothing'}",
                        subject=self._role.value,
                        remedy="send it again",
                    )
                ],
            )
        return image
