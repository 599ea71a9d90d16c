"""The contract of a storage pool, as tests: every kind passes this file unchanged, on its real server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from novacron.errors import Conflict, InvalidInput, NotFound, StateConflict
from novacron.model.machine import Disk
from tests.system.servers.backends import KINDS, MIB, VOLUMES, Backend, Servers, io_words, qemu_io, started
from tests.system.servers.process import run

pytestmark = [pytest.mark.anyio, pytest.mark.system]

ONE, TWO, THREE, _ = VOLUMES
SNAP, OTHER = "01890a5d-ac96-774b-bcce-b302099a8051", "01890a5d-ac96-774b-bcce-b302099a8052"
SIZE = 8 * MIB


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.slow] if kind.is_slow else []) for name, kind in KINDS.items()]
)
def backend(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Backend]:
    kind = KINDS[request.param]
    if kind.missing:
        pytest.skip(kind.missing)
    with started(kind, servers) as one:
        yield one


def a_disk(volume_id: str = ONE, size: int = SIZE, digest: str = "") -> Disk:
    return Disk(volume_id=volume_id, size_bytes=size, backing_digest=digest)


async def fill(backend: Backend, volume_id: str, byte: int, at: int = 0) -> None:
    """Write 64 KiB as its guest would."""
    disk = await backend.pool.ensure_volume(a_disk(volume_id), uid=None, gid=None, in_use=True)
    await asyncio.to_thread(qemu_io, disk, backend.directory, f"write -P {byte} {at} 64k")


async def holds(backend: Backend, volume_id: str, byte: int, at: int = 0) -> bool:
    """Whether 64 KiB of it are that byte."""
    disk = await backend.pool.ensure_volume(a_disk(volume_id), uid=None, gid=None, in_use=True)
    said = await asyncio.to_thread(qemu_io, disk, backend.directory, f"read -P {byte} {at} 64k")
    return "Pattern verification failed" not in said


async def make(backend: Backend, volume_id: str = ONE, size: int = SIZE) -> None:
    await backend.pool.ensure_volume(a_disk(volume_id, size), uid=None, gid=None)


def an_image(backend: Backend, kind: str = "raw") -> tuple[str, Path]:
    """A disk image of 3 MiB: a MiB of sevens, then zeros."""
    raw = backend.directory / "image.raw"
    raw.write_bytes(b"\x07" * MIB + bytes(2 * MIB))
    if kind == "qcow2":
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, backend.directory / "image.qcow2")
        raw = backend.directory / "image.qcow2"
    return hashlib.sha256(raw.read_bytes()).hexdigest(), raw


# -- volumes ----------------------------------------------------------------------------------------------------


async def test_space_is_told_in_bytes(backend: Backend) -> None:
    space = await backend.pool.space()
    assert 0 <= space.free_bytes <= space.size_bytes
    assert space.size_bytes > SIZE


async def test_a_new_volume_is_empty_and_stays_what_it_became(backend: Backend) -> None:
    await make(backend)
    extent = await backend.pool.extent(ONE)
    assert extent.size_bytes == SIZE
    assert extent.used_bytes >= 0
    assert await holds(backend, ONE, 0)
    await fill(backend, ONE, 0x11)
    await make(backend)
    assert await holds(backend, ONE, 0x11)


async def test_a_volume_in_use_is_never_made_anew(backend: Backend) -> None:
    with pytest.raises(NotFound):
        await backend.pool.ensure_volume(a_disk(), uid=None, gid=None, in_use=True)
    with pytest.raises(NotFound):
        await backend.pool.extent(ONE)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_child_of_an_image_begins_as_the_image(backend: Backend, form: str) -> None:
    digest, file = an_image(backend, form)
    with pytest.raises(NotFound):
        await backend.pool.ensure_volume(a_disk(digest=digest), uid=None, gid=None)
    await backend.pool.keep_image(digest, file)
    await backend.pool.ensure_volume(a_disk(digest=digest), uid=None, gid=None)
    assert (await backend.pool.extent(ONE)).size_bytes == SIZE
    assert await holds(backend, ONE, 7)
    assert await holds(backend, ONE, 0, 4 * MIB)
    await fill(backend, ONE, 0x22)
    await backend.pool.ensure_volume(a_disk(TWO, digest=digest), uid=None, gid=None)
    assert await holds(backend, TWO, 7)


async def test_a_child_is_at_least_as_large_as_its_image(backend: Backend) -> None:
    digest, file = an_image(backend)
    await backend.pool.keep_image(digest, file)
    await backend.pool.ensure_volume(a_disk(size=MIB, digest=digest), uid=None, gid=None)
    assert (await backend.pool.extent(ONE)).size_bytes == 3 * MIB


async def test_removed_is_gone_and_its_content_with_it(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x33)
    await backend.pool.take_snapshot(ONE, SNAP)
    for _ in range(2):
        await backend.pool.remove_volume(ONE)
    with pytest.raises(NotFound):
        await backend.pool.extent(ONE)
    await make(backend)
    assert await holds(backend, ONE, 0)


async def test_growing_keeps_the_content_and_never_shrinks(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x44)
    for size in (2 * SIZE, 2 * SIZE, SIZE):
        await backend.pool.grow_volume(a_disk(size=size))
        assert (await backend.pool.extent(ONE)).size_bytes == 2 * SIZE
    assert await holds(backend, ONE, 0x44)
    assert await holds(backend, ONE, 0, 2 * SIZE - 65536)
    with pytest.raises(NotFound):
        await backend.pool.grow_volume(a_disk(TWO))


# -- clones -----------------------------------------------------------------------------------------------------


async def test_a_clone_and_its_source_live_apart(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x55)
    for _ in range(2):
        await backend.pool.clone_volume(a_disk(TWO, 2 * SIZE), ONE)
        assert (await backend.pool.extent(TWO)).size_bytes == 2 * SIZE
    await fill(backend, ONE, 0x56)
    assert await holds(backend, TWO, 0x55)
    await fill(backend, TWO, 0x57)
    assert await holds(backend, ONE, 0x56)
    await backend.pool.clone_volume(a_disk(TWO), ONE)
    assert await holds(backend, TWO, 0x57)


async def test_a_source_may_go_before_its_clone(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x58)
    await backend.pool.clone_volume(a_disk(TWO), ONE)
    await backend.pool.remove_volume(ONE)
    assert await holds(backend, TWO, 0x58)
    with pytest.raises(NotFound):
        await backend.pool.clone_volume(a_disk(THREE), ONE)
    with pytest.raises(NotFound):
        await backend.pool.extent(THREE)


async def test_a_clone_of_a_snapshot_has_its_content_and_none_of_the_snapshots(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x61)
    await backend.pool.take_snapshot(ONE, SNAP)
    await fill(backend, ONE, 0x62)
    await backend.pool.take_snapshot(ONE, OTHER)
    await backend.pool.clone_volume(a_disk(TWO), ONE, SNAP)
    assert await holds(backend, TWO, 0x61)
    assert await holds(backend, ONE, 0x62)
    for snapshot in (SNAP, OTHER):
        with pytest.raises(NotFound):
            await backend.pool.revert_snapshot(TWO, snapshot)
    await backend.pool.delete_snapshot(ONE, SNAP)
    await backend.pool.remove_volume(ONE)
    assert await holds(backend, TWO, 0x61)
    with pytest.raises(NotFound):
        await backend.pool.clone_volume(a_disk(THREE), TWO, SNAP)


async def test_a_clone_of_a_child_of_an_image(backend: Backend) -> None:
    digest, file = an_image(backend)
    await backend.pool.keep_image(digest, file)
    await backend.pool.ensure_volume(a_disk(digest=digest), uid=None, gid=None)
    await fill(backend, ONE, 0x66, MIB)
    await backend.pool.clone_volume(a_disk(TWO), ONE)
    assert await holds(backend, TWO, 7)
    assert await holds(backend, TWO, 0x66, MIB)


# -- snapshots --------------------------------------------------------------------------------------------------


async def test_snapshots_bring_back_what_was(backend: Backend) -> None:
    await make(backend)
    await fill(backend, ONE, 0x71)
    for _ in range(2):
        await backend.pool.take_snapshot(ONE, SNAP)
        await fill(backend, ONE, 0x72)  # asked again, the snapshot is the one there is
    await backend.pool.take_snapshot(ONE, OTHER)
    await fill(backend, ONE, 0x73)
    for snapshot, byte in ((SNAP, 0x71), (OTHER, 0x72), (SNAP, 0x71)):
        await backend.pool.revert_snapshot(ONE, snapshot)
        assert await holds(backend, ONE, byte)
    for _ in range(2):
        await backend.pool.delete_snapshot(ONE, SNAP)
    with pytest.raises(NotFound):
        await backend.pool.revert_snapshot(ONE, SNAP)
    assert await holds(backend, ONE, 0x71)
    await backend.pool.revert_snapshot(ONE, OTHER)
    assert await holds(backend, ONE, 0x72)


async def test_an_exported_snapshot_stands_alone(backend: Backend) -> None:
    digest, file = an_image(backend)
    await backend.pool.keep_image(digest, file)
    await backend.pool.ensure_volume(a_disk(digest=digest), uid=None, gid=None)
    await backend.pool.take_snapshot(ONE, SNAP)
    await fill(backend, ONE, 0x81, MIB)
    then, now = backend.directory / "then.qcow2", backend.directory / "now.qcow2"
    await backend.pool.export_snapshot(ONE, SNAP, then)
    await backend.pool.export_snapshot(ONE, "", now)
    for exported, byte in ((then, 0), (now, 0x81)):
        info = run("qemu-img", "info", "-f", "qcow2", "--output=json", exported)
        assert "backing" not in info
        assert SNAP not in info
        said = run("qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", "-c", f"read -P {byte} {MIB} 64k", exported)
        assert "failed" not in said
        assert exported.stat().st_uid == os.geteuid()
    with pytest.raises(Conflict, match="there already"):
        await backend.pool.export_snapshot(ONE, "", now)
    with pytest.raises(NotFound):
        await backend.pool.export_snapshot(ONE, OTHER, backend.directory / "other.qcow2")
    assert not [left for left in backend.directory.iterdir() if left.name.startswith(".")]


# -- images -----------------------------------------------------------------------------------------------------


async def test_images_are_kept_once_and_dropped_when_no_volume_needs_them(backend: Backend) -> None:
    digest, file = an_image(backend)
    assert await backend.pool.images() == ()
    for _ in range(2):
        await backend.pool.keep_image(digest, file)
        assert await backend.pool.images() == (digest,)
    await backend.pool.ensure_volume(a_disk(digest=digest), uid=None, gid=None)
    if backend.shares:
        assert not await backend.pool.drop_image(digest)
        assert await backend.pool.images() == (digest,)
        await backend.pool.clone_volume(a_disk(TWO), ONE)
        await backend.pool.remove_volume(ONE)
        await backend.pool.drop_image(digest)  # goes only where the clone has blocks of its own now
        assert await holds(backend, TWO, 7)
        await backend.pool.remove_volume(TWO)
    for _ in range(2):
        assert await backend.pool.drop_image(digest)
    assert await backend.pool.images() == ()


# -- wrong and hostile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", f"{ONE}\n", ONE.upper(), "-o", "a,b=c", "a@b", "a/b"])
async def test_ids_are_ids(backend: Backend, name: str) -> None:
    pool = backend.pool
    await make(backend)
    asked = [
        pool.ensure_volume(a_disk(name), uid=None, gid=None),
        pool.clone_volume(a_disk(name), ONE),
        pool.clone_volume(a_disk(TWO), name),
        pool.grow_volume(a_disk(name)),
        pool.remove_volume(name),
        pool.extent(name),
        pool.take_snapshot(ONE, name),
        pool.revert_snapshot(ONE, name),
        pool.delete_snapshot(ONE, name),
        pool.keep_image(name, backend.directory / "nothing"),
        pool.drop_image(name),
    ]
    for one in asked:
        with pytest.raises(InvalidInput):
            await one


async def test_a_volume_a_machine_has_open_is_left_alone(backend: Backend) -> None:
    if not backend.sees_use:
        pytest.skip("its server does not tell who has a unit open: the control plane alone keeps them apart")
    await make(backend)
    await backend.pool.take_snapshot(ONE, SNAP)
    disk = await backend.pool.ensure_volume(a_disk(), uid=None, gid=None, in_use=True)
    words = io_words(disk, backend.directory)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        try:
            machine.stdin.write(b"write -P 9 0 64k\n")
            said = b""
            while b"wrote" not in said:
                piece = await asyncio.to_thread(machine.stdout.read, 100)
                assert piece, said
                said += piece
            await backend.pool.ensure_volume(a_disk(), uid=None, gid=None, in_use=True)
            answers = await asyncio.gather(
                backend.pool.grow_volume(a_disk(size=2 * SIZE)),
                backend.pool.remove_volume(ONE),
                backend.pool.clone_volume(a_disk(TWO), ONE),
                backend.pool.revert_snapshot(ONE, SNAP),
                return_exceptions=True,
            )
            for refusal in answers:
                assert isinstance(refusal, StateConflict), answers
                assert "in use" in refusal.message
                assert refusal.reasons[0].code == "volume.in_use"
        finally:
            machine.kill()
    with pytest.raises(NotFound):
        await backend.pool.extent(TWO)
    assert (await backend.pool.extent(ONE)).size_bytes == SIZE
