"""Finds the pages in QEMU's migration stream, of version 3 as QEMU 2.4 to 10 write it.

Nothing depends on its being right: a batch is rebuilt byte for byte whatever it was taken for, so a stream it does
not understand passes as it is and only becomes larger. Of sections other than memory's it knows the head alone and
looks for their footer. Multifd does not send its pages on this stream, and XBZRLE has none of their contents.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

from novacron.agent.stream.batch import LITERAL, PAGE_BYTES, PAGE_FLAGS, PAGES, ZERO_FLAGS, ZEROS, Batch, Haste, Op

MAGIC = b"QEVM\0\0\0\x03"
MAX_HELD_BYTES = 8 + 1 + 255 + PAGE_BYTES
"""The longest that has to be whole to be understood: a page that names its block."""

_MEMORY = b"\x03ram\0\0\0\0\0\0\0\x04"  # name, instance, version: the head of memory's first section
_EOS = b"\0\0\0\0\0\0\0\x10"
_FOOTER = 0x7E
_START, _PART, _END, _FULL, _COMMAND = 1, 2, 3, 4, 8
_PACKAGED = 8  # the command that carries all devices when post-copy begins
_NEW_PAGE, _NEW_ZERO, _CONTINUE = 0x08, 0x02, 0x20

_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_COMMAND_HEAD = struct.Struct(">BHH")


class _At(enum.Enum):
    """Where in the stream it is."""

    BEGINNING = enum.auto()
    SETUP = enum.auto()  # somewhere before memory's first section
    SECTION = enum.auto()
    MEMORY = enum.auto()
    FOREIGN = enum.auto()  # in a section of unknown contents
    SKIP = enum.auto()
    LOST = enum.auto()  # for good


class Splitter:
    """Takes one stream apart, piece by piece as it comes. What it holds back is bounded by MAX_HELD_BYTES."""

    def __init__(self) -> None:
        self._at = _At.BEGINNING
        self._memory_id = self._section_id = -1
        self._skip = 0
        self._haste = Haste.NONE
        self._kept = b""
        self._passed = 0  # of _kept: already given away
        self._buffer = b""
        self._ops: list[Op] = []
        self._pages: list[int] = []
        self._done = 0
        self._step: dict[_At, Callable[[int], int]] = {
            _At.BEGINNING: self._beginning,
            _At.SETUP: self._setup,
            _At.SECTION: self._section,
            _At.MEMORY: self._records,
            _At.FOREIGN: self._foreign,
            _At.SKIP: self._skipping,
            _At.LOST: self._lost,
        }

    @property
    def understands(self) -> bool:
        """Whether it still looks for pages."""
        return self._at is not _At.LOST

    @property
    def holds(self) -> bool:
        """Whether it holds back what `release` would give."""
        return len(self._kept) > self._passed

    def feed(self, data: bytes) -> Batch | None:
        """What is complete after this much more of the stream; None: nothing yet."""
        self._buffer = self._kept + data
        self._ops, self._pages, self._done = [], [], self._passed
        at, haste = 0, self._haste
        while at < len(self._buffer):
            before = self._at
            after = self._step[before](at)
            haste = max(haste, self._haste)
            if after == at and self._at is before:
                if len(self._buffer) - at > MAX_HELD_BYTES:  # complete, and still not understood
                    self._at = _At.LOST
                    continue
                break
            at = after
        self._pass_up_to(max(at, self._passed))
        raw = self._buffer[self._passed : self._done]
        batch = Batch(raw, self._ops, [page - self._passed for page in self._pages], haste) if raw else None
        self._kept, self._passed, self._buffer = self._buffer[at:], self._done - at, b""
        return batch

    def release(self) -> Batch:
        """What it holds back, since no more of the stream seems to come for now."""
        raw = self._kept[self._passed :]
        self._passed = len(self._kept)
        return Batch(raw, [(LITERAL, len(raw), 0)], [], self._haste)

    # -- each returns up to where it understood; the same place: more is needed, or another step's turn -----------

    def _beginning(self, at: int) -> int:
        head = self._buffer[at : at + len(MAGIC)]
        if head == MAGIC:
            self._at = _At.SETUP
            return at + len(MAGIC)
        if not MAGIC.startswith(head):
            self._at = _At.LOST
        return at

    def _setup(self, at: int) -> int:
        found = self._buffer.find(_MEMORY, at)
        if found < at + 5 or self._buffer[found - 5] != _START:
            return max(at, len(self._buffer) - len(_MEMORY) - 5)
        self._memory_id = self._section_id = _U32.unpack_from(self._buffer, found - 4)[0]
        self._at = _At.FOREIGN
        return found + len(_MEMORY)

    def _section(self, at: int) -> int:
        left = len(self._buffer) - at
        kind = self._buffer[at]
        if kind not in (_START, _PART, _END, _FULL, _COMMAND):
            self._at = _At.LOST
            return at
        if left < 6:
            return at
        if kind == _COMMAND:
            return self._command(at, left)
        section = _U32.unpack_from(self._buffer, at + 1)[0]
        if self._haste is not Haste.AWAITED:
            self._haste = Haste.STANDS if kind in (_END, _FULL) else Haste.NONE
        self._section_id = section
        if kind in (_PART, _END):
            self._at = _At.MEMORY if section == self._memory_id else _At.FOREIGN
            return at + 5
        end = at + 6 + self._buffer[at + 5] + 8
        if end > len(self._buffer):
            return at
        self._at = _At.FOREIGN
        return end

    def _command(self, at: int, left: int) -> int:
        _, command, length = _COMMAND_HEAD.unpack_from(self._buffer, at)
        end = at + _COMMAND_HEAD.size
        if command == _PACKAGED:
            if left < _COMMAND_HEAD.size + length or length != _U32.size:
                return at
            length += _U32.unpack_from(self._buffer, end)[0]
            self._haste = Haste.AWAITED
        self._skip, self._at = length, _At.SKIP
        return end

    def _skipping(self, at: int) -> int:
        taken = min(self._skip, len(self._buffer) - at)
        self._skip -= taken
        if not self._skip:
            self._at = _At.SECTION
        return at + taken

    def _foreign(self, at: int) -> int:
        footer = bytes([_FOOTER]) + _U32.pack(self._section_id)
        found = self._buffer.find(footer, at)
        if found < 0:
            return max(at, len(self._buffer) - len(footer) + 1)
        self._at = _At.SECTION
        return found + len(footer)

    def _lost(self, _: int) -> int:
        return len(self._buffer)

    def _records(self, at: int) -> int:
        """Memory's records: the one loop that meets every page."""
        buffer, end, unpack = self._buffer, len(self._buffer), _U64.unpack_from
        while at + 9 <= end:
            head = unpack(buffer, at)[0]
            flags = head & 0xFFF
            if at < self._passed:
                after = self._named(at, head)  # its beginning is given away: the rest of it is nothing but bytes
            elif flags == PAGE_FLAGS:
                after = at + 8 + PAGE_BYTES
                if after > end:
                    break
                self._add(PAGES, head - PAGE_FLAGS, at, after)
                self._pages.append(at + 8)
            elif flags == ZERO_FLAGS and not buffer[at + 8]:
                after = at + 9
                self._add(ZEROS, head - ZERO_FLAGS, at, after)
            else:
                after = self._named(at, head)
            if after == at or after > end:
                break
            at = after
            if self._at is not _At.MEMORY:
                break
        return at

    def _named(self, at: int, head: int) -> int:
        """Behind a record that is not simply one more page of the same block; `at`: more is needed, or it is lost."""
        flags = head & 0xFFF
        if head == _U64.unpack(_EOS)[0]:
            self._at = _At.FOREIGN  # its footer is all that is left of it
            return at + 8
        content = {_NEW_PAGE: PAGE_BYTES, _NEW_ZERO: 1}.get(flags & ~_CONTINUE)
        if content is None:
            self._at = _At.LOST
            return at
        name = 0 if flags & _CONTINUE else 1 + self._buffer[at + 8]
        return at + 8 + name + content  # the one page behind a block's name stays among the bytes

    def _add(self, kind: int, address: int, at: int, after: int) -> None:
        self._pass_up_to(at)
        self._done = after
        if self._ops:
            last, count, first = self._ops[-1]
            if last == kind and address == first + count * PAGE_BYTES:
                self._ops[-1] = (kind, count + 1, first)
                return
        self._ops.append((kind, 1, address))

    def _pass_up_to(self, at: int) -> None:
        """Everything from what is done up to here is bytes."""
        if at <= self._done:
            return
        count = at - self._done
        self._done = at
        if self._ops and self._ops[-1][0] == LITERAL:
            self._ops[-1] = (LITERAL, self._ops[-1][1] + count, 0)
        else:
            self._ops.append((LITERAL, count, 0))
