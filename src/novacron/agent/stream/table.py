"""Where a page lies, by its key: a table of fixed size, 12 bytes a page, in which old keys make room for new ones."""

from __future__ import annotations

import hashlib

from novacron.agent.stream.batch import Page

KEY_BYTES = 12
WAYS = 16
Hash = hashlib.blake2b


def hasher(secret: bytes) -> Hash:
    """What page keys are made with: copy it, feed it the page, take its digest.

    Keyed, so that a guest cannot look for pages whose keys agree; see docs/decisions for the 96 bits.
    """
    return hashlib.blake2b(key=secret, digest_size=KEY_BYTES)


def key_of(fresh: Hash, page: Page) -> bytes:
    """The key of one page."""
    made = fresh.copy()
    made.update(page)
    return made.digest()


class KeyTable:
    """Slots 0 to `slots` - 1 in buckets of WAYS; within its bucket the oldest key makes room."""

    def __init__(self, slots: int) -> None:
        self._buckets = max(1, slots // WAYS)
        self.slots = self._buckets * WAYS
        self._keys = bytearray(self.slots * KEY_BYTES)
        self._turn = bytearray(self._buckets)

    def find(self, key: bytes) -> int | None:
        """The slot of a key."""
        start = self._bucket(key) * WAYS * KEY_BYTES
        end = start + WAYS * KEY_BYTES
        at = self._keys.find(key, start, end)
        while at >= 0 and (at - start) % KEY_BYTES:
            at = self._keys.find(key, at + 1, end)
        return at // KEY_BYTES if at >= 0 else None

    def room(self, key: bytes) -> int:
        """The slot a new key shall have. What was there is forgotten; the slot is nobody's until `put`."""
        bucket = self._bucket(key)
        slot = bucket * WAYS + self._turn[bucket]
        self._turn[bucket] = (self._turn[bucket] + 1) % WAYS
        self.forget(slot)
        return slot

    def put(self, slot: int, key: bytes) -> None:
        self._keys[slot * KEY_BYTES : (slot + 1) * KEY_BYTES] = key

    def forget(self, slot: int) -> None:
        self.put(slot, bytes(KEY_BYTES))

    def _bucket(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "big") % self._buckets
