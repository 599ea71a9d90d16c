"""A member of the store that loses or damages what it keeps, a store without room: machines run on, no write is lost.

Row 11. Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer.
What a person does about it is done as docs/store.md says.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from novacron.client import vms
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError
from tests.etcd_members import Members
from tests.system.cluster_cast import Cast, a_cast, nobody_noticed, writing
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster, until
from tests.system.observer import observed

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_cluster]

MARK = b"kept for ever"
"""A VM's description: what is flipped in a member's files is part of an acknowledged write."""
CHECKED = "--experimental-initial-corrupt-check"
ROOM_BYTES = 24 << 20
PIECE_BYTES = 1 << 20
PLACE = 0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def site() -> AsyncIterator[ClusterSite]:
    async with a_cluster() as made:
        yield made


@pytest.fixture
async def cast(site: ClusterSite) -> AsyncIterator[Cast]:
    async with a_cast(site) as made:
        yield made


def flip(file: Path) -> None:
    """One bit, wherever the mark stands."""
    data = file.read_bytes()
    assert MARK in data, file
    file.write_bytes(data.replace(MARK, bytes([MARK[0] ^ 1]) + MARK[1:]))


def lose_all(home: Path) -> None:
    shutil.rmtree(home)


def flip_its_log(home: Path) -> None:
    for file in (home / "member/wal").glob("*.wal"):
        flip(file)


def flip_a_value(home: Path) -> None:
    flip(home / "member/snap/db")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lose_all, "has already been bootstrapped", id="data lost"),
        pytest.param(flip_its_log, "crc mismatch", id="log flipped", marks=pytest.mark.chaos),
        pytest.param(flip_a_value, "data inconsistency", id="value flipped", marks=pytest.mark.chaos),
    ],
)
async def test_a_member_of_the_store_that_is_damaged_does_not_start_and_is_replaced(
    cast: Cast, damage: Callable[[Path], None], says: str
) -> None:
    """The two others go on meanwhile; the new one bears the store with one of them."""
    site, etcd = cast.site, cast.site.etcd
    await has_a_snapshot(etcd)
    await site.client.do(vms.update(cast.beside.id, vms.VmUpdate(description=MARK.decode())))
    await until(functools.partial(written_down, etcd), "the write is not in the member's files")
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside) as writer:
        etcd.kill(PLACE)
        damage(etcd.home(PLACE))
        etcd.start(PLACE, CHECKED)
        assert await asyncio.to_thread(etcd.ends, PLACE) != 0
        assert says in etcd.said(PLACE)
        await writer.goes_on()
        await etcd.replace(PLACE, asked=1)
        await etcd.up(PLACE)
        etcd.kill(1)
        await writer.goes_on()
        nobody_noticed(cast, seen)
    found = await site.client.do(vms.get(cast.beside.id))
    assert found.description == MARK.decode()


async def has_a_snapshot(etcd: Members) -> None:
    """Of its log; before its first one etcd 3.4 knows no other members to compare itself with at its start."""
    etcd.kill(PLACE)
    etcd.start(PLACE, "--snapshot-count", "100")
    await etcd.up(PLACE)

    async def so() -> bool:
        return any((etcd.home(PLACE) / "member/snap").glob("*.snap"))

    await until(so, "the member makes no snapshot")


async def written_down(etcd: Members) -> bool:
    """Whether log and pages of the member have the mark: the pages get it some time after it was acknowledged."""
    home = etcd.home(PLACE) / "member"
    return all(MARK in file.read_bytes() for file in (home / "snap/db", *(home / "wal").glob("*.wal")))


async def test_a_store_without_room_says_what_to_do_and_machines_run_on(cast: Cast) -> None:
    """NOSPACE: each server refuses writes with the remedy, answers reads, gives nodes time; the remedy then works."""
    site, etcd = cast.site, cast.site.etcd
    await restarted(etcd, "--quota-backend-bytes", str(ROOM_BYTES))
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside) as writer:
        await asyncio.to_thread(fill, etcd)
        for name, reader in site.readers.items():
            await until(functools.partial(is_full, reader, cast.struck.id), f"{name} does not say that it is full")
            assert (await reader.do(vms.get(cast.struck.id))).state == "running"
        await seen.lasts(site.heartbeat_s * 25)
        nobody_noticed(cast, seen)
        assert all("has no room left" in child.log.read_text() for child in site.servers.values())
        await asyncio.to_thread(make_room, etcd)
        await writer.goes_on()
        await site.all_up()
        nobody_noticed(cast, seen)
    await restarted(etcd)


async def restarted(etcd: Members, *flags: str) -> None:
    for place in range(len(etcd.ports)):
        etcd.kill(place)
        etcd.start(place, *flags)
        await etcd.up(place)


async def is_full(reader: AsyncClient, vm_id: str) -> bool:
    """Whether a write is refused with the reason and what to type."""
    try:
        await reader.do(vms.update(vm_id, vms.VmUpdate(description="no room")))
    except NovaCronError as refused:
        return any(one.code == "store.full" and "etcdctl alarm disarm" in one.remedy for one in refused.reasons)
    return False


def fill(etcd: Members) -> None:
    """With what others keep beside our records, until etcd takes no more."""
    piece = base64.b64encode(b"x" * PIECE_BYTES).decode()
    for number in range(2 * ROOM_BYTES // PIECE_BYTES):
        key = base64.b64encode(b"/others/%d" % number).decode()
        try:
            etcd.call(PLACE, "kv/put", {"key": key, "value": piece})
        except OSError:
            assert etcd.call(PLACE, "maintenance/alarm", {"action": "GET"})["alarms"]
            return
    raise AssertionError("etcd takes everything")


def make_room(etcd: Members) -> None:
    """As the remedy has it."""
    low, high = (base64.b64encode(one).decode() for one in (b"/others/", b"/others0"))
    gone = etcd.call(PLACE, "kv/deleterange", {"key": low, "range_end": high})
    etcd.call(PLACE, "kv/compaction", {"revision": gone["header"]["revision"], "physical": True})
    for place in range(len(etcd.ports)):
        etcd.call(place, "maintenance/defragment")
    for alarm in etcd.call(PLACE, "maintenance/alarm", {"action": "GET"})["alarms"]:
        etcd.call(PLACE, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})
