"""A file as an inspector sees it: bounded reads at an offset, and the words of a refusal."""

from __future__ import annotations

from collections.abc import Callable

from novacron.errors import ImageRefused, Reason
from novacron.model.image import FileRole

MAX_PIECE_BYTES = 64 << 10
MAX_READ_BYTES = 256 << 10

Read = Callable[[int, int], bytes]
"""(offset, length) → the bytes there; fewer at the end of the file."""


class Source:
    """Reads pieces of at most 64 KiB, 256 KiB in all unless more is allowed, whatever a header asks for."""

    def __init__(self, role: FileRole, read: Read, size_bytes: int, max_read_bytes: int = MAX_READ_BYTES) -> None:
        self.role = role
        self.size_bytes = size_bytes
        self._read = read
        self._left = max_read_bytes

    def again(self, max_read_bytes: int) -> Source:
        """The same file, for somebody who may read so much of it."""
        return Source(self.role, self._read, self.size_bytes, max_read_bytes)

    def part(self, offset: int, length: int) -> Source:
        """A part of the file as a file of its own."""
        return Source(self.role, lambda at, count: self._read(offset + at, count), length)

    def piece(self, offset: int, length: int) -> bytes:
        """What the file holds there: shorter, or empty, beyond its end. Offsets may be negative: nothing is there."""
        length = min(length, self.size_bytes - offset)
        if offset < 0 or length <= 0:
            return b""
        if length > min(MAX_PIECE_BYTES, self._left):
            raise self.refusal("image.header_size", "its header is too large", "convert it with qemu-img convert")
        self._left -= length
        return self._read(offset, length)[:length]

    def whole(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. :raise ImageRefused: the file ends before."""
        found = self.piece(offset, length)
        if len(found) != length:
            raise self.refusal("image.truncated", "it ends within its header", "upload the whole file")
        return found

    def refusal(self, code: str, message: str, remedy: str) -> ImageRefused:
        """The error to raise: `message` says what the file is or does (`it …`)."""
        reason = Reason(code, message, subject=self.role.value, remedy=remedy)
        return ImageRefused(f"the {self.role.value} file is refused: {message}", [reason])
