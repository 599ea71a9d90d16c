"""What has to arrive once and in order over channels that break: numbered chunks, kept until they are acknowledged."""

from __future__ import annotations

import collections
from collections.abc import Iterable

import msgspec

from novacron.errors import Malformed

CHUNK_BYTES = 32 << 10
"""So long waits at most, on 100 Mbit/s, whoever may go first: 3 ms."""
LANES = CONTROL, BULK = 0, 1


class Chunk(msgspec.Struct, frozen=True):
    """A part of a message. last: the message ends with it."""

    lane: int
    seq: int
    last: bool
    payload: bytes


class Outgoing:
    """One lane's sending side."""

    def __init__(self, lane: int) -> None:
        self._lane = lane
        self._next = 0
        self._waiting: collections.deque[Chunk] = collections.deque()
        self._flying: dict[int, tuple[Chunk, object]] = {}  # seq → chunk and the channel that carries it, in order
        self.waiting_bytes = 0
        self.flying_bytes = 0

    def add(self, message: bytes) -> None:
        """Cut a message into chunks that wait to be sent."""
        for at in range(0, max(1, len(message)), CHUNK_BYTES):
            payload = message[at : at + CHUNK_BYTES]
            self._waiting.append(Chunk(self._lane, self._next, at + CHUNK_BYTES >= len(message), payload))
            self._next += 1
            self.waiting_bytes += len(payload)

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def pop(self, channel: object) -> Chunk:
        """The next chunk, which flies over that channel from now on."""
        chunk = self._waiting.popleft()
        self._flying[chunk.seq] = (chunk, channel)
        self.waiting_bytes -= len(chunk.payload)
        self.flying_bytes += len(chunk.payload)
        return chunk

    def acknowledge(self, upto: int) -> int:
        """All before `upto` has arrived; how many bytes that sets free. :raise Malformed: more than there were."""
        if upto > self._next:
            raise Malformed("the other end of the stream acknowledges what was never sent")
        arrived = [seq for seq in self._flying if seq < upto]
        freed = sum(len(self._flying.pop(seq)[0].payload) for seq in arrived)
        self.flying_bytes -= freed
        while self._waiting and self._waiting[0].seq < upto:  # it was sent again, and the first one did arrive
            self.waiting_bytes -= len(self._waiting.popleft().payload)
        return freed

    def lost(self, channel: object) -> None:
        """What flew over that channel waits again, before all else."""
        back = [chunk for chunk, carrier in self._flying.values() if carrier is channel]
        for chunk in back:
            del self._flying[chunk.seq]
            self.flying_bytes -= len(chunk.payload)
            self.waiting_bytes += len(chunk.payload)
        self._waiting = collections.deque(sorted((*back, *self._waiting), key=lambda chunk: chunk.seq))

    @property
    def empty(self) -> bool:
        """Everything has arrived."""
        return not self._waiting and not self._flying


class Incoming:
    """One lane's receiving side. Holds what came early, up to `limit_bytes`."""

    def __init__(self, limit_bytes: int, message_bytes: int) -> None:
        self._limit, self._message_limit = limit_bytes, message_bytes
        self.next = 0
        self._early: dict[int, Chunk] = {}
        self.early_bytes = 0
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, chunk: Chunk) -> Iterable[bytes]:
        """The messages that are complete with it. One that came before gives none.

        :raise Malformed: no sender of ours sends so much.
        """
        if chunk.seq < self.next or chunk.seq in self._early:
            return []
        self._early[chunk.seq] = chunk
        self.early_bytes += len(chunk.payload)
        if self.early_bytes > self._limit:
            raise Malformed("the other end of the stream sends too far ahead")
        return self._ready()

    def _ready(self) -> list[bytes]:
        whole = []
        while (chunk := self._early.pop(self.next, None)) is not None:
            self.next += 1
            self.early_bytes -= len(chunk.payload)
            self._parts.append(chunk.payload)
            self._size += len(chunk.payload)
            if self._size > self._message_limit:
                raise Malformed("the other end of the stream sends a message without end")
            if chunk.last:
                whole.append(b"".join(self._parts))
                self._parts, self._size = [], 0
        return whole
