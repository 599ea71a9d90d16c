"""The embedded store: one SQLite file, one writer thread with group commit, watches fed from its change log.

Reads run in the event loop: a point read takes some 10 µs, less than handing it to a thread (docs/decisions/0001).
Watches hold no queue: each remembers a revision, is woken after a commit, and reads the log in bounded bites, so a
slow one costs no memory; when the log no longer reaches back to it, it is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from novacron.control.store import bounds, sqlite_file
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put
from novacron.control.store.sqlite_writer import PAGE_BYTES, Transaction, Writer
from novacron.errors import Compacted, CompareFailed, StoreUnavailable
from novacron.model.event import revision_of, seq_of

BITE_REVISIONS = 500  # a watch reads at most this many revisions of the log at once,
BITE_BYTES = 1 << 20  # and stops after the revision that exceeds this
COMPACT_ROWS = 500  # forgotten in one transaction, so that writers wait milliseconds at most
PAGES_A_CHANGE = 4  # written to the log at least, for a guess when to checkpoint

Transactions = list[tuple[Change, ...]]


class _Opened(msgspec.Struct, frozen=True):
    """What an open store holds."""

    path: Path
    lock: int
    reader: sqlite3.Connection
    writer: sqlite3.Connection
    revision: int


class SqliteStore:
    """Implements `Store`. `open` makes one; `close` lets go of file and thread."""

    def __init__(self, opened: _Opened) -> None:
        self._path = opened.path
        self._lock = opened.lock
        self._reader = opened.reader
        self._pulse = asyncio.Event()
        self._closed = False
        self._writer = Writer(opened.path, opened.writer, opened.revision, self._wake)

    @classmethod
    async def open(cls, path: Path, *, durable: bool = True, floor: int = 0) -> Self:
        """The store in `path` (made when missing; its directory must exist). durable=False: no fsync, for tests.

        floor: the revisions of one that nobody has written begin after it.

        :raise StoreCorrupt: damaged, not ours, or of a newer schema. :raise StoreUnavailable: in use, or no access.
        """
        return cls(await asyncio.to_thread(_open, path, durable, floor))

    async def get(self, key: str) -> Entry | None:
        try:
            row = (
                self._db()
                .execute("SELECT value, created, modified FROM records WHERE key = ?", (bounds.bytes_of(key),))
                .fetchone()
            )
        except sqlite3.Error as wrong:
            raise sqlite_file.meaning(wrong, self._path) from wrong
        return None if row is None else Entry(key, *row)

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        low, high = bounds.range_of(prefix)
        if after:
            low = max(low, bounds.bytes_of(after) + b"\0")  # the first key greater than `after`
        with _Snapshot(self._db(), self._path) as db:
            revision = sqlite_file.revision(db)
            rows = db.execute(
                "SELECT key, value, created, modified FROM records WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
                (low, high, limit + 1),
            ).fetchall()
        entries = tuple(Entry(key.decode(), *rest) for key, *rest in rows[:limit])
        return Page(entries, revision, len(rows) > limit)

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        bounds.check(ops, expect)
        return await self._writer.submit(lambda transaction: _apply(transaction, ops, expect))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        reach = bounds.range_of(prefix)
        while not self._closed:
            pulse = self._pulse  # taken before reading: a commit during the read wakes the wait below
            found, after, behind = self._bite(reach, after)
            for changes in found:
                yield changes
            if behind:
                await asyncio.sleep(0)  # let others run between two bites
            else:
                await pulse.wait()

    async def revision(self) -> int:
        with _Snapshot(self._db(), self._path) as db:
            return sqlite_file.revision(db)

    async def compact(self, revision: int) -> None:
        while await self._writer.submit(lambda transaction: _forget(transaction, revision)):
            pass

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        await self._writer.close()
        self._reader.close()
        os.close(self._lock)

    def _wake(self) -> None:
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()

    def _db(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        return self._reader

    def _bite(self, reach: tuple[bytes, bytes], after: int) -> tuple[Transactions, int, bool]:
        """Changes after a revision, up to which revision they reach, and whether more may follow at once."""
        found: Transactions = []
        size = 0
        with _Snapshot(self._db(), self._path) as db:
            gone, last = sqlite_file.compacted(db), sqlite_file.revision(db)
            if after < gone:
                raise Compacted(f"changes up to revision {gone} are no longer kept, {after + 1} was asked: list again")
            upto = min(last, after + BITE_REVISIONS)
            rows = db.execute(
                "SELECT seq, key, value, previous FROM changes"
                " WHERE seq >= ? AND seq < ? AND key >= ? AND key < ? ORDER BY seq",
                (seq_of(after + 1, 0), seq_of(upto + 1, 0), *reach),
            )
            for _, group in itertools.groupby(rows, lambda row: revision_of(row[0])):
                if size > BITE_BYTES:
                    upto = found[-1][0].revision
                    break
                changes = tuple(_change_of(row) for row in group)
                size += sum(len(change.value or b"") + len(change.previous or b"") for change in changes)
                found.append(changes)
            rows.close()
        return found, max(after, upto), upto < last


class _Snapshot:
    """Several reads of one moment; SQLite's errors leave it as the contract's."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        try:
            self._db.execute("BEGIN")
        except sqlite3.Error as wrong:
            raise sqlite_file.meaning(wrong, self._path) from wrong
        return self._db

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")  # nothing was written: this only lets the snapshot go
        if isinstance(error, sqlite3.Error):
            raise sqlite_file.meaning(error, self._path) from error


def _open(path: Path, durable: bool, floor: int) -> _Opened:
    with contextlib.ExitStack() as undo:
        lock = sqlite_file.lock(path)
        undo.callback(os.close, lock)
        sqlite_file.prepare(path)
        try:
            reader = undo.enter_context(contextlib.closing(sqlite_file.connect(path, durable=durable)))
            writer = undo.enter_context(contextlib.closing(sqlite_file.connect(path, durable=durable)))
            if floor:
                sqlite_file.begin_after(writer, floor)
            revision = sqlite_file.revision(writer)
        except sqlite3.Error as wrong:
            raise sqlite_file.meaning(wrong, path) from wrong
        undo.pop_all()
        return _Opened(path, lock, reader, writer, revision)


def _change_of(row: tuple[int, bytes, bytes | None, bytes | None]) -> Change:
    seq, key, value, previous = row
    revision = revision_of(seq)
    return Change(revision, seq - seq_of(revision, 0), key.decode(), value, previous)


def _apply(transaction: Transaction, ops: Sequence[Put | Delete], expect: Sequence[Expect]) -> int:
    """:raise CompareFailed: before anything was written."""
    db = transaction.db
    for one in expect:
        row = db.execute("SELECT modified FROM records WHERE key = ?", (one.key.encode(),)).fetchone()
        seen = 0 if row is None else row[0]
        if seen != one.modified:
            raise CompareFailed(f"{one.key} is at revision {seen}, not at {one.modified}")
    before = transaction.revision
    index = 0
    for op in ops:
        key = op.key.encode()
        row = db.execute("SELECT value FROM records WHERE key = ?", (key,)).fetchone()
        if isinstance(op, Delete):
            if row is None:
                continue
            value = None
        else:
            value = op.value
        revision = transaction.next_revision() if index == 0 else transaction.revision
        _write(transaction, seq_of(revision, index), key, value, None if row is None else row[0])
        index += 1
    return transaction.revision if index else before


def _write(transaction: Transaction, seq: int, key: bytes, value: bytes | None, previous: bytes | None) -> None:
    db, revision = transaction.db, transaction.revision
    if value is None:
        db.execute("DELETE FROM records WHERE key = ?", (key,))
    elif previous is None:
        db.execute("INSERT INTO records VALUES (?, ?, ?, ?)", (key, value, revision, revision))
    else:
        db.execute("UPDATE records SET value = ?, modified = ? WHERE key = ?", (value, revision, key))
    db.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (seq, key, value, previous))
    transaction.written_bytes += PAGES_A_CHANGE * PAGE_BYTES + 2 * len(value or b"") + len(previous or b"")


def _forget(transaction: Transaction, revision: int) -> bool:
    """Drop some of the changes up to a revision; whether there may be more."""
    db = transaction.db
    upto = min(revision, transaction.revision)
    db.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'compacted'", (upto,))
    done = db.execute(
        "DELETE FROM changes WHERE seq IN (SELECT seq FROM changes WHERE seq < ? ORDER BY seq LIMIT ?)",
        (seq_of(upto + 1, 0), COMPACT_ROWS),
    )
    transaction.written_bytes += done.rowcount * PAGE_BYTES
    return done.rowcount == COMPACT_ROWS
