"""Every kind of storage pool on a real server, for the contract suite: how to start one, and what it cannot do."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile
from novacron.agent.drivers.qemu.protocol import key_of, protocol
from novacron.agent.storage.base import Pool
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.keys import place
from novacron.agent.storage.kinds import maker
from novacron.agent.storage.nfs import NfsPool
from novacron.agent.storage.tool import Tools
from novacron.clock import SystemClock
from novacron.model.pool import PoolDriver, PoolSpec
from tests.system.servers import ceph, iscsi, lvm, nbd
from tests.system.servers.process import run

MIB = 1 << 20
VOLUMES = [f"01890a5d-ac96-774b-bcce-b302099a80{n:02d}" for n in range(4)]
"""Ids the suite uses; pools of units give each a unit."""
UNIT_BYTES = 64 * MIB
TOOL_UID = 0x4E43_0000 if os.geteuid() == 0 else None


class Backend(msgspec.Struct, frozen=True):
    """sees_use: it notices that a machine has a volume open. shares: a volume stays the child of its image."""

    pool: Pool
    directory: Path
    sees_use: bool = True
    shares: bool = True


def maker_in(directory: Path) -> Callable[[PoolSpec], Pool]:
    """Makes pools as an agent does whose own pool is in a directory."""
    return maker(Tools(TOOL_UID), _own(directory), SystemClock())


class Servers:
    """Servers that take long to start, kept for all tests of a run; `stack` ends them."""

    def __init__(self, stack: contextlib.ExitStack | None = None) -> None:
        self._stack = stack or contextlib.ExitStack()
        self._ceph: ceph.Cluster | None = None

    @property
    def ceph(self) -> ceph.Cluster:
        if self._ceph is None:
            self._ceph = self._stack.enter_context(ceph.cluster())
        return self._ceph


def _own(directory: Path) -> DirectoryPool:
    own = directory / "own"
    (own / "images").mkdir(parents=True)
    return DirectoryPool(own, tools=Tools(TOOL_UID))


def a_spec(driver: PoolDriver, **options: str) -> PoolSpec:
    """A pool of some id."""
    return PoolSpec(id="01890a5d-ac96-774b-bcce-b302099a8099", driver=driver, options=options)


@contextlib.contextmanager
def _directory(directory: Path, _: Servers) -> Iterator[Backend]:
    yield Backend(_own(directory), directory)


@contextlib.contextmanager
def mounted(directory: Path) -> Iterator[Path]:
    """Another file system, mounted: ext4 in a file, on a loop device."""
    image, at = directory / "disk.ext4", directory / "mounted"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    run("mount", "-o", "loop", image, at)
    try:
        yield at
    finally:
        run("umount", at)


@contextlib.contextmanager
def _nfs_like(directory: Path, _: Servers) -> Iterator[Backend]:
    with mounted(directory) as at:
        yield Backend(NfsPool(at, tools=Tools(TOOL_UID), kinds=frozenset({"ext4"})), directory)


@contextlib.contextmanager
def _nfs(directory: Path, _: Servers) -> Iterator[Backend]:
    """The export of NOVACRON_NFS; what is in it goes."""
    at, source = directory / "mounted", os.environ["NOVACRON_NFS"]
    at.mkdir()
    run("mount", "-t", "nfs4", "-o", "vers=4.2", source, at)
    try:
        run("find", at, "-mindepth", "1", "-delete")
        yield Backend(NfsPool(at, source, Tools(TOOL_UID)), directory)
    finally:
        run("umount", at)


@contextlib.contextmanager
def _nbd(directory: Path, _: Servers) -> Iterator[Backend]:
    names = {f"disk-{n}": UNIT_BYTES for n in range(len(VOLUMES))}
    with nbd.nbdkit(directory, names) as at:
        at.chmod(0o666)
        given = {f"unit.{volume}": name for volume, name in zip(VOLUMES, names, strict=True)}
        spec = a_spec(PoolDriver.NBD, address=str(at), units=",".join(names), **given)
        yield Backend(maker_in(directory)(spec), directory, sees_use=False, shares=False)


@contextlib.contextmanager
def _lvm(directory: Path, _: Servers) -> Iterator[Backend]:
    with lvm.thin_pool(directory) as group:
        spec = a_spec(PoolDriver.LVM_THIN, volume_group=group, thin_pool=lvm.THIN_POOL)
        yield Backend(maker_in(directory)(spec), directory)


@contextlib.contextmanager
def _rbd(directory: Path, servers: Servers) -> Iterator[Backend]:
    cluster = servers.ceph
    spec = a_spec(
        PoolDriver.CEPH_RBD, pool=ceph.POOL, conf=str(cluster.conf), user="vms", keyring=str(cluster.keyring),
        namespace=cluster.namespace(),
    )  # fmt: skip
    yield Backend(maker_in(directory)(spec), directory)


@contextlib.contextmanager
def _iscsi(directory: Path, _: Servers) -> Iterator[Backend]:
    numbers = {str(n): UNIT_BYTES for n in range(1, len(VOLUMES) + 1)}
    with iscsi.tgt(directory, numbers) as at:
        given = {f"unit.{volume}": number for volume, number in zip(VOLUMES, numbers, strict=True)}
        spec = a_spec(
            PoolDriver.ISCSI, portal=at.portal, target=iscsi.TARGET, user=iscsi.USER,
            password_file=str(at.password_file), units="1-4", **given,
        )  # fmt: skip
        yield Backend(maker_in(directory)(spec), directory, sees_use=False, shares=False)


class Kind(msgspec.Struct, frozen=True):
    """missing: why it cannot be had here; empty: it can."""

    start: Callable[[Path, Servers], AbstractContextManager[Backend]]
    missing: str | None = None
    is_slow: bool = False


_needs_mount = None if os.geteuid() == 0 and shutil.which("mkfs.ext4") else "mounting a file system needs root"

KINDS: dict[str, Kind] = {
    "directory": Kind(_directory),
    "nfs-like": Kind(_nfs_like, _needs_mount),
    "nfs-real": Kind(_nfs, _needs_mount if "NOVACRON_NFS" in os.environ else "no NFS export: set NOVACRON_NFS"),
    "nbd": Kind(_nbd, nbd.missing),
    "iscsi": Kind(_iscsi, iscsi.missing),
    "lvm-thin": Kind(_lvm, lvm.missing),
    "ceph-rbd": Kind(_rbd, ceph.missing, is_slow=True),
}


@contextlib.contextmanager
def started(kind: Kind, servers: Servers) -> Iterator[Backend]:
    """The backend in a directory that every user may enter; nothing is left afterwards."""
    with tempfile.TemporaryDirectory(prefix="novacron-pool-") as place_:
        directory = Path(place_)
        directory.chmod(0o755)
        with kind.start(directory, servers) as backend:
            yield backend


def qemu_io(disk: DiskFile, directory: Path, *commands: str) -> str:
    """Do to a volume what a guest would, through the same layers."""
    return run(*io_words(disk, directory, *commands))


def io_words(disk: DiskFile, directory: Path, *commands: str) -> list[str]:
    """How to run qemu-io on a volume; without commands it holds it open and waits for words."""
    mine = place(disk, directory, None)
    below: dict[str, object] | None = None
    for layer in reversed(mine.backing):
        below = {"driver": layer.format, "read-only": True, "file": protocol(layer.source)}
    node: dict[str, object] = {"driver": mine.format, "discard": "unmap", "file": protocol(mine.source)}
    node |= {"backing": below} if mine.format == "qcow2" else {}
    keys = [msgspec.json.encode(key).decode() for key in (key_of(mine.source),) if key]
    told = [word for key in keys for word in ("--object", key)]
    asked = [word for command in commands for word in ("-c", command)]
    return ["qemu-io", *told, *asked, f"json:{msgspec.json.encode(node).decode()}"]
