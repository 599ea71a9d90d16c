"""A Ceph cluster counts a client that was killed for another half minute: what that means for its volumes."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator, Sequence

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile
from novacron.agent.storage.rbd import RbdPool
from novacron.errors import NotFound, StateConflict
from novacron.model.machine import Disk
from tests.contract.test_pool import an_image
from tests.system.servers.backends import KINDS, MIB, VOLUMES, Backend, Servers, io_words, qemu_io, started

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(KINDS["ceph-rbd"].missing is not None, reason=KINDS["ceph-rbd"].missing or ""),
]

ONE, TWO, THREE, FOUR = VOLUMES
SNAP = "01890a5d-ac96-774b-bcce-b302099a8061"


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture
def ceph(servers: Servers) -> Iterator[Backend]:
    with started(KINDS["ceph-rbd"], servers) as one:
        yield one


async def made(ceph: Backend, volume_id: str, size: int = 8 * MIB) -> DiskFile:
    return await ceph.pool.ensure_volume(Disk(volume_id=volume_id, size_bytes=size), uid=None, gid=None)


@contextlib.contextmanager
def opened(words: Sequence[str]) -> Iterator[None]:
    """A machine that has written to its volume and holds it open; killed at the end of the block."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        try:
            machine.stdin.write(b"write -P 9 0 64k\n")
            said = b""
            while b"wrote" not in said:
                piece = machine.stdout.read(100)
                assert piece, said
                said += piece
            yield
        finally:
            machine.kill()


def written(ceph: Backend, *disks: DiskFile) -> None:
    """Each was a machine's that was killed."""
    with contextlib.ExitStack() as stack:
        for disk in disks:
            stack.enter_context(opened(io_words(disk, ceph.directory)))


async def test_what_is_asked_of_a_killed_machines_volumes_is_done_as_soon_as_ceph_lets_go(ceph: Backend) -> None:
    disks = [await made(ceph, volume_id) for volume_id in (ONE, TWO, THREE)]
    await ceph.pool.take_snapshot(TWO, SNAP)
    written(ceph, *disks)
    await asyncio.gather(
        ceph.pool.grow_volume(Disk(volume_id=ONE, size_bytes=16 * MIB)),
        ceph.pool.revert_snapshot(TWO, SNAP),
        ceph.pool.remove_volume(THREE),
    )
    assert (await ceph.pool.extent(ONE)).size_bytes == 16 * MIB
    assert "failed" not in qemu_io(disks[0], ceph.directory, "read -P 9 0 64k")
    assert "failed" not in qemu_io(disks[1], ceph.directory, "read -P 0 0 64k")
    with pytest.raises(NotFound):
        await ceph.pool.extent(THREE)


async def test_a_killed_machine_is_started_again_at_once(ceph: Backend) -> None:
    disk = await made(ceph, ONE)
    written(ceph, disk)
    assert await ceph.pool.ensure_volume(Disk(volume_id=ONE, size_bytes=8 * MIB), uid=None, gid=None, in_use=True)
    assert "failed" not in qemu_io(disk, ceph.directory, "read -P 9 0 64k", "write -P 8 0 64k", "read -P 8 0 64k")


async def test_a_volume_in_use_says_by_whom_and_that_a_killed_client_passes(ceph: Backend) -> None:
    disk = await made(ceph, ONE)
    with opened(io_words(disk, ceph.directory)):
        with pytest.raises(StateConflict, match="in use") as caught:
            await ceph.pool.remove_volume(ONE)
        (why,) = caught.value.reasons
        assert "127.0.0.1:0/" in why.message
        assert "a client that was killed is counted for 30 s, then ask again" in why.remedy


async def test_what_is_being_made_elsewhere_is_left_to_its_maker_and_thrown_away_later(ceph: Backend) -> None:
    assert isinstance(ceph.pool, RbdPool)
    digest, file = an_image(ceph)
    half = await made(ceph, FOUR)
    left = f"making-image-{digest}.half"
    await ceph.pool._rbd.rename(f"volume-{FOUR}", left)
    half = msgspec.structs.replace(half, source=ceph.pool._source(left))
    with opened(io_words(half, ceph.directory)):
        await ceph.pool.keep_image(digest, file)
        assert left in await ceph.pool._rbd.names()
    while await ceph.pool._rbd.watchers(left):
        await asyncio.sleep(0.5)
    assert await ceph.pool.drop_image(digest)
    assert await ceph.pool._rbd.names() == ()
