"""The store contract. SQLite and etcd pass the same suite (tests/contract/test_store.py).

Keys are text, ordered by their UTF-8 bytes. One strictly growing revision numbers every transaction of the whole
store; a record carries the revision that made it and the one that last changed it. No business rule lives here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

MAX_KEY_BYTES = 512
MAX_VALUE_BYTES = 1 << 20
MAX_OPS = 1024  # a hundred VMs with their names and volumes at once
MAX_COMMIT_BYTES = 8 << 20  # of values; etcd is started with flags for both (etcd_errors.FLAGS)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One record as stored."""

    key: str
    value: bytes
    created: int  # revision
    modified: int  # revision


class Put(msgspec.Struct, frozen=True):
    key: str
    value: bytes


class Delete(msgspec.Struct, frozen=True):
    """Deleting what is absent changes nothing and is no error."""

    key: str


class Expect(msgspec.Struct, frozen=True):
    """The key's `modified` revision must be this; 0: the key must be absent."""

    key: str
    modified: int


class Change(msgspec.Struct, frozen=True):
    """One key changed by one transaction. `value` is None when it was deleted; `previous` None when created.

    index: place among the changes of its revision, from 0, in the order of the transaction's operations. A watch of a
    prefix may count only those under it.
    """

    revision: int
    index: int
    key: str
    value: bytes | None
    previous: bytes | None


class Page(msgspec.Struct, frozen=True):
    """Records in key order, all as of one `revision`; more: whether keys beyond the limit exist."""

    entries: tuple[Entry, ...]
    revision: int
    more: bool


class Store(Protocol):
    """What every store does. All methods may raise StoreUnavailable; nothing is half applied."""

    async def get(self, key: str) -> Entry | None:
        """The record now, or None. Sees every write acknowledged before the call."""
        ...

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        """Records whose key starts with `prefix` and is greater than `after`, at most `limit`."""
        ...

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        """Apply all of `ops` if all of `expect` holds; the new revision (the current one if nothing changed).

        When it returns, the change survives a crash of this process and of the machine.

        :raise CompareFailed: an expectation did not hold; nothing was applied.
        :raise InvalidInput: a key or value over its bound, a key named twice, more than MAX_OPS operations or
            than MAX_COMMIT_BYTES of values.
        :raise StoreUnavailable: the outcome is unknown: win a conflicting write, never decide by reading.
        """
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        """Every change under `prefix` with a revision greater than `after`, for ever, in order, none twice.

        One item holds all the changes of one revision. Close the iterator (aclose) to stop.

        :raise Compacted: (from the iterator) a revision after `after` is no longer kept.
        """
        ...

    async def revision(self) -> int:
        """The revision of the last transaction; 0 for a store never written."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget changes up to and including `revision`. Current records are untouched."""
        ...

    async def close(self) -> None:
        """Let go of files and threads; iterators of `watch` end. Idempotent."""
        ...
