"""A piece of a migration stream taken apart into page contents and the rest, and put together again, byte for byte."""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from novacron.errors import Malformed

PAGE_BYTES = 4096
MAX_RAW_BYTES = 1 << 20
MAX_BODY_BYTES = 4 << 20
"""No piece's body is as large: an op takes 13 bytes and stands for at least 8 of the stream."""

LITERAL, PAGES, ZEROS = range(3)
PAGE_FLAGS = 0x28  # RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE
ZERO_FLAGS = 0x22  # RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE

_OP = struct.Struct("<BIQ")  # kind, count, address of the first page (LITERAL: count bytes, address 0)
_HEAD = struct.Struct("<III")  # ops, bytes of literals, pages sent
_RECORD = struct.Struct(">Q")

Op = tuple[int, int, int]
Page = bytes | memoryview


class Haste(enum.IntEnum):
    """Who waits for a batch: nobody in particular, a guest that stands still, or a guest that runs without it."""

    NONE = 0
    STANDS = 1
    AWAITED = 2


class Batch(NamedTuple):
    """What `raw` consists of, in order. pages: where in it the contents of its PAGES begin."""

    raw: bytes
    ops: Sequence[Op]
    pages: Sequence[int]
    haste: Haste

    def contents(self) -> list[memoryview]:
        """Its pages."""
        view = memoryview(self.raw)
        return [view[at : at + PAGE_BYTES] for at in self.pages]

    def digest(self) -> bytes:
        """What a rebuilt piece is compared with."""
        return digest_of(self.raw)


def digest_of(raw: bytes) -> bytes:
    """256 bits, with no key: the channel is authenticated, this guards against mistakes in putting together."""
    return hashlib.sha256(raw).digest()


def body_of(batch: Batch, held: Sequence[bool]) -> bytes:
    """All of a batch except the pages that the other side holds: `held` has one truth for each of its pages."""
    view = memoryview(batch.raw)
    literals, at = [], 0
    for kind, count, _ in batch.ops:
        if kind == LITERAL:
            literals.append(view[at : at + count])
            at += count
        else:
            at += count * (8 + PAGE_BYTES if kind == PAGES else 9)
    mask = bytes(0 if there else 1 for there in held)
    sent = [view[at : at + PAGE_BYTES] for at, there in zip(batch.pages, held, strict=True) if not there]
    head = _HEAD.pack(len(batch.ops), sum(map(len, literals)), len(sent))
    return b"".join([head, *(_OP.pack(*op) for op in batch.ops), *literals, mask, *sent])


def rebuild(body: bytes, held: Sequence[bytes | None]) -> tuple[bytes, list[Page]]:
    """The piece, and its pages in order; held: the pages this side has, None for one that has to be in `body`.

    :raise Malformed: this is no body, or it wants pages that are not held.
    """
    try:
        return _rebuild(body, held)
    except (struct.error, IndexError, ValueError, StopIteration) as wrong:
        raise Malformed(f"a piece of the stream cannot be put together: {wrong}") from wrong


def _rebuild(body: bytes, held: Sequence[bytes | None]) -> tuple[bytes, list[Page]]:
    count, literal_bytes, sent = _HEAD.unpack_from(body)
    ops_end = _HEAD.size + count * _OP.size
    ops = list(_OP.iter_unpack(body[_HEAD.size : ops_end]))
    total = sum(count for kind, count, _ in ops if kind == PAGES)
    mask_at = ops_end + literal_bytes
    pages_at = mask_at + total
    if len(body) != pages_at + sent * PAGE_BYTES or _size_of(ops) > MAX_RAW_BYTES * 2:
        raise ValueError("its sizes do not match")
    pages = _pages(body[mask_at:pages_at], memoryview(body)[pages_at:], held)
    return _join(ops, body[ops_end:mask_at], pages), pages


def _size_of(ops: Sequence[Op]) -> int:
    each = {LITERAL: 1, PAGES: 8 + PAGE_BYTES, ZEROS: 9}
    if not all(kind in each for kind, _, _ in ops):
        raise ValueError("it holds an unknown op")
    return sum(count * each[kind] for kind, count, _ in ops)


def _pages(mask: bytes, sent: memoryview, held: Sequence[bytes | None]) -> list[Page]:
    """The pages in order, from what came and what is held."""
    pages: list[Page] = []
    at = 0
    for number, came in enumerate(mask):
        if came:
            page: Page = sent[at : at + PAGE_BYTES]
            at += PAGE_BYTES
        else:
            page = held[number] or b""
        if len(page) != PAGE_BYTES:
            raise ValueError("it wants a page that is not here")
        pages.append(page)
    return pages


def _join(ops: Sequence[Op], literals: bytes, pages: Sequence[Page]) -> bytes:
    parts: list[Page] = []
    at = 0
    left = iter(pages)
    for kind, count, address in ops:
        if kind == LITERAL:
            parts.append(literals[at : at + count])
            at += count
        elif kind == PAGES:
            for number in range(count):
                parts.append(_RECORD.pack(address + number * PAGE_BYTES | PAGE_FLAGS))
                parts.append(next(left))
        else:
            records = (_RECORD.pack(address + number * PAGE_BYTES | ZERO_FLAGS) for number in range(count))
            parts.append(b"\0".join(records) + b"\0")
    return b"".join(parts)
