"""The shared directory pool with the real qemu-img: whole volumes or none, and content through the overlay."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from novacron.agent.drivers.base import FileAt, Layer
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.tool import Tools
from novacron.errors import DriverError, InvalidInput, NoRoom, NotFound, Unavailable
from novacron.model.identity import is_id
from novacron.model.machine import Disk

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img"),
]

MIB = 1 << 20
VOLUME = "01890a5d-ac96-774b-bcce-b302099a8057"
OTHER = "01890a5d-ac96-774b-bcce-b302099a8058"


@pytest.fixture
def pool_dir(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    (path / "images").mkdir(parents=True)
    return path


@pytest.fixture
def pool(pool_dir: Path) -> DirectoryPool:
    return DirectoryPool(pool_dir)


def add_image(pool_dir: Path, source: Path) -> str:
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    target = pool_dir / "images" / digest
    shutil.copy(source, target)
    target.chmod(0o444)
    return digest


def run(*words: object) -> str:
    return subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True).stdout


def info(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path))
    return found


def content(path: Path, tmp_path: Path) -> bytes:
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, tmp_path / "content")
    return (tmp_path / "content").read_bytes()


def image_of(kind: str, tmp_path: Path, size: int = 3 * MIB) -> tuple[Path, bytes]:
    """A disk image of a format, and what a guest would read from it."""
    raw = tmp_path / "source.raw"
    raw.write_bytes(os.urandom(MIB) + bytes(size - MIB))
    if kind == "raw":
        return raw, raw.read_bytes()
    other = tmp_path / "source.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, other)
    return other, raw.read_bytes()


def nothing_left(pool_dir: Path) -> bool:
    making = pool_dir / "volumes" / ".making"
    return not making.exists() or not list(making.iterdir())


async def test_an_empty_volume(pool: DirectoryPool, pool_dir: Path) -> None:
    made = await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=64 * MIB), uid=None, gid=None)
    assert (made.source, made.format, made.backing) == (FileAt(pool_dir / "volumes" / f"{VOLUME}.qcow2"), "qcow2", ())
    seen = info(made.source.path)
    assert (seen["format"], seen["virtual-size"], seen.get("backing-filename")) == ("qcow2", 64 * MIB, None)
    assert stat.S_IMODE(made.source.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.source.path.parent.stat().st_mode) == 0o711
    assert nothing_left(pool_dir)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_the_content_through_the_overlay_is_the_images(
    pool: DirectoryPool, pool_dir: Path, tmp_path: Path, kind: str
) -> None:
    source, expected = image_of(kind, tmp_path)
    digest = add_image(pool_dir, source)
    disk = Disk(volume_id=VOLUME, size_bytes=5 * MIB, backing_digest=digest)
    made = await pool.ensure_volume(disk, uid=None, gid=None)
    assert made.backing == (Layer(FileAt(pool_dir / "images" / digest), kind),)
    seen = info(made.source.path)
    assert (seen["virtual-size"], seen["backing-filename-format"]) == (5 * MIB, kind)
    assert content(made.source.path, tmp_path) == expected + bytes(2 * MIB)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
async def test_a_child_is_never_smaller_than_its_image(
    pool: DirectoryPool, pool_dir: Path, tmp_path: Path, kind: str
) -> None:
    source, expected = image_of(kind, tmp_path)
    disk = Disk(volume_id=VOLUME, size_bytes=MIB, backing_digest=add_image(pool_dir, source))
    made = await pool.ensure_volume(disk, uid=None, gid=None)
    assert content(made.source.path, tmp_path) == expected


async def test_a_pool_may_be_mounted_elsewhere_on_another_node(
    pool: DirectoryPool, pool_dir: Path, tmp_path: Path
) -> None:
    source, expected = image_of("raw", tmp_path)
    disk = Disk(volume_id=VOLUME, size_bytes=MIB, backing_digest=add_image(pool_dir, source))
    await pool.ensure_volume(disk, uid=None, gid=None)
    elsewhere = tmp_path / "elsewhere"
    pool_dir.rename(elsewhere)
    made = await DirectoryPool(elsewhere).ensure_volume(disk, uid=None, gid=None)
    assert content(made.source.path, tmp_path) == expected


async def test_asked_again_it_keeps_what_was_written(pool: DirectoryPool, pool_dir: Path, tmp_path: Path) -> None:
    disk = Disk(volume_id=VOLUME, size_bytes=4 * MIB)
    made = await pool.ensure_volume(disk, uid=None, gid=None)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", made.source.path)
    before = made.source.path.read_bytes()
    assert await pool.ensure_volume(disk, uid=None, gid=None) == made
    assert made.source.path.read_bytes() == before


async def test_asked_many_times_at_once_by_two_nodes_there_is_one(pool_dir: Path) -> None:
    disk = Disk(volume_id=VOLUME, size_bytes=4 * MIB)
    nodes = [DirectoryPool(pool_dir) for _ in range(2)]
    made = await asyncio.gather(*(node.ensure_volume(disk, uid=None, gid=None) for node in nodes * 4))
    assert len(set(made)) == 1
    assert info(made[0].source.path)["virtual-size"] == 4 * MIB
    assert nothing_left(pool_dir)


async def test_a_volume_that_another_node_made_meanwhile_is_kept(pool_dir: Path, tmp_path: Path) -> None:
    volume = pool_dir / "volumes" / f"{VOLUME}.qcow2"
    slow = program(tmp_path, 'qemu-img "$@" || exit 1', f"qemu-img create -q -f qcow2 {volume} 7M")
    made = await DirectoryPool(pool_dir, str(slow)).ensure_volume(
        Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None
    )
    assert made.source.path == volume
    assert (await DirectoryPool(pool_dir).extent(VOLUME)).size_bytes == 7 * MIB
    assert nothing_left(pool_dir)


@pytest.mark.root
async def test_it_belongs_to_the_machines_user(pool: DirectoryPool) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    disk = Disk(volume_id=VOLUME, size_bytes=MIB)
    made = await pool.ensure_volume(disk, uid=64001, gid=64002)
    assert (made.source.path.stat().st_uid, made.source.path.stat().st_gid) == (64001, 64002)
    await pool.ensure_volume(disk, uid=64003, gid=64003)
    assert made.source.path.stat().st_uid == 64003


async def test_removing_twice_is_fine(pool: DirectoryPool, pool_dir: Path) -> None:
    made = await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None)
    for _ in range(2):
        await pool.remove_volume(VOLUME)
        assert not made.source.path.exists()
    assert pool_dir.exists()


# -- crashes and failures ---------------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from pathlib import Path
from novacron.agent.storage.directory import DirectoryPool
from novacron.model.machine import Disk
disk = Disk(volume_id=sys.argv[3], size_bytes=1 << 20)
asyncio.run(DirectoryPool(Path(sys.argv[1]), sys.argv[2]).ensure_volume(disk, uid=None, gid=None))
"""


def program(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "qemu-img"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


async def test_killed_after_the_file_is_made_there_is_no_volume(
    pool: DirectoryPool, pool_dir: Path, tmp_path: Path
) -> None:
    killer = program(tmp_path, 'qemu-img "$@" || exit 1', "kill -9 $PPID")
    child = subprocess.run([sys.executable, "-c", CHILD, pool_dir, killer, VOLUME], check=False)
    assert child.returncode == -9
    assert not nothing_left(pool_dir)
    assert not list((pool_dir / "volumes").glob("*.qcow2"))
    made = await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=2 * MIB), uid=None, gid=None)
    assert info(made.source.path)["virtual-size"] == 2 * MIB
    await pool.remove_volume(VOLUME)
    assert nothing_left(pool_dir)


async def test_a_failing_qemu_img_is_quoted_and_leaves_nothing(pool_dir: Path, tmp_path: Path) -> None:
    broken = program(tmp_path, "yes 'it hurts' | head -c 100000 >&2", "exit 3")
    with pytest.raises(DriverError, match="ended with 3: it hurts") as raised:
        await DirectoryPool(pool_dir, str(broken)).ensure_volume(
            Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None
        )
    assert len(raised.value.message) < 3000
    assert not (pool_dir / "volumes" / f"{VOLUME}.qcow2").exists()
    assert nothing_left(pool_dir)


async def test_given_up_it_ends_the_program_and_leaves_nothing(pool_dir: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    slow = program(tmp_path, f"echo $$ > {fifo}", "exec sleep 1000")
    disk = Disk(volume_id=VOLUME, size_bytes=MIB)
    making = asyncio.create_task(DirectoryPool(pool_dir, str(slow)).ensure_volume(disk, uid=None, gid=None))
    pid = int(await asyncio.to_thread(fifo.read_text))
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert nothing_left(pool_dir)


async def test_it_runs_under_limits(pool_dir: Path, tmp_path: Path) -> None:
    said = tmp_path / "limits"
    shown = program(tmp_path, f"cat /proc/self/limits > {said}", "exit 1")
    with pytest.raises(DriverError):
        await DirectoryPool(pool_dir, str(shown)).ensure_volume(
            Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None
        )
    limits = said.read_text()
    assert f"{1 << 30}" in next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert "30" in next(line for line in limits.splitlines() if line.startswith("Max cpu time"))


@pytest.mark.root
async def test_a_full_pool_is_no_room(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk)
    try:
        with pytest.raises(NoRoom, match="full"):
            await DirectoryPool(disk).ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None)
        assert nothing_left(disk)
        assert not (disk / "volumes" / f"{VOLUME}.qcow2").exists()
    finally:
        run("umount", disk)


@pytest.mark.root
async def test_a_clone_shares_blocks_where_the_file_system_can(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("mounting an XFS file system needs root and xfsprogs")
    disk, at = tmp_path / "disk", tmp_path / "at"
    at.mkdir()
    with disk.open("wb") as file:
        file.truncate(400 * MIB)
    run("mkfs.xfs", "-q", "-m", "reflink=1", disk)
    run("mount", "-o", "loop", disk, at)
    try:
        pool = DirectoryPool(at)
        made = await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=64 * MIB), uid=None, gid=None)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 48M", made.source.path)
        before = (await pool.space()).free_bytes
        await pool.clone_volume(Disk(volume_id=OTHER, size_bytes=0), VOLUME)
        assert before - (await pool.space()).free_bytes < 4 * MIB
        assert (await pool.extent(OTHER)).size_bytes == 64 * MIB
    finally:
        run("umount", at)


@pytest.mark.root
async def test_a_pool_that_becomes_full_on_the_way_is_no_room_and_nothing_half_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    at = tmp_path / "at"
    at.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", at)
    try:
        pool, disk = DirectoryPool(at), Disk(volume_id=VOLUME, size_bytes=16 * MIB)
        made = await pool.ensure_volume(disk, uid=None, gid=None)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", made.source.path)
        with pytest.raises(NoRoom):
            await pool.clone_volume(Disk(volume_id=OTHER, size_bytes=0), VOLUME)
        large = tmp_path / "image"
        large.write_bytes(b"x" * (4 * MIB))
        with pytest.raises(NoRoom):
            await pool.keep_image("a" * 64, large)
        (at / "fill").write_bytes(bytes(shutil.disk_usage(at).free - 16384))
        with pytest.raises(NoRoom):
            await pool.export_snapshot(VOLUME, "", at / "out")
        assert nothing_left(at)
        assert await pool.images() == ()
        assert sorted(path.name for path in at.rglob("*") if path.is_file()) == [f"{VOLUME}.qcow2", "fill"]
    finally:
        run("umount", at)


@pytest.mark.root
async def test_as_root_no_tool_runs_as_root_and_volumes_stay_their_owners() -> None:
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    uid, owner = 0x4E43_0000, 0x4E43_0005
    with tempfile.TemporaryDirectory(prefix="novacron-pool-") as place:
        directory = Path(place)
        directory.chmod(0o711)
        shown = directory / "uids"
        shown.touch()
        shown.chmod(0o666)
        tool = program(directory, f"id -u >> {shown}", 'exec qemu-img "$@"')
        pool, disk = DirectoryPool(directory, str(tool), Tools(uid)), Disk(volume_id=VOLUME, size_bytes=MIB)
        made = await pool.ensure_volume(disk, uid=None, gid=None)
        assert made.source.path.stat().st_uid == uid
        await pool.ensure_volume(disk, uid=owner, gid=owner)
        await pool.take_snapshot(VOLUME, OTHER)
        await pool.clone_volume(Disk(volume_id=OTHER, size_bytes=2 * MIB), VOLUME)
        assert made.source.path.stat().st_uid == owner
        assert (directory / "volumes" / f"{OTHER}.qcow2").stat().st_uid == uid
        os.chown(made.source.path, 0, 0)  # as an agent that had no such user left it
        await pool.delete_snapshot(VOLUME, OTHER)
        assert set(shown.read_text().split()) == {str(uid), str(owner)}


# -- hostile and wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "volume_id", ["", "..", "../../etc/passwd", "a,b=c", f"{VOLUME}\n", f"../{VOLUME}", VOLUME.upper(), "-o", "a\0b"]
)
async def test_a_volume_id_is_an_id_and_no_path(pool: DirectoryPool, pool_dir: Path, volume_id: str) -> None:
    with pytest.raises(InvalidInput, match="volume_id"):
        await pool.ensure_volume(Disk(volume_id=volume_id, size_bytes=MIB), uid=None, gid=None)
    with pytest.raises(InvalidInput, match="volume_id"):
        await pool.remove_volume(volume_id)
    assert not (pool_dir / "volumes").exists()


@pytest.mark.parametrize("digest", ["..", "../" * 10 + "etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "json:{}"])
async def test_a_digest_is_a_digest_and_no_path(pool: DirectoryPool, digest: str) -> None:
    with pytest.raises(InvalidInput, match="digest"):
        pool.image_path(digest)
    with pytest.raises(InvalidInput, match="digest"):
        await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB, backing_digest=digest), uid=None, gid=None)


async def test_an_image_the_pool_does_not_hold(pool: DirectoryPool, pool_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no image"):
        pool.image_path("a" * 64)
    outside = tmp_path / "outside"
    outside.write_bytes(b"secret")
    (pool_dir / "images" / ("b" * 64)).symlink_to(outside)
    (pool_dir / "images" / ("c" * 64)).mkdir()
    for digest in ("a" * 64, "b" * 64, "c" * 64):
        with pytest.raises(NotFound):
            await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB, backing_digest=digest), uid=None, gid=None)
    assert not (pool_dir / "volumes" / f"{VOLUME}.qcow2").exists()


async def test_a_pool_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    pool = DirectoryPool(tmp_path / "unmounted")
    with pytest.raises(Unavailable, match="mounted"):
        await pool.pool_id()
    with pytest.raises(Unavailable, match="mounted"):
        await pool.ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB), uid=None, gid=None)
    with pytest.raises(Unavailable, match="mounted"):
        pool.usage()
    assert not (tmp_path / "unmounted").exists()


# -- the pool itself --------------------------------------------------------------------------------------------


async def test_all_nodes_see_the_same_id(pool_dir: Path) -> None:
    ids = await asyncio.gather(*(DirectoryPool(pool_dir).pool_id() for _ in range(20)))
    assert len(set(ids)) == 1
    assert is_id(ids[0])
    assert [path.name for path in pool_dir.iterdir() if "pool.id" in path.name] == ["pool.id"]


async def test_a_damaged_id_is_said(pool: DirectoryPool, pool_dir: Path) -> None:
    (pool_dir / "pool.id").write_text("")
    with pytest.raises(Unavailable, match="damaged"):
        await pool.pool_id()


async def test_usage_is_in_bytes(pool: DirectoryPool, pool_dir: Path) -> None:
    free, size = pool.usage()
    assert 0 < free <= size
    assert size == shutil.disk_usage(pool_dir).total


async def test_a_volume_in_use_that_is_missing_is_not_replaced_by_an_empty_one(pool: DirectoryPool) -> None:
    disk = Disk(volume_id=VOLUME, size_bytes=MIB)
    with pytest.raises(NotFound, match="missing"):
        await pool.ensure_volume(disk, uid=None, gid=None, in_use=True)
    made = await pool.ensure_volume(disk, uid=None, gid=None)
    assert await pool.ensure_volume(disk, uid=None, gid=None, in_use=True) == made
