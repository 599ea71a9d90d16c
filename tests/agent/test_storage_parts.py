"""Parts of pools that need no server: headers, mounts, the depot, copies."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novacron.agent.drivers.base import IscsiAt, NbdAt, RbdAt
from novacron.agent.drivers.qemu.protocol import key_of, protocol
from novacron.agent.storage import copying, qcow2
from novacron.agent.storage.depot import Depot
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.kinds import abilities, maker
from novacron.agent.storage.nfs import Mount, NfsPool, mounted_at
from novacron.agent.storage.tool import Tools
from novacron.agent.volumes import Volumes
from novacron.clock import SystemClock
from novacron.errors import DriverError, InvalidInput, NotFound, Unavailable
from novacron.model.machine import Disk, MachineSpec
from novacron.model.pool import PoolDriver, PoolSpec
from novacron.wire import storage as wire

pytestmark = pytest.mark.anyio

MIB = 1 << 20
VOLUME = "01890a5d-ac96-774b-bcce-b302099a8057"
POOL = "01890a5d-ac96-774b-bcce-b302099a8099"
VM = "01890a5d-ac96-774b-bcce-b302099a8011"


# -- headers ----------------------------------------------------------------------------------------------------


def header(*, version: int = 3, backing: bytes = b"", features: int = 0, size: int = MIB, offset: int = 512) -> bytes:
    head = bytearray(4096)
    struct.pack_into(">4sIQI", head, 0, qcow2.MAGIC, version, offset if backing else 0, len(backing))
    struct.pack_into(">Q", head, 24, size)
    struct.pack_into(">Q", head, 72, features)
    if offset + len(backing) <= len(head):
        head[offset : offset + len(backing)] = backing
    return bytes(head)


def test_headers() -> None:
    assert qcow2.parse(header(backing=b"../images/x")) == qcow2.Header(MIB, "../images/x")
    assert qcow2.parse(header(features=4)) == qcow2.Header(MIB, data_file=True)
    assert qcow2.parse(header(version=2, features=4)) == qcow2.Header(MIB)
    for wrong in (
        b"",
        b"QFI\xfb",
        header(version=1),
        header(version=9),
        header(backing=b"x", offset=4096),
        bytes(4096),
    ):
        assert qcow2.parse(wrong) is None


@given(st.binary(max_size=4096), st.binary(max_size=64))
def test_no_bytes_break_the_reader(body: bytes, head: bytes) -> None:
    for one in (body, qcow2.MAGIC + body, qcow2.MAGIC + struct.pack(">I", 3) + head + body):
        found = qcow2.parse(one)
        assert found is None or len(found.backing) <= 4096


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-b", "/etc/passwd", "-F", "raw"), "outside"),
        (("-b", "../images/../../etc/passwd", "-F", "raw"), "outside"),
        (("-b", "json:{}", "-F", "raw"), "outside"),
        (("-o", "data_file=data.raw"), "data file"),
        ((), "no qcow2 header"),
    ],
)
async def test_a_volume_that_points_elsewhere_is_opened_by_nobody(
    tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    """As a guest that broke out of its QEMU could leave it."""
    volume = tmp_path / "volumes" / f"{VOLUME}.qcow2"
    volume.parent.mkdir()
    if words:
        asked = ("qemu-img", "create", "-q", "-f", "qcow2", "-u", *words, str(volume), "1M")
        subprocess.run(asked, check=True, cwd=volume.parent)
    else:
        volume.write_bytes(bytes(MIB))
    pool, disk = DirectoryPool(tmp_path), Disk(volume_id=VOLUME, size_bytes=2 * MIB)
    for work in (
        pool.ensure_volume(disk, uid=None, gid=None),
        pool.grow_volume(disk),
        pool.take_snapshot(VOLUME, POOL),
        pool.export_snapshot(VOLUME, "", tmp_path / "out"),
    ):
        with pytest.raises(DriverError, match=why):
            await work
    assert not (tmp_path / "out").exists()


async def test_a_link_at_a_volumes_place_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    subprocess.run(("qemu-img", "create", "-q", "-f", "qcow2", outside, "1M"), check=True)
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / f"{VOLUME}.qcow2").symlink_to(outside)
    with pytest.raises(DriverError):
        await DirectoryPool(tmp_path).ensure_volume(Disk(volume_id=VOLUME, size_bytes=MIB), uid=0, gid=0)
    with pytest.raises(DriverError):
        await DirectoryPool(tmp_path).grow_volume(Disk(volume_id=VOLUME, size_bytes=2 * MIB))


# -- copies -----------------------------------------------------------------------------------------------------


async def test_a_copy_keeps_content_and_holes(tmp_path: Path) -> None:
    source, target = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("source", "target"))
    try:
        os.ftruncate(source, 64 * MIB)
        for offset in (0, 30 * MIB, 63 * MIB):
            os.pwrite(source, os.urandom(65536), offset)
        await copying.copy(source, target)
        assert (tmp_path / "source").read_bytes() == (tmp_path / "target").read_bytes()
        assert os.fstat(target).st_blocks * 512 < MIB
    finally:
        os.close(source)
        os.close(target)


# -- mounts -----------------------------------------------------------------------------------------------------

MOUNTINFO = """\
22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw
36 22 0:45 / /srv/vms rw,relatime shared:7 - nfs4 192.0.2.7:/export/vms rw,vers=4.2,hard
40 22 0:47 / /srv/with\\040blank rw - nfs filer:/a\\040b rw
41 22 0:48 / /srv/covered rw - nfs4 filer:/a rw
42 41 0:49 / /srv/covered rw - tmpfs tmpfs rw
"""


def test_what_is_mounted_where() -> None:
    assert mounted_at(Path("/srv/vms"), MOUNTINFO) == Mount("nfs4", "192.0.2.7:/export/vms")
    assert mounted_at(Path("/srv/with blank"), MOUNTINFO) == Mount("nfs", "filer:/a b")
    assert mounted_at(Path("/srv/covered"), MOUNTINFO) == Mount("tmpfs", "tmpfs")
    assert mounted_at(Path("/srv/vms/below"), MOUNTINFO) is None
    assert mounted_at(Path("/srv"), "") is None


@pytest.mark.parametrize("path", ["unmounted", "/proc"])
async def test_nothing_is_written_where_no_network_file_system_is_mounted(tmp_path: Path, path: str) -> None:
    directory = tmp_path / path
    if not directory.exists():
        directory.mkdir()
    pool, disk = NfsPool(directory), Disk(volume_id=VOLUME, size_bytes=MIB)
    for work in (
        pool.space(), pool.pool_id(), pool.ensure_volume(disk, uid=None, gid=None), pool.remove_volume(VOLUME),
        pool.keep_image("a" * 64, tmp_path), pool.images(), pool.extent(VOLUME), pool.clone_volume(disk, POOL),
    ):  # fmt: skip
        with pytest.raises(Unavailable, match="mount"):
            await work
    assert path == "/proc" or list(directory.iterdir()) == []


async def test_mounted_from_somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "mountinfo"
    said.write_text(f"36 22 0:45 / {tmp_path} rw - nfs4 other:/export rw\n")
    monkeypatch.setattr("novacron.agent.storage.nfs.MOUNTS", said)
    await NfsPool(tmp_path).check()
    await NfsPool(tmp_path, "other:/export").check()
    with pytest.raises(Unavailable, match="from other:/export, not from filer:/export"):
        await NfsPool(tmp_path, "filer:/export").check()


# -- the depot --------------------------------------------------------------------------------------------------


def a_depot(tmp_path: Path) -> Depot:
    own = DirectoryPool(tmp_path)
    return Depot(own, maker(Tools(), own, SystemClock()))


def test_pools_are_made_once_and_anew_when_their_options_change(tmp_path: Path) -> None:
    depot = a_depot(tmp_path)
    assert depot.pool(None) is depot.pool(PoolSpec(id="")) is depot.pool(PoolSpec(id=POOL)) is depot.own
    spec = PoolSpec(id=POOL, options={"path": str(tmp_path / "other")})
    assert depot.pool(spec) is depot.pool(PoolSpec(id=POOL, options={"path": str(tmp_path / "other")}))
    assert depot.pool(spec) is not depot.own
    before = depot.pool(spec)
    assert depot.pool(PoolSpec(id=POOL, options={"path": str(tmp_path / "third")})) is not before


def test_a_machines_disk_lies_where_its_spec_says(tmp_path: Path) -> None:
    depot, named = a_depot(tmp_path), PoolSpec(id=POOL, options={"path": str(tmp_path / "other")})
    spec = MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=1, pools=(named,))
    assert depot.pool_of(spec, Disk(volume_id=VOLUME, size_bytes=1)) is depot.own
    assert depot.pool_of(spec, Disk(volume_id=VOLUME, size_bytes=1, pool_id=POOL)) is depot.pool(named)
    with pytest.raises(InvalidInput, match="does not describe pool"):
        depot.pool_of(spec, Disk(volume_id=VOLUME, size_bytes=1, pool_id=VM))


@pytest.mark.parametrize(
    ("driver", "options", "field"),
    [
        ("directory", {"path": "relative"}, "options.path"),
        ("directory", {"path": "/srv/../etc"}, "options.path"),
        ("nfs", {}, "options.path"),
        ("ceph-rbd", {}, "options.pool"),
        ("iscsi", {"target": "t", "units": "1"}, "options.portal"),
        ("iscsi", {"target": "t", "portal": "p", "units": "one"}, "options.units"),
        ("iscsi", {"target": "t", "portal": "p"}, "options.units"),
        ("nbd", {"units": "a"}, "options.address"),
        ("nbd", {"address": "/s", "units": "a/b"}, "options.units"),
        ("nbd", {"address": "/s", "units": "1-100000"}, "options.units"),
    ],
)
def test_options_are_checked_on_the_node_too(tmp_path: Path, driver: str, options: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        a_depot(tmp_path).pool(PoolSpec(id=POOL, driver=PoolDriver(driver), options=options))


def test_abilities_name_drivers() -> None:
    drivers = {f"pool.{kind.value}" for kind in PoolDriver}
    assert set(abilities()) <= drivers


# -- how sources are told ---------------------------------------------------------------------------------------


def test_sources_are_told_whole() -> None:
    secret = Path("/run/x/v.key")
    rbd = RbdAt(pool="p", image="i", conf=Path("/etc/ceph/ceph.conf"), user="u", namespace="n", key_file=secret)
    key = key_of(rbd)
    assert key is not None
    assert key["format"] == "base64"
    assert protocol(rbd) == {
        "driver": "rbd", "pool": "p", "image": "i", "conf": "/etc/ceph/ceph.conf", "user": "u", "namespace": "n",
        "key-secret": key["id"],
    }  # fmt: skip
    iscsi = IscsiAt(portal="h:1", target="t", lun=3, initiator="iqn.me")
    assert key_of(iscsi) is None
    assert protocol(iscsi) == {
        "driver": "iscsi", "transport": "tcp", "portal": "h:1", "target": "t", "lun": 3, "initiator-name": "iqn.me",
    }  # fmt: skip
    assert protocol(NbdAt(export="e", host="h", port=5))["server"] == {"type": "inet", "host": "h", "port": "5"}


# -- the verbs --------------------------------------------------------------------------------------------------


async def test_verbs_about_volumes(tmp_path: Path) -> None:
    volumes, here = Volumes(a_depot(tmp_path)), PoolSpec(id=POOL, options={"path": str(tmp_path / "other")})
    disk = Disk(volume_id=VOLUME, size_bytes=MIB)
    found = await volumes.probe(wire.PoolProbe(pool=here))
    assert (found.available, "mounted" in found.reason) == (False, True)
    (tmp_path / "other").mkdir()
    found = await volumes.probe(wire.PoolProbe(pool=here))
    assert found.available
    assert 0 < found.free_bytes <= found.size_bytes
    assert (await volumes.create(wire.VolumeCreate(pool=here, disk=disk))).size_bytes == MIB
    larger = Disk(volume_id=VOLUME, size_bytes=2 * MIB)
    assert (await volumes.grow(wire.VolumeGrow(pool=here, disk=larger))).size_bytes == 2 * MIB
    clone = wire.VolumeClone(pool=here, disk=Disk(volume_id=VM, size_bytes=0), source_volume_id=VOLUME)
    assert (await volumes.clone(clone)).size_bytes == 2 * MIB
    await volumes.delete(wire.VolumeDelete(pool=here, volume_id=VOLUME))
    with pytest.raises(NotFound):
        await volumes.inspect(wire.VolumeInspect(pool=here, volume_id=VOLUME))
    assert (await volumes.inspect(wire.VolumeInspect(pool=here, volume_id=VM))).used_bytes > 0
    wrong = PoolSpec(id=POOL, driver=PoolDriver.ISCSI)
    assert not (await volumes.probe(wire.PoolProbe(pool=wrong))).available
