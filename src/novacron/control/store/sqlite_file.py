"""The SQLite file behind the embedded store: its lock, its connections, its schema and what its errors mean.

    meta     schema (version), compacted (last revision whose changes are forgotten)
    records  what is true now
    changes  what happened; seq = model.event.seq_of(revision, index), so one number orders everything

Keys are kept as their UTF-8 bytes: SQLite compares blobs byte by byte, which is the order the contract asks for.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from novacron.errors import StoreCorrupt, StoreError, StoreUnavailable
from novacron.model.event import revision_of

BUSY_S = 5.0  # only start-up of a second connection can meet a lock: one process, one writer

STEPS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB NOT NULL,
           created INTEGER NOT NULL, modified INTEGER NOT NULL)""",
        "CREATE TABLE changes (seq INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB, previous BLOB)",
        "INSERT INTO meta VALUES ('schema', 0), ('compacted', 0)",
    ),
)
"""Step n (from 1) brings a file of schema n - 1 to schema n. Steps are only ever added."""


def lock(path: Path) -> int:
    """Make this process the only one on the store; the file descriptor that holds it, let go by closing it.

    :raise StoreUnavailable: another process has it, or the directory cannot be written.
    """
    beside = path.with_name(path.name + ".lock")
    try:
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as wrong:
        raise StoreUnavailable(f"cannot open the store's lock {beside}: {wrong.strerror}") from wrong
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as wrong:
        os.close(fd)
        raise StoreUnavailable(f"another process uses the store {path}: stop it, or give another data_dir") from wrong
    return fd


def prepare(path: Path) -> None:
    """Make the file (mode 0600) when it is missing, and bring its schema up to date.

    :raise StoreCorrupt: not a store of ours, damaged, or made by a newer NovaCron. Nothing was changed.
    :raise StoreUnavailable: it cannot be read or written.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        path.chmod(0o600)
        sync_directory(path.parent)
    except OSError as wrong:
        raise StoreUnavailable(f"cannot open the store {path}: {wrong.strerror}") from wrong
    try:
        db = connect(path, durable=True)
        try:
            _migrate(db, path)
        finally:
            db.close()
    except sqlite3.Error as wrong:
        raise meaning(wrong, path) from wrong


def connect(path: Path, *, durable: bool) -> sqlite3.Connection:
    """A connection for one thread at a time; transactions are begun and ended by hand. :raise sqlite3.Error"""
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        db.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does it after it has answered
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
    except sqlite3.Error:
        db.close()
        raise
    return db


def meaning(wrong: sqlite3.Error, path: Path) -> StoreError | StoreUnavailable:
    """What an SQLite error says about the store."""
    primary = getattr(wrong, "sqlite_errorcode", 0) & 0xFF  # the bits above are SQLite's finer distinctions
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreCorrupt(f"the store {path} is damaged ({wrong}): restore it from a backup")
    return StoreUnavailable(f"the store {path} cannot be used now: {wrong}")


def compacted(db: sqlite3.Connection) -> int:
    """The last revision whose changes are forgotten; 0: none."""
    row = db.execute("SELECT value FROM meta WHERE name = 'compacted'").fetchone()
    return int(row[0])


def begin_after(db: sqlite3.Connection, floor: int) -> None:
    """The revisions of a store that nobody has written begin after `floor`. :raise sqlite3.Error"""
    db.execute(
        "UPDATE meta SET value = ? WHERE name = 'compacted' AND value = 0 AND NOT EXISTS (SELECT 1 FROM changes)",
        (floor,),
    )


def revision(db: sqlite3.Connection) -> int:
    """The revision of the last transaction: in the log, or the log's end when all of it is forgotten."""
    row = db.execute("SELECT max(seq) FROM changes").fetchone()
    return compacted(db) if row[0] is None else revision_of(row[0])


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """:raise StoreCorrupt: it is not of this program's schema."""
    if _version(db, path) != len(STEPS):
        raise StoreCorrupt(
            f"the store {path} has another schema than this program: start its server once, or a newer one"
        )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    db.execute("BEGIN IMMEDIATE")  # closing without COMMIT undoes everything
    version = _version(db, path)
    if version > len(STEPS):
        raise StoreCorrupt(
            f"the store {path} has schema {version} and this program knows up to {len(STEPS)}:"
            " run the newer NovaCron that made it, or restore a backup from before the upgrade"
        )
    for number, step in enumerate(STEPS[version:], start=version + 1):
        for statement in step:
            db.execute(statement)
        db.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (number,))
    db.execute("COMMIT")


def _version(db: sqlite3.Connection, path: Path) -> int:
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return 0
    row = db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() if "meta" in tables else None
    if row is None:
        raise StoreCorrupt(f"{path} is an SQLite file, but not a NovaCron store: give another data_dir")
    return int(row[0])


def sync_directory(directory: Path) -> None:
    """Names made, changed and deleted in it survive a crash. :raise OSError"""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
