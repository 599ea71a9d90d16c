"""Stores moved, backed up and restored: nothing is lost, nothing is overwritten, nothing half made is used."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novacron.clock import SystemClock
from novacron.control.store import backup_file, identity, transfer
from novacron.control.store.address import Address, SqliteAddress
from novacron.control.store.base import Put, Store
from novacron.control.store.identity import Seen
from novacron.control.store.opening import open_store
from novacron.errors import Conflict, InvalidInput, NotFound, StoreCorrupt, StoreUnavailable
from tests.etcd_members import Members, members, settled

pytestmark = pytest.mark.anyio
CLOCK, RNG = SystemClock(), random.Random(1)
CONTENT = {f"vms/{number:04}": bytes([number % 256]) * (number * 7 % 5000) for number in range(1500)}
CONTENT |= {"names/vm/é\U0010ffff": b"\x00\xff", "empty": b""}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with members(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture(autouse=True)
async def _settled() -> AsyncIterator[None]:
    yield
    await settled()


_prefixes = itertools.count()


@pytest.fixture
def there(etcd: Members) -> Address:
    """Where nothing is in etcd."""
    return etcd.address(f"t{next(_prefixes)}")


@pytest.fixture
async def here(tmp_path: Path) -> Address:
    """A file with CONTENT."""
    address = SqliteAddress(tmp_path / "store.db")
    async with opened(address) as store:
        await write(store)
    return address


@contextlib.asynccontextmanager
async def opened(address: Address) -> AsyncIterator[Store]:
    store = await open_store(address, CLOCK, RNG)
    try:
        yield store
    finally:
        await store.close()


async def write(store: Store) -> None:
    items = list(CONTENT.items())
    for start in range(0, len(items), 500):
        await store.commit([Put(key, value) for key, value in items[start : start + 500]])


async def contents(address: Address) -> tuple[dict[str, bytes], int]:
    async with opened(address) as store:
        found: dict[str, bytes] = {}
        more = True
        while more:
            page = await store.list("", after=max(found, key=str.encode, default=""))
            found |= {entry.key: entry.value for entry in page.entries}
            more = page.more
        return found, await store.revision()


# -- migrate -----------------------------------------------------------------------------------------------------


async def test_from_a_file_to_etcd_and_back(tmp_path: Path, here: SqliteAddress, there: Address) -> None:
    _, before = await contents(here)
    tally = await transfer.migrate(here, there, CLOCK, RNG)
    assert tally.records == len(CONTENT)
    moved, revision = await contents(there)
    assert moved == CONTENT
    assert revision > before
    assert not here.path.exists(), "a server would go on from it"
    assert (tmp_path / "store.db.migrated").exists()
    back = SqliteAddress(tmp_path / "back.db")
    assert await transfer.migrate(there, back, CLOCK, RNG) == tally
    again, last = await contents(back)
    assert again == CONTENT
    assert last > revision
    assert [path.name for path in tmp_path.glob("back*")] == ["back.db", "back.db.lock"]


async def test_a_store_in_use_is_not_moved(here: SqliteAddress, there: Address) -> None:
    async with opened(here):
        with pytest.raises(StoreUnavailable, match="another process uses"):
            await transfer.migrate(here, there, CLOCK, RNG)
    with pytest.raises(StoreUnavailable, match="unfinished"):
        await contents(there)
    await transfer.migrate(here, there, CLOCK, RNG)
    assert (await contents(there))[0] == CONTENT


async def test_a_store_written_to_meanwhile_is_not_moved(
    tmp_path: Path, there: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = SqliteAddress(tmp_path / "store.db")
    async with opened(there) as busy:
        await write(busy)
        real = transfer._tally

        async def tally_late(store: Store) -> backup_file.Tally:
            await busy.commit([Put("late", b"")])
            return await real(store)

        monkeypatch.setattr(transfer, "_tally", tally_late)
        with pytest.raises(Conflict, match="written to meanwhile"):
            await transfer.migrate(there, target, CLOCK, RNG)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_put_over_what_is_there(tmp_path: Path, here: SqliteAddress, there: Address) -> None:
    async with opened(there):
        pass
    file = SqliteAddress(tmp_path / "other.db")
    file.path.write_bytes(b"mine")
    for target in (there, file, here):
        with pytest.raises(Conflict):
            await transfer.migrate(here, target, CLOCK, RNG)
    assert file.path.read_bytes() == b"mine"
    assert (await contents(here))[0] == CONTENT
    assert (await contents(there))[0] == {}


async def test_a_copy_that_is_not_alike_is_no_store(
    tmp_path: Path, here: SqliteAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = transfer._put

    async def lose_one(store: Store, batch: list[Put]) -> None:
        await real(store, batch[:-1])

    monkeypatch.setattr(transfer, "_put", lose_one)
    with pytest.raises(StoreCorrupt, match="the copy has"):
        await transfer.migrate(here, SqliteAddress(tmp_path / "copy.db"), CLOCK, RNG)
    assert here.path.exists()
    assert list(tmp_path.glob("copy*")) == []


async def test_what_is_not_there_is_not_made(tmp_path: Path, there: Address) -> None:
    missing = SqliteAddress(tmp_path / "missing.db")
    for source, target in ((missing, there), (there, missing)):
        with pytest.raises(NotFound):
            await transfer.migrate(source, target, CLOCK, RNG)
        with pytest.raises(NotFound):
            await transfer.backup(source, tmp_path / "file", CLOCK, RNG)
    assert list(tmp_path.iterdir()) == []


# -- backup and restore ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
async def test_a_backup_of_a_store_in_use_is_one_moment_of_it(
    tmp_path: Path, here: SqliteAddress, there: Address, kind: str
) -> None:
    source: Address = here
    if kind == "etcd":
        await transfer.migrate(here, there, CLOCK, RNG)
        source = there
    file = tmp_path / "backup"
    stop = asyncio.Event()
    async with opened(source) as busy:

        async def write_pairs() -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                await busy.commit([Put("a/pair", str(number).encode()), Put("z/pair", str(number).encode())])

        writing = asyncio.create_task(write_pairs())
        tally = await transfer.backup(source, file, CLOCK, RNG)
        stop.set()
        await writing
    assert file.stat().st_mode & 0o777 == 0o600
    records = dict(backup_file.records(file))
    assert records.get("a/pair") == records.get("z/pair")
    assert {key: records[key] for key in CONTENT} == CONTENT
    assert backup_file.check(file)[1] == tally


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
async def test_a_restored_store_has_all_and_counts_on_far_above(
    tmp_path: Path, here: SqliteAddress, there: Address, kind: str
) -> None:
    file = tmp_path / "backup"
    await transfer.backup(here, file, CLOCK, RNG)
    target: Address = there if kind == "etcd" else SqliteAddress(tmp_path / "restored.db")
    await transfer.restore(file, target, CLOCK, RNG)
    found, revision = await contents(target)
    assert found == CONTENT
    assert revision > transfer.LEAP
    with pytest.raises(Conflict):
        await transfer.restore(file, target, CLOCK, RNG)


async def test_a_backup_that_is_damaged_or_cut_off_is_refused_whole(tmp_path: Path, here: SqliteAddress) -> None:
    file, target = tmp_path / "backup", SqliteAddress(tmp_path / "restored.db")
    await transfer.backup(here, file, CLOCK, RNG)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    wrong = [
        b"",
        b"nothing\n",
        b"".join(lines[:-1]),
        b"".join(lines[:5] + lines[6:]),
        b"".join([lines[0], lines[2], lines[1], *lines[3:]]),
        whole.replace(b"vms/0007", b"vms/0oo7"),
        whole[: len(whole) // 2],
        whole + b"[]\n",
        whole.replace(b"backup 1", b"backup 2"),
    ]
    for content in wrong:
        file.write_bytes(content)
        with pytest.raises(InvalidInput):
            await transfer.restore(file, target, CLOCK, RNG)
        assert not target.path.exists()
    file.write_bytes(whole)
    await transfer.restore(file, target, CLOCK, RNG)


async def test_no_backup_is_put_over_another(tmp_path: Path, here: SqliteAddress) -> None:
    file = tmp_path / "backup"
    file.write_bytes(b"mine")
    with pytest.raises(Conflict):
        await transfer.backup(here, file, CLOCK, RNG)
    assert file.read_bytes() == b"mine"


# -- which store it is -------------------------------------------------------------------------------------------


def seen(store: Store, directory: Path) -> Seen:
    return Seen(store, directory / "store.seen", lambda: "id-1")


async def test_a_moved_store_is_the_same_store(tmp_path: Path, here: SqliteAddress, there: Address) -> None:
    async with opened(here) as store:
        await seen(store, tmp_path).admit()
    await transfer.migrate(here, there, CLOCK, RNG)
    async with opened(there) as store:
        await seen(store, tmp_path).admit()
        await seen(store, tmp_path).admit()


async def test_a_restored_store_is_refused_until_its_server_is_told(tmp_path: Path, here: SqliteAddress) -> None:
    async with opened(here) as store:
        await seen(store, tmp_path).admit()
    restored = SqliteAddress(tmp_path / "restored.db")
    await transfer.backup(here, tmp_path / "backup", CLOCK, RNG)
    await transfer.restore(tmp_path / "backup", restored, CLOCK, RNG)
    async with opened(restored) as store:
        before = await store.revision()
        with pytest.raises(StoreUnavailable, match="was restored from a backup") as refused:
            await seen(store, tmp_path).admit()
        assert str(tmp_path / "store.seen") in refused.value.reasons[0].remedy
        assert await store.revision() == before
        (tmp_path / "store.seen").unlink()
        await seen(store, tmp_path).admit()
        await seen(store, tmp_path).admit()


async def test_a_file_put_back_by_hand_is_refused(tmp_path: Path, here: SqliteAddress) -> None:
    async with opened(here) as store:
        await seen(store, tmp_path).admit()
    old = here.path.read_bytes()
    async with opened(here) as store:
        await store.commit([Put("a", b"")])
        await seen(store, tmp_path).note()
    here.path.write_bytes(old)
    async with opened(here) as store:
        for check in (seen(store, tmp_path).note, seen(store, tmp_path).admit):  # the first one keeps what was seen
            with pytest.raises(StoreUnavailable, match="older than it was"):
                await check()


async def test_an_empty_store_is_not_taken_for_the_one_that_was(tmp_path: Path, here: SqliteAddress) -> None:
    async with opened(here) as store:
        await seen(store, tmp_path).admit()
    async with opened(SqliteAddress(tmp_path / "empty.db")) as store:
        with pytest.raises(StoreUnavailable, match="another one"):
            await seen(store, tmp_path).admit()
        assert await store.get(identity.KEY) is None


async def test_what_was_seen_must_be_readable(tmp_path: Path, here: SqliteAddress) -> None:
    (tmp_path / "store.seen").write_bytes(b"{")
    async with opened(here) as store:
        with pytest.raises(StoreUnavailable, match=r"store\.seen"):
            await seen(store, tmp_path).admit()


# -- by hand -----------------------------------------------------------------------------------------------------


async def test_the_commands(tmp_path: Path, here: SqliteAddress, there: Address) -> None:
    file, target = tmp_path / "backup", tmp_path / "again.db"
    done = by_hand("migrate", "--from", str(here), "--to", str(there))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(CONTENT)} records" in done.stdout
    assert by_hand("backup", "--from", str(there), str(file)).returncode == 0
    assert by_hand("restore", str(file), "--to", f"sqlite:{target}").returncode == 0
    assert (await contents(SqliteAddress(target)))[0] == CONTENT
    done = by_hand("restore", str(file), "--to", str(there))
    assert done.returncode == 1
    assert "try: give another prefix" in done.stderr
    done = by_hand("backup", "--from", "nowhere", str(file))
    assert done.returncode == 1
    assert "error: --from" in done.stderr


def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "novacron.control.store_admin", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
