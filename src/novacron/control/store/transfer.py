"""A store moved, kept and brought back: all its records into another store, into a file, and out of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

from novacron.clock import Clock
from novacron.control.store import backup_file, identity, sqlite_file
from novacron.control.store.address import Address, SqliteAddress
from novacron.control.store.backup_file import FORMAT, Head, Tally
from novacron.control.store.base import Expect, Put, Store
from novacron.control.store.opening import Moment, alone, filling, moment
from novacron.errors import Conflict, StoreCorrupt

BATCH_RECORDS = 512
BATCH_BYTES = 4 << 20
LEAP = 1 << 32
"""A restored store counts on so far above its backup: beyond all revisions that the lost one had reached."""
MOVED = ".migrated"


async def migrate(source: Address, target: Address, clock: Clock, rng: random.Random) -> Tally:
    """Copy a store that no server uses to where none is; its revisions go on growing there.

    A source file is renamed when all is there, so that no server goes on from it by mistake.

    :raise NotFound: no source. :raise StoreUnavailable: a server uses it. :raise Conflict: the target is not empty, or
        the source was written to meanwhile; the target is no store then.
    """
    floor = await _revision(source, clock, rng)
    async with filling(target, floor, clock, rng) as store:
        async with alone(source), moment(source, clock, rng) as now:
            tally = await _fill(store, _pairs(now))
        if not floor == now.revision == await _revision(source, clock, rng):
            raise Conflict(f"{source} was written to meanwhile: stop all servers that use it, and begin again")
        if isinstance(source, SqliteAddress):
            _retire(source.path)
    return tally


async def backup(source: Address, file: Path, clock: Clock, rng: random.Random) -> Tally:
    """Write all records as they are at one moment into a new file; servers may go on."""
    async with moment(source, clock, rng) as now:
        head = Head(FORMAT, now.revision, clock.wall(), str(source))
        return await backup_file.write(file, head, now.entries())


async def restore(file: Path, target: Address, clock: Clock, rng: random.Random) -> Tally:
    """Make a store of a backup, where none is. Servers that knew the lost one refuse it until they are told.

    :raise InvalidInput: no backup, or damaged; nothing was written. :raise Conflict: the target is not empty.
    """
    head, _ = backup_file.check(file)
    async with filling(target, head.revision + LEAP, clock, rng) as store:
        return await _fill(store, _restored(file))


async def _fill(store: Store, records: AsyncIterator[tuple[str, bytes]]) -> Tally:
    """Write all, read all again. :raise StoreCorrupt: what was read is not what was written."""
    tally = Tally()
    batch: list[Put] = []
    size_bytes = 0
    async for key, value in records:
        tally.add(key, value)
        if len(batch) == BATCH_RECORDS or size_bytes + len(value) > BATCH_BYTES:
            await _put(store, batch)
            batch, size_bytes = [], 0
        batch.append(Put(key, value))
        size_bytes += len(value)
    await _put(store, batch)
    found = await _tally(store)
    if found != tally:
        raise StoreCorrupt(f"the copy has {found.records} records ({found.sha256}), not {tally.records} as its origin")
    return tally


async def _put(store: Store, batch: list[Put]) -> None:
    await store.commit(batch, [Expect(one.key, 0) for one in batch])


async def _tally(store: Store) -> Tally:
    tally = Tally()
    after, more = "", True
    while more:
        page = await store.list("", after=after)
        for entry in page.entries:
            tally.add(entry.key, entry.value)
            after = entry.key
        more = page.more
    return tally


async def _pairs(now: Moment) -> AsyncIterator[tuple[str, bytes]]:
    async for entry in now.entries():
        yield entry.key, entry.value


async def _restored(file: Path) -> AsyncIterator[tuple[str, bytes]]:
    for key, value in backup_file.records(file):
        yield key, identity.restored(value) if key == identity.KEY else value


async def _revision(source: Address, clock: Clock, rng: random.Random) -> int:
    async with moment(source, clock, rng) as now:
        return now.revision


def _retire(file: Path) -> None:
    """:raise Conflict: somebody has it open."""
    if file.with_name(file.name + "-wal").exists():
        raise Conflict(f"{file} is still in use: end what reads it, and begin again")
    file.rename(file.with_name(file.name + MOVED))
    sqlite_file.sync_directory(file.parent)
