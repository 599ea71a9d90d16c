"""Pools of ready-made units, with a real NBD server: what is not ours is left alone, what is half made is no volume."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.storage.qemu_img import QemuImg
from novacron.agent.storage.tool import Tools
from novacron.errors import Conflict, DriverError, InvalidInput, NoRoom, NotFound, Unavailable
from novacron.model.machine import Disk
from novacron.model.pool import PoolDriver
from tests.ports import free_port
from tests.system.servers import nbd
from tests.system.servers.backends import KINDS, MIB, UNIT_BYTES, VOLUMES, Backend, Servers, a_spec, maker_in, started

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(nbd.missing is not None, reason=str(nbd.missing)),
]

ONE, TWO = VOLUMES[:2]
DISK = Disk(volume_id=ONE, size_bytes=8 * MIB)


@pytest.fixture
def backend() -> Iterator[Backend]:
    with started(KINDS["nbd"], Servers()) as one:
        yield one


def unit(backend: Backend, number: int = 0) -> Path:
    return backend.directory / "exports" / f"disk-{number}"


@pytest.mark.parametrize("offset", [0, 1024, 65536, MIB - 1])
async def test_a_unit_with_something_else_in_it_is_left_alone(backend: Backend, offset: int) -> None:
    """An operator who names the wrong LUN loses nothing."""
    with unit(backend).open("r+b") as file:
        file.seek(offset)
        file.write(b"x")
    for work in (
        backend.pool.ensure_volume(DISK, uid=None, gid=None),
        backend.pool.extent(ONE),
        backend.pool.grow_volume(DISK),
    ):
        with pytest.raises(Conflict, match="no volume"):
            await work
    await backend.pool.remove_volume(ONE)
    with unit(backend).open("rb") as file:
        file.seek(offset)
        assert file.read(1) == b"x"


async def test_a_volume_that_names_a_file_is_left_alone(backend: Backend, tmp_path: Path) -> None:
    with (tmp_path / "made").open("w+b") as file:
        await QemuImg(Tools()).create(file.fileno(), MIB, ("/etc/passwd", "raw"))
        head = (tmp_path / "made").read_bytes()
    with unit(backend).open("r+b") as file:
        file.write(head)
    with pytest.raises(Conflict, match="not ours"):
        await backend.pool.ensure_volume(DISK, uid=None, gid=None, in_use=True)


async def test_a_copy_that_failed_half_way_is_no_volume(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend.pool.ensure_volume(DISK, uid=None, gid=None)

    async def fail(*_: object) -> None:
        raise DriverError("cut off")

    with monkeypatch.context() as broken:
        broken.setattr(QemuImg, "forget_below", fail)
        with pytest.raises(DriverError, match="cut off"):
            await backend.pool.clone_volume(msgspec.structs.replace(DISK, volume_id=TWO), ONE)
    assert unit(backend, 1).read_bytes()[:4] == b"QFI\xfb"  # it is there, in part
    with pytest.raises(NotFound):
        await backend.pool.extent(TWO)
    with pytest.raises(NotFound):
        await backend.pool.ensure_volume(msgspec.structs.replace(DISK, volume_id=TWO), uid=None, gid=None, in_use=True)
    await backend.pool.clone_volume(msgspec.structs.replace(DISK, volume_id=TWO), ONE)
    assert (await backend.pool.extent(TWO)).size_bytes == 8 * MIB


async def test_a_volume_larger_than_its_unit(backend: Backend) -> None:
    with pytest.raises(NoRoom, match=f"has {UNIT_BYTES} bytes"):
        await backend.pool.ensure_volume(Disk(volume_id=ONE, size_bytes=UNIT_BYTES), uid=None, gid=None)
    assert not any(unit(backend).read_bytes()[:MIB])
    await backend.pool.ensure_volume(DISK, uid=None, gid=None)
    with pytest.raises(NoRoom):
        await backend.pool.grow_volume(Disk(volume_id=ONE, size_bytes=2 * UNIT_BYTES))
    assert (await backend.pool.extent(ONE)).size_bytes == 8 * MIB


async def test_made_by_many_at_once_there_is_one(backend: Backend) -> None:
    made = await asyncio.gather(*(backend.pool.ensure_volume(DISK, uid=None, gid=None) for _ in range(4)))
    assert all(one == made[0] for one in made)


async def test_a_volume_without_a_unit(backend: Backend) -> None:
    other = "01890a5d-ac96-774b-bcce-b302099a8077"
    with pytest.raises(NotFound, match="given no unit") as raised:
        await backend.pool.ensure_volume(Disk(volume_id=other, size_bytes=MIB), uid=None, gid=None)
    assert f"unit.{other}" in raised.value.reasons[0].remedy
    await backend.pool.remove_volume(other)


async def test_a_unit_the_pool_has_not(tmp_path: Path) -> None:
    spec = a_spec(PoolDriver.NBD, address="/nowhere", units="a", **{f"unit.{ONE}": "b"})
    with pytest.raises(InvalidInput, match="not among"):
        await maker_in(tmp_path)(spec).ensure_volume(DISK, uid=None, gid=None)


async def test_a_server_out_of_reach_says_so(tmp_path: Path) -> None:
    for driver, told in (
        (PoolDriver.NBD, {"address": f"127.0.0.1:{free_port()}"}),
        (PoolDriver.NBD, {"address": str(tmp_path / "absent.sock")}),
        (PoolDriver.ISCSI, {"portal": f"127.0.0.1:{free_port()}", "target": "iqn.2026-01.x:y"}),
    ):
        pool = maker_in(tmp_path / os.urandom(4).hex())(a_spec(driver, units="1", **{f"unit.{ONE}": "1"}, **told))
        with pytest.raises(Unavailable, match="cannot be reached"):
            await pool.space()
        with pytest.raises(Unavailable):
            await pool.ensure_volume(DISK, uid=None, gid=None)


async def test_space_counts_the_units_that_are_free(tmp_path: Path, backend: Backend) -> None:
    at = backend.directory / "nbd.sock"
    spec = a_spec(PoolDriver.NBD, address=str(at), units="disk-0,disk-1,disk-2", **{f"unit.{ONE}": "disk-1"})
    space = await maker_in(tmp_path)(spec).space()
    assert (space.free_bytes, space.size_bytes) == (2 * UNIT_BYTES, 3 * UNIT_BYTES)
