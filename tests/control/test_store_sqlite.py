"""What only the SQLite store promises: its file, its schema, and that a kill loses no acknowledged write."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.control.store import sqlite_file, sqlite_writer
from novacron.control.store.base import Expect, Put
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import StoreCorrupt, StoreUnavailable

pytestmark = pytest.mark.anyio


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def raw(file: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(file, isolation_level=None))


async def write_one(file: Path) -> None:
    store = await SqliteStore.open(file, durable=False)
    await store.commit([Put("a", b"1")])
    await store.close()


# -- the file ---------------------------------------------------------------------------------------------------


async def test_a_reopened_store_keeps_everything(file: Path) -> None:
    store = await SqliteStore.open(file)
    first = await store.commit([Put("a", b"1"), Put("b", b"2")])
    second = await store.commit([Put("a", b"3")])
    await store.close()
    again = await SqliteStore.open(file)
    try:
        assert await again.revision() == second
        page = await again.list("")
        assert [(e.key, e.value, e.created, e.modified) for e in page.entries] == [
            ("a", b"3", first, second),
            ("b", b"2", first, first),
        ]
        watch = again.watch("", after=0)
        assert [[change.key for change in await anext(watch)] for _ in range(2)] == [["a", "b"], ["a"]]
        assert await again.commit([Put("c", b"")]) == second + 1
    finally:
        await again.close()


async def test_a_reopened_store_remembers_its_revision_when_all_is_compacted(file: Path) -> None:
    store = await SqliteStore.open(file)
    revision = await store.commit([Put("a", b"1")])
    await store.compact(revision)
    await store.close()
    again = await SqliteStore.open(file)
    assert await again.commit([Put("a", b"2")]) == revision + 1
    await again.close()


async def test_only_its_owner_can_read_any_of_its_files(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = await SqliteStore.open(tmp_path / "store.db")
        await store.commit([Put("secret", b"1")])
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        await store.close()
    finally:
        os.umask(old)
    assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600)


async def test_a_file_left_open_to_others_is_closed_to_them(file: Path) -> None:
    await write_one(file)
    file.chmod(0o644)
    await write_one(file)
    assert file.stat().st_mode & 0o777 == 0o600


async def test_durable_means_synced_at_every_commit(file: Path) -> None:
    for durable, level in ((True, 2), (False, 0)):
        with contextlib.closing(sqlite_file.connect(file, durable=durable)) as db:
            assert db.execute("PRAGMA synchronous").fetchone() == (level,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_a_second_process_is_kept_out(file: Path) -> None:
    store = await SqliteStore.open(file)
    with pytest.raises(StoreUnavailable, match="another process"):
        await SqliteStore.open(file)
    await store.close()
    again = await SqliteStore.open(file)
    await again.close()


async def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file"):
        await SqliteStore.open(tmp_path / "nowhere" / "store.db")


# -- schema -----------------------------------------------------------------------------------------------------


async def test_a_newer_schema_is_refused_with_what_to_do_and_left_alone(file: Path) -> None:
    await write_one(file)
    with raw(file) as db:
        db.execute("UPDATE meta SET value = 99 WHERE name = 'schema'")
    with pytest.raises(StoreCorrupt, match=r"schema 99 .* run the newer NovaCron"):
        await SqliteStore.open(file)
    with raw(file) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == (99,)


async def test_an_older_schema_is_brought_up_by_the_steps_it_lacks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write_one(file)
    added = (("CREATE TABLE two (x)",), ("CREATE TABLE three (x)", "INSERT INTO three VALUES (7)"))
    monkeypatch.setattr(sqlite_file, "STEPS", (*sqlite_file.STEPS, *added))
    for _ in range(2):  # the second time there is nothing to do
        store = await SqliteStore.open(file)
        assert await store.get("a") is not None
        await store.close()
    with raw(file) as db:
        assert db.execute("SELECT x FROM three").fetchall() == [(7,)]
        assert db.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone() == (3,)


async def test_a_step_that_fails_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write_one(file)
    broken = (("CREATE TABLE two (x)", "INSERT INTO nowhere VALUES (1)"),)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "STEPS", (*sqlite_file.STEPS, *broken))
        with pytest.raises(StoreUnavailable):
            await SqliteStore.open(file)
    store = await SqliteStore.open(file)
    assert await store.get("a") is not None
    await store.close()
    with raw(file) as db:
        assert db.execute("SELECT name FROM sqlite_master WHERE name = 'two'").fetchone() is None


async def test_a_foreign_database_is_refused(file: Path) -> None:
    with raw(file) as db:
        db.execute("CREATE TABLE other (x)")
    with pytest.raises(StoreCorrupt, match="not a NovaCron store"):
        await SqliteStore.open(file)


# -- damage -----------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused_and_left_alone(file: Path) -> None:
    file.write_bytes(b"this is not a database" * 500)
    with pytest.raises(StoreCorrupt, match="backup"):
        await SqliteStore.open(file)
    assert file.read_bytes().startswith(b"this is not")


async def test_damaged_pages_are_reported_as_such(file: Path) -> None:
    store = await SqliteStore.open(file, durable=False)
    for number in range(200):
        await store.commit([Put(f"k{number}", os.urandom(2000))])
    await store.close()
    with file.open("r+b") as damaged:
        damaged.seek(4096 * 6)
        damaged.write(b"\xff" * (file.stat().st_size - 4096 * 6))
    with pytest.raises(StoreCorrupt, match="damaged"):  # noqa: PT012 - it may show at opening or at reading
        again = await SqliteStore.open(file, durable=False)
        try:
            await again.list("")
        finally:
            await again.close()


@contextlib.contextmanager
def files_bounded_to(size_bytes: int) -> Iterator[None]:
    """The kernel refuses this process writes beyond that offset of any file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_no_room_refuses_the_big_ones_alone_and_the_store_lives_on(tmp_path: Path, file: Path) -> None:
    store = await SqliteStore.open(file)
    before = await store.commit([Put("a", b"1")])
    wal = tmp_path / "store.db-wal"
    with files_bounded_to(wal.stat().st_size + 400_000):
        outcomes = await asyncio.gather(
            store.commit([Put("small/1", b"1")]),
            store.commit([Put("big", b"x" * 900_000)]),
            store.commit([Put("small/2", b"1")]),
            return_exceptions=True,
        )
        assert await store.get("a") is not None
    assert isinstance(outcomes[1], StoreUnavailable)
    assert [outcomes[0], outcomes[2]] == [before + 1, before + 2]
    assert await store.get("big") is None
    assert await store.commit([Put("big", b"x" * 900_000)]) == before + 3
    await store.close()
    with raw(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def fill(store: SqliteStore) -> None:
    for number in range(100):
        await store.commit([Put(f"k{number % 3}", os.urandom(30_000))])


@pytest.mark.system
@pytest.mark.root
async def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    """A real one: a file system of 1 MiB, and somebody makes room later."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 500_000)
        store = await SqliteStore.open(disk / "store.db")
        try:
            with pytest.raises(StoreUnavailable, match="full"):
                await fill(store)
            last = await store.revision()
            assert last > 3
            ballast.unlink()
            assert await store.commit([Put("small", b"1")]) == last + 1
        finally:
            await store.close()
    finally:
        subprocess.run(["umount", disk], check=True)


# -- the writer -------------------------------------------------------------------------------------------------


async def test_what_queues_up_while_it_syncs_shares_one_transaction(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    commit = sqlite_writer.Writer._commit

    def counted(self: sqlite_writer.Writer, jobs: list[sqlite_writer._Job]) -> bool:
        groups.append(len(jobs))
        return commit(self, jobs)

    monkeypatch.setattr(sqlite_writer.Writer, "_commit", counted)
    store = await SqliteStore.open(file)
    revisions = await asyncio.gather(*(store.commit([Put(f"k{number}", b"")]) for number in range(100)))
    await store.close()
    assert sorted(revisions) == list(range(1, 101))
    assert len(groups) < 50


async def test_a_work_that_fails_half_way_is_undone_and_its_neighbours_are_not(file: Path) -> None:
    store = await SqliteStore.open(file)

    def half(transaction: sqlite_writer.Transaction) -> None:
        transaction.db.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?)", (b"half", b"", *[transaction.next_revision()] * 2)
        )
        raise ZeroDivisionError

    first, failed, second = await asyncio.gather(
        store.commit([Put("a", b"")]),
        store._writer.submit(half),
        store.commit([Put("b", b"")]),
        return_exceptions=True,
    )
    assert (first, second) == (1, 2)
    assert isinstance(failed, ZeroDivisionError)
    assert [entry.key for entry in (await store.list("")).entries] == ["a", "b"]
    await store.close()


async def test_the_log_beside_the_file_does_not_grow_without_end(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_BYTES", 1 << 20)
    monkeypatch.setattr(sqlite_writer, "CHECKPOINT_LATEST_BYTES", 1 << 20)  # whether or not a writer waits just then
    store = await SqliteStore.open(file, durable=False)
    for _ in range(100):
        await store.commit([Put("k", os.urandom(200_000))])
    size = (tmp_path / "store.db-wal").stat().st_size
    await store.close()
    assert size < 4 << 20


async def test_who_stops_waiting_takes_nothing_back_and_harms_nobody(file: Path) -> None:
    store = await SqliteStore.open(file)
    given_up = asyncio.create_task(store.commit([Put("given-up", b"")]))
    await asyncio.sleep(0)
    given_up.cancel()
    await store.commit([Put("other", b"")])
    assert await store.get("given-up") is not None
    await store.close()


async def test_closing_ends_the_thread(file: Path) -> None:
    store = await SqliteStore.open(file)
    thread = store._writer._thread
    await asyncio.gather(store.close(), store.close())
    assert not thread.is_alive()


# -- kill -9 ----------------------------------------------------------------------------------------------------

KILLS = 200
CHILD = """
import asyncio, itertools, sys
from pathlib import Path
from novacron.control.store.base import Expect, Put
from novacron.control.store.sqlite import SqliteStore

async def write(store, name):
    entry = await store.get(name)
    count, modified = (int(entry.value[:20]), entry.modified) if entry else (0, 0)
    while True:
        count += 1
        modified = await store.commit([Put(name, b"%020d" % count + b"x" * 3000), Put("last", name.encode())],
                                      [Expect(name, modified)])
        sys.stdout.buffer.write(b"%s %d %d\\n" % (name.encode(), count, modified))
        sys.stdout.buffer.flush()

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    await asyncio.gather(*(write(store, f"writer/{number}") for number in range(4)))

while sys.stdin.buffer.readline():  # imported once: each line asks for one life, lived by a fork
    import os
    pid = os.fork()
    if pid == 0:
        os.close(0)
        asyncio.run(main())
    sys.stderr.buffer.write(b"%d\\n" % pid)
    sys.stderr.buffer.flush()
    os.waitpid(pid, 0)
    sys.stdout.buffer.write(b"dead\\n")
    sys.stdout.buffer.flush()
"""


def check_survived(file: Path, acknowledged: dict[str, tuple[int, int]]) -> None:
    """Every acknowledged write is there, or a later one of the same writer; the log is whole up to it."""
    with raw(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        last = sqlite_file.revision(db)
        for name, (count, revision) in acknowledged.items():
            value, modified = db.execute(
                "SELECT value, modified FROM records WHERE key = ?", (name.encode(),)
            ).fetchone()
            assert int(value[:20]) >= count
            assert last >= modified >= revision
        (logged,) = db.execute("SELECT count(DISTINCT seq / 1024) FROM changes").fetchone()
        assert logged == last  # no revision is missing, none is half there


@pytest.mark.system
def test_killed_200_times_in_the_middle_of_writes_it_loses_no_acknowledged_write(file: Path) -> None:
    acknowledged: dict[str, tuple[int, int]] = {}
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        pid = 0
        try:
            for life in range(KILLS):
                parent.stdin.write(b"live\n")
                parent.stdin.flush()
                pid = int(parent.stderr.readline())
                for _ in range(1 + life % 23):  # the moment differs from life to life
                    note(acknowledged, parent.stdout.readline())
                os.kill(pid, signal.SIGKILL)
                while (line := parent.stdout.readline()) != b"dead\n":
                    note(acknowledged, line)
                pid = 0
                check_survived(file, acknowledged)
        finally:
            if pid:
                os.kill(pid, signal.SIGKILL)
            parent.kill()
    assert len(acknowledged) == 4
    asyncio.run(check_goes_on(file))
    assert sum(count for count, _ in acknowledged.values()) > KILLS


async def check_goes_on(file: Path) -> None:
    """What was checked in the file, the store reads as well, and it writes on."""
    store = await SqliteStore.open(file)
    last = await store.revision()
    entry = await store.get("last")
    assert entry is not None
    assert entry.modified == last
    assert await store.commit([Put("last", b"")], [Expect("last", last)]) == last + 1
    await store.close()


def note(acknowledged: dict[str, tuple[int, int]], line: bytes) -> None:
    name, count, revision = line.decode().split()
    acknowledged[name] = (int(count), int(revision))
