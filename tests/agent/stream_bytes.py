"""Migration streams as QEMU writes them, made up page by page."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

PAGE = 4096
HEAD = b"QEVM\0\0\0\x03"
CONFIGURATION = b"\x07" + struct.pack(">I", 9) + b"pc-q35-7." + b"\x05\x18configuration/capability\0\0\0\x01\0\0\0\0"
EOS = struct.pack(">Q", 0x10)


def footer(section: int) -> bytes:
    return b"\x7e" + struct.pack(">I", section)


def setup(section: int = 2) -> bytes:
    """Memory's first section, behind one of another kind."""
    other = b"\x01" + struct.pack(">I", 1) + b"\x05other" + struct.pack(">II", 0, 1) + b"whatever" + footer(1)
    blocks = struct.pack(">Q", 1 << 25 | 0x04) + b"\x06pc.ram" + struct.pack(">Q", 1 << 25)
    return (
        other
        + b"\x01"
        + struct.pack(">I", section)
        + b"\x03ram"
        + struct.pack(">II", 0, 4)
        + blocks
        + EOS
        + footer(section)
    )


def records(pages: Sequence[bytes], first: int = 0, *, named: bool = True) -> bytes:
    """A page each, an empty one as QEMU says that it is. The first names its block."""
    made = bytearray()
    for number, page in enumerate(pages):
        address = (first + number) * PAGE
        more = 0 if named and number == 0 else 0x20
        name = b"" if more else b"\x06pc.ram"
        if page.count(0) == PAGE:
            made += struct.pack(">Q", address | 0x02 | more) + name + b"\0"
        else:
            made += struct.pack(">Q", address | 0x08 | more) + name + page
    return bytes(made)


def part(body: bytes, *, last: bool = False, section: int = 2) -> bytes:
    return (b"\x03" if last else b"\x02") + struct.pack(">I", section) + body + EOS + footer(section)


def devices(dice: random.Random) -> bytes:
    """What follows memory: one device, the end, a description of what there was."""
    device = b"\x04" + struct.pack(">I", 7) + b"\x03cpu" + struct.pack(">II", 0, 12) + dice.randbytes(3000) + footer(7)
    return device + b"\0" + b"\x06" + struct.pack(">I", 20) + b'{"configuration": {}}'[:20]


def contents(dice: random.Random, count: int, *, zeros: float = 0.3) -> list[bytes]:
    """Pages: some empty, some that pack well, some that do not."""
    kinds = [
        lambda: bytes(PAGE),
        lambda: bytes(dice.choices(b"abcdefgh", k=16)) * (PAGE // 16),
        lambda: dice.randbytes(PAGE),
    ]
    return [kind() for kind in dice.choices(kinds, weights=[zeros, (1 - zeros) / 2, (1 - zeros) / 2], k=count)]


def stream(pages: Sequence[bytes], seed: int = 1, *, at_the_end: int = 3) -> bytes:
    """All of a migration: the last few pages come while the guest stands still."""
    dice = random.Random(seed)
    running, still = pages[: len(pages) - at_the_end], pages[len(pages) - at_the_end :]
    middle = len(running) // 2
    memory = part(records(running[:middle])) + part(records(running[middle:], middle))
    return HEAD + CONFIGURATION + setup() + memory + part(records(still, len(running)), last=True) + devices(dice)


def postcopy(before: Sequence[bytes], behind: Sequence[bytes]) -> bytes:
    """A migration whose guest runs at the target before its last pages are there."""
    dice = random.Random(1)
    package = struct.pack(">BHHI", 8, 8, 4, 5000) + dice.randbytes(5000)
    late = part(records(behind, len(before)))
    return HEAD + CONFIGURATION + setup() + part(records(before)) + package + late + devices(dice)
