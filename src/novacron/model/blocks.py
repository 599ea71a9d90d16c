"""Blocks of a disk as their digests: what is asked of both sides of a move, and what differs. Pure."""

from __future__ import annotations

import msgspec

BLOCK_BYTES = 64 << 10
MAX_BLOCKS = 1 << 14
"""Of one asking: 1 GiB."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """How many blocks are to be drawn, and by which seed."""

    count: int
    seed: str


class BlockDigests(msgspec.Struct, frozen=True, kw_only=True):
    """Of each block by its number: its digest; beyond the disk's end: empty. written: those not as they came.
    at: (source) the file or device that the disk is on its node; empty: it is neither.
    """

    blocks: tuple[int, ...]
    digests: tuple[str, ...]
    written: tuple[int, ...] = ()
    at: str = ""


def differing(source: BlockDigests, target: BlockDigests) -> tuple[int, ...]:
    """Blocks of the target's that are not like the source's, though nobody wrote to them there."""
    there, excused = dict(zip(source.blocks, source.digests, strict=True)), set(target.written)
    found = zip(target.blocks, target.digests, strict=True)
    return tuple(block for block, digest in found if block not in excused and there.get(block) != digest)
