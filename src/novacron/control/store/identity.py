"""Which store this is, and whether it is older than it was: a server does not go on from a state of the past.

    store/identity               in the store: its id, made by its first server, and how often it was restored
    <data_dir>/store.seen        beside each server: that identity, and a revision the store has reached

What follows the records of a store that was put back (which node owns a VM, what may be deleted) may be wrong by now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from novacron.clock import Clock
from novacron.control.store.base import Expect, Put, Store
from novacron.durable import write_durably
from novacron.errors import CompareFailed, Reason, StoreCorrupt, StoreUnavailable

KEY = "store/identity"
SEEN_FILE = "store.seen"
NOTE_EVERY_S = 60.0


class Identity(msgspec.Struct, frozen=True):
    """restored: how often the store was made from a backup of itself."""

    id: str
    restored: int = 0


class _Seen(msgspec.Struct, frozen=True):
    identity: Identity
    revision: int


class Seen:
    """What this server has seen of its store, kept in a file."""

    def __init__(self, store: Store, file: Path, new_id: Callable[[], str]) -> None:
        self._store = store
        self._file = file
        self._new_id = new_id

    async def admit(self) -> None:
        """Give a store that nobody has seen its identity, then as `note`."""
        if self._read() is None:
            await self._begin()
        await self.note()

    async def note(self) -> None:
        """Check the store against what was seen of it, then keep how far it has come.

        :raise StoreUnavailable: it is another one, an older one, or was restored; nothing was written, nor is kept.
        """
        seen = self._read()
        if seen is not None:
            await self._refuse(seen)
        entry = await self._store.get(KEY)
        if entry is None:
            raise StoreCorrupt(f"the store has no record {KEY} any more: restore it from a backup")
        seen = _Seen(_decode(entry.value), await self._store.revision())
        write_durably(self._file, msgspec.json.encode(seen))

    async def run(self, clock: Clock) -> None:
        """Note it for ever. :raise StoreUnavailable: it was put back meanwhile, and no start will take it."""
        while True:
            await clock.sleep(NOTE_EVERY_S)
            await self.note()

    async def _begin(self) -> None:
        with contextlib.suppress(CompareFailed):  # it has one, of another server or another time
            await self._store.commit([Put(KEY, msgspec.json.encode(Identity(self._new_id())))], [Expect(KEY, 0)])

    async def _refuse(self, seen: _Seen) -> None:
        entry = await self._store.get(KEY)
        identity = _decode(entry.value) if entry else None
        revision = await self._store.revision()
        if identity is None or identity.id != seen.identity.id:
            what = "is another one than the one this server has worked with"
        elif identity.restored != seen.identity.restored:
            what = "was restored from a backup"
        elif revision < seen.revision:
            what = f"is older than it was: at revision {revision}, seen was {seen.revision}"
        else:
            return
        words = f"the store {what}"
        remedy = (
            "give the right --store; if this is the store you mean, see that no VM runs where its records do not say,"
            f" delete {self._file} and start again (docs/store.md)"
        )
        raise StoreUnavailable(words, [Reason("store.restored", words, subject=KEY, remedy=remedy)])

    def _read(self) -> _Seen | None:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=_Seen)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as wrong:
            raise StoreUnavailable(
                f"cannot read {self._file}, which says what this server has seen: {wrong}"
            ) from wrong


def restored(value: bytes) -> bytes:
    """The identity as it is in a store made from a backup."""
    identity = _decode(value)
    return msgspec.json.encode(Identity(identity.id, identity.restored + 1))


def _decode(value: bytes) -> Identity:
    try:
        return msgspec.json.decode(value, type=Identity)
    except msgspec.DecodeError as wrong:
        raise StoreCorrupt(f"the record {KEY} cannot be read: {wrong}") from wrong
