"""Opens the store an address names: for a server, to be read at one moment, or to be filled with a copy."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from novacron.clock import Clock
from novacron.control.store import sqlite_file
from novacron.control.store.address import Address, EtcdAddress, SqliteAddress
from novacron.control.store.backup_file import refuse_existing
from novacron.control.store.base import Entry, Store
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from novacron.control.store.etcd import EtcdStore
    from novacron.control.store.etcd_origin import Way

UNFINISHED = ".filling"  # what a copy's file is called until it is whole


class Moment(Protocol):
    """All that a store holds at one revision."""

    @property
    def revision(self) -> int: ...

    def entries(self) -> AsyncIterator[Entry]:
        """Its records in key order, anew with each call."""
        ...


async def open_store(address: Address, clock: Clock, rng: random.Random) -> Store:
    """For a server; made when it is missing. :raise NovaCronError: as the stores' own `open` says."""
    if isinstance(address, SqliteAddress):
        return await SqliteStore.open(address.path)
    return await _etcd(address, clock, rng, "serve")


@contextlib.asynccontextmanager
async def moment(address: Address, clock: Clock, rng: random.Random) -> AsyncIterator[Moment]:
    """The store as it is now; servers may go on writing. :raise NotFound: there is none."""
    if isinstance(address, SqliteAddress):
        if not address.path.is_file():
            raise NotFound(f"there is no store in {address}")
        try:
            with contextlib.closing(sqlite_file.connect(address.path, durable=True)) as db:
                db.execute("PRAGMA query_only = ON")
                db.execute("BEGIN")
                yield _SqliteMoment(db, address.path)
        except sqlite3.Error as wrong:
            raise sqlite_file.meaning(wrong, address.path) from wrong
        return
    store = await _etcd(address, clock, rng, "read")
    try:
        yield _EtcdMoment(store, await store.revision())
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def alone(address: Address) -> AsyncIterator[None]:
    """No server of this machine uses it inside. etcd's are not locked out: compare revisions afterwards."""
    if isinstance(address, EtcdAddress) or not address.path.is_file():
        yield
        return
    store = await SqliteStore.open(address.path)
    try:
        yield
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def filling(address: Address, floor: int, clock: Clock, rng: random.Random) -> AsyncIterator[Store]:
    """A new store whose revisions begin after `floor`; servers may use it once this is left without an error.

    :raise Conflict: there is something at that address. What is left of a copy that was cut off is made anew.
    """
    if isinstance(address, SqliteAddress):
        async with _filling_file(address.path, floor) as file:
            yield file
        return
    store = await _etcd(address, clock, rng, "fill", floor)
    try:
        yield store
        await store.finish()
    finally:
        await store.close()


class _SqliteMoment:
    """Implements `Moment`: one read transaction of a connection."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        sqlite_file.check_schema(db, path)
        self._db = db
        self.revision = sqlite_file.revision(db)

    async def entries(self) -> AsyncIterator[Entry]:
        rows = self._db.execute("SELECT key, value, created, modified FROM records ORDER BY key")
        for key, *rest in rows:
            yield Entry(key.decode(), *rest)


class _EtcdMoment:
    """Implements `Moment`: etcd keeps what was, until it is compacted."""

    def __init__(self, store: EtcdStore, revision: int) -> None:
        self._store = store
        self.revision = revision

    def entries(self) -> AsyncIterator[Entry]:
        return self._store.entries(self.revision)


@contextlib.asynccontextmanager
async def _filling_file(path: Path, floor: int) -> AsyncIterator[Store]:
    refuse_existing(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    lock = unfinished.with_name(unfinished.name + ".lock")
    for left in unfinished.parent.glob(unfinished.name + "*"):
        left.unlink()
    try:
        store = await SqliteStore.open(unfinished, floor=floor)
        try:
            yield store
        finally:
            await store.close()
        unfinished.rename(path)
        sqlite_file.sync_directory(path.parent)
    finally:
        for left in (unfinished, lock):
            left.unlink(missing_ok=True)


async def _etcd(address: EtcdAddress, clock: Clock, rng: random.Random, way: Way, floor: int = 0) -> EtcdStore:
    try:
        from novacron.control.store.etcd import EtcdStore  # here: one node needs none of it
    except ImportError as missing:
        remedy = "pip install 'novacron[etcd]'"
        raise InvalidInput.field("store", f"etcd needs a package that is missing: {missing.name}", remedy) from missing
    return await EtcdStore.open(address, clock, rng, way=way, floor=floor)
