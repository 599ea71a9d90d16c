"""The one thread that writes the SQLite file: what queued up while it synced goes into its next transaction.

Group commit: the queue's works share one BEGIN IMMEDIATE … COMMIT, so one fsync serves them all. Each work runs in a
savepoint of its own: one that refuses leaves the others alone. When SQLite itself fails the group is rolled back
and its works are done again one by one, so that only those that cannot be done fail.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from novacron.control.store import sqlite_file
from novacron.errors import StoreUnavailable

MAX_GROUP = 512
CHECKPOINT_BYTES = 4 << 20  # the log is copied into the file when it has grown by this and nobody waits,
CHECKPOINT_LATEST_BYTES = 64 << 20  # or by this whoever waits
PAGE_BYTES = 4096

T = TypeVar("T")


class Transaction:
    """What a work writes through: the connection and the revision it would make."""

    def __init__(self, db: sqlite3.Connection, revision: int) -> None:
        self.db = db
        self.revision = revision
        self.written_bytes = 0

    def next_revision(self) -> int:
        """Number this work's changes."""
        self.revision += 1
        return self.revision


Work = Callable[[Transaction], T]


class _Job(msgspec.Struct):
    work: Work[Any]
    answer: asyncio.Future[Any]
    outcome: Any = None
    error: BaseException | None = None


class Writer:
    """The thread, its connection and its queue. `committed` is called in the event loop after each group."""

    def __init__(self, path: Path, db: sqlite3.Connection, revision: int, committed: Callable[[], None]) -> None:
        self._path = path
        self._db = db
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._revision = revision
        self._unsynced_bytes = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._closed = False
        self._thread.start()

    async def submit(self, work: Work[T]) -> T:
        """Do `work` in a transaction; its answer once that is on disk.

        Cancelling the wait does not take the work back. :raise StoreUnavailable: the outcome is unknown.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        job = _Job(work, self._loop.create_future())
        self._jobs.put(job)
        answer: T = await job.answer
        return answer

    async def close(self) -> None:
        """Do what is queued, then end the thread and the connection. Idempotent."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    # -- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._do_next():
                pass
        finally:
            self._db.close()

    def _do_next(self) -> bool:
        """Wait for work and do it. False: it was told to end."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_GROUP or self._jobs.empty():
                break
            job = self._jobs.get()
        if jobs and not self._commit(jobs):
            for one in jobs:
                self._commit([one])
        if jobs:
            self._tell(jobs)
            self._checkpoint()
        return job is not None

    def _commit(self, jobs: list[_Job]) -> bool:
        """One transaction for all. False: it failed as a whole and every job should be tried alone."""
        transaction = Transaction(self._db, self._revision)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                _attempt(job, transaction)
            self._db.execute("COMMIT")
        except sqlite3.Error as wrong:
            self._roll_back()
            for job in jobs:
                job.outcome, job.error = None, sqlite_file.meaning(wrong, self._path)
            return len(jobs) == 1
        self._revision = transaction.revision
        self._unsynced_bytes += transaction.written_bytes
        return True

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite ends some failed transactions by itself
            self._db.execute("ROLLBACK")

    def _tell(self, jobs: list[_Job]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._answer, jobs)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # the event loop ended without closing the store: nobody is left to be told

    def _checkpoint(self) -> None:
        due = CHECKPOINT_BYTES if self._jobs.empty() else CHECKPOINT_LATEST_BYTES
        if self._unsynced_bytes < due:
            return
        self._unsynced_bytes = 0
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.OperationalError:
            self._unsynced_bytes = CHECKPOINT_BYTES  # no room or no disk now: all is safe in the log; try again

    # -- in the event loop -----------------------------------------------------------------------------------

    def _answer(self, jobs: list[_Job]) -> None:
        self._committed()
        for job in jobs:
            if job.answer.done():  # who asked was cancelled
                continue
            if job.error is not None:
                job.answer.set_exception(job.error)
            else:
                job.answer.set_result(job.outcome)


def _attempt(job: _Job, transaction: Transaction) -> None:
    """Run one work in its savepoint; a refusal or a bug undoes it alone. :raise sqlite3.Error"""
    db, revision = transaction.db, transaction.revision
    job.error = None
    db.execute("SAVEPOINT one")
    try:
        job.outcome = job.work(transaction)
    except sqlite3.Error:
        raise
    except Exception as wrong:  # noqa: BLE001 - goes to who asked; the thread must go on for the others
        job.error = wrong
        transaction.revision = revision
        db.execute("ROLLBACK TO one")
    db.execute("RELEASE one")
