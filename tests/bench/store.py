"""Durable commits a second: the SQLite store beside plain sqlite3 doing the same fsynced transactions.

    python -m tests.bench.store [DIRECTORY]    the directory's disk is what is measured (default: the current one)

The rounds of all contestants are interleaved, and the median of each is printed, so that a busy neighbour hurts all.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from novacron.control.store.base import Expect, Put
from novacron.control.store.sqlite import SqliteStore

ROUNDS = 5
COMMITS = 300
IN_FLIGHT = 64
VALUE = b"x" * 1024
READS = 2000


async def one_at_a_time(store: SqliteStore) -> float:
    """Commits a second when each waits for the one before: the path a migration's commit takes."""
    modified = 0
    entry = await store.get("k")
    if entry is not None:
        modified = entry.modified
    began = time.perf_counter()
    for _ in range(COMMITS):
        modified = await store.commit([Put("k", VALUE)], [Expect("k", modified)])
    return COMMITS / (time.perf_counter() - began)


async def in_flight(store: SqliteStore) -> float:
    """Commits a second when 64 callers each wait for their own."""

    async def caller(number: int) -> None:
        for _ in range(COMMITS // 4):
            await store.commit([Put(f"k/{number}", VALUE)])

    began = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(IN_FLIGHT)))
    return IN_FLIGHT * (COMMITS // 4) / (time.perf_counter() - began)


async def seen_by_a_watch(store: SqliteStore) -> float:
    """Milliseconds from the call of commit to its change coming out of a watch, median."""
    watch = store.watch("", after=await store.revision())
    took = []
    for _ in range(COMMITS // 3):
        began = time.perf_counter()
        writing = asyncio.create_task(store.commit([Put("w", VALUE)]))
        await anext(watch)
        took.append((time.perf_counter() - began) * 1e3)
        await writing
    await watch.aclose()  # type: ignore[attr-defined]
    return statistics.median(took)


async def point_read(store: SqliteStore) -> float:
    """Microseconds a `get`, in the event loop."""
    began = time.perf_counter()
    for _ in range(READS):
        await store.get("k")
    return (time.perf_counter() - began) / READS * 1e6


async def point_read_in_thread(store: SqliteStore) -> float:
    """Microseconds a `get` if it were handed to a thread and back."""
    read = sqlite3.connect(store._path, isolation_level=None, check_same_thread=False)

    def get() -> object:
        return read.execute("SELECT value, created, modified FROM records WHERE key = ?", (b"k",)).fetchone()

    began = time.perf_counter()
    for _ in range(READS):
        await asyncio.to_thread(get)
    took = time.perf_counter() - began
    read.close()
    return took / READS * 1e6


class Floor:
    """Plain sqlite3 in this thread: the same statements and fsyncs, and nothing around them."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode = WAL").fetchone()
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("CREATE TABLE records (key BLOB PRIMARY KEY, value BLOB, created INTEGER, modified INTEGER)")
        self.db.execute("CREATE TABLE changes (seq INTEGER PRIMARY KEY, key BLOB, value BLOB, previous BLOB)")
        self.revision = 0

    async def one_at_a_time(self, _: SqliteStore) -> float:
        began = time.perf_counter()
        for _round in range(COMMITS):
            self.revision += 1
            self.db.execute("BEGIN IMMEDIATE")
            row = self.db.execute("SELECT value, modified FROM records WHERE key = ?", (b"k",)).fetchone()
            self.db.execute("REPLACE INTO records VALUES (?, ?, ?, ?)", (b"k", VALUE, self.revision, self.revision))
            self.db.execute("INSERT INTO changes VALUES (?, ?, ?, ?)", (self.revision, b"k", VALUE, row and row[0]))
            self.db.execute("COMMIT")
        return COMMITS / (time.perf_counter() - began)


async def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as made:
        store = await SqliteStore.open(Path(made) / "store.db")
        contestants: dict[str, Callable[[SqliteStore], Awaitable[float]]] = {
            "floor_commits_per_s": Floor(Path(made) / "floor.db").one_at_a_time,
            "one_at_a_time_commits_per_s": one_at_a_time,
            "in_flight_64_commits_per_s": in_flight,
            "commit_to_watch_ms": seen_by_a_watch,
            "read_us": point_read,
            "read_in_thread_us": point_read_in_thread,
        }
        figures: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(ROUNDS):
            for name, measure in contestants.items():
                figures[name].append(await measure(store))
        await store.close()
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    floor = medians["floor_commits_per_s"]
    lines = [f"{'':32}{'median':>12}{'of the floor':>14}"]
    for name, value in medians.items():
        lines.append(f"{name:32}{value:12.1f}" + (f"{value / floor:14.2f}" if name.endswith("per_s") else ""))
    sys.stdout.write("\n".join([*lines, json.dumps(medians), ""]))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
