"""What the two ends of a stream say to each other, as bytes.

source → target                                target → source
OFFER  keys of a batch's pages     (control)   ANSWER  which of them are held        (control)
DATA   a batch without those       (bulk)      DONE    up to here QEMU has taken it  (control)
END    no more comes               (bulk)      BACK    bytes of QEMU's return path   (control)
FAIL   and why                     (control)   BACK_END, FAIL likewise               (control)
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

import msgspec

from novacron.agent.stream.batch import MAX_BODY_BYTES
from novacron.agent.stream.table import KEY_BYTES
from novacron.errors import Malformed

MAX_MESSAGE_BYTES = MAX_BODY_BYTES + (64 << 10)
MAX_REASON_BYTES = 1000
_NUMBER = struct.Struct("!I")
_DATA = struct.Struct("!II?32s")


class Kind(enum.IntEnum):
    OFFER = 1
    DATA = 2
    END = 3
    FAIL = 4
    ANSWER = 5
    DONE = 6
    BACK = 7
    BACK_END = 8


class Message(msgspec.Struct, frozen=True):
    """kind and what follows; `number` is a batch's where it speaks of one."""

    kind: Kind
    number: int
    rest: bytes


class Data(msgspec.Struct, frozen=True):
    """A batch on its way. fresh: a new zstd frame begins. digest: of the piece as it has to be in the end."""

    number: int
    body_bytes: int
    fresh: bool
    digest: bytes
    packed: bytes

    def pack(self) -> bytes:
        head = _DATA.pack(self.number, self.body_bytes, self.fresh, self.digest)
        return bytes([Kind.DATA]) + head + self.packed


def message(kind: Kind, number: int = 0, rest: bytes = b"") -> bytes:
    return bytes([kind]) + _NUMBER.pack(number) + rest


def read(raw: bytes) -> Message:
    """:raise Malformed: this is none."""
    try:
        return Message(Kind(raw[0]), _NUMBER.unpack_from(raw, 1)[0], raw[1 + _NUMBER.size :])
    except (ValueError, IndexError, struct.error) as wrong:
        raise Malformed(f"the other end of the stream speaks otherwise: {wrong}") from wrong


def read_data(raw: bytes) -> Data:
    """A DATA message. :raise Malformed: it is none, or larger than any."""
    try:
        number, size, fresh, digest = _DATA.unpack_from(raw, 1)
    except struct.error as wrong:
        raise Malformed(f"a piece of the stream is cut short: {wrong}") from wrong
    if size > MAX_BODY_BYTES:
        raise Malformed(f"a piece of the stream has {size} bytes, more than {MAX_BODY_BYTES}")
    return Data(number, size, fresh, digest, raw[1 + _DATA.size :])


def offer(number: int, keys: Sequence[bytes]) -> bytes:
    return message(Kind.OFFER, number, b"".join(keys))


def keys_of(rest: bytes) -> list[bytes]:
    """:raise Malformed: no whole number of keys."""
    if len(rest) % KEY_BYTES:
        raise Malformed("an offer of pages is cut short")
    return [rest[at : at + KEY_BYTES] for at in range(0, len(rest), KEY_BYTES)]


def answer(number: int, held: Sequence[bool]) -> bytes:
    """A bit a page."""
    bits = sum(1 << at for at, there in enumerate(held) if there)
    return message(Kind.ANSWER, number, bits.to_bytes(-(-len(held) // 8), "little"))


def held_of(rest: bytes, count: int) -> list[bool]:
    """:raise Malformed: an answer to another question."""
    if len(rest) != -(-count // 8):
        raise Malformed("an answer has not as many pages as were offered")
    bits = int.from_bytes(rest, "little")
    return [bool(bits >> at & 1) for at in range(count)]
