"""Which class keeps which kind of pool, from which options, and what it needs of the node."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from novacron.agent.drivers.base import IscsiAt, NbdAt, RbdAt
from novacron.agent.storage.base import Pool
from novacron.agent.storage.depot import OwnPool
from novacron.agent.storage.directory import DirectoryPool
from novacron.agent.storage.lvm import LvmThinPool
from novacron.agent.storage.nfs import NfsPool
from novacron.agent.storage.rbd import RbdPool
from novacron.agent.storage.tool import Tools
from novacron.agent.storage.units import UnitPool
from novacron.clock import Clock
from novacron.errors import InvalidInput
from novacron.model.pool import PoolDriver, PoolSpec
from novacron.model.unit import given_units, units_of

MODULES = (*Path("/usr/lib").glob("*/qemu"), Path("/usr/lib/qemu"), Path("/usr/lib64/qemu-kvm"))
MAPPER = Path("/sys/class/misc/device-mapper")
CEPH_CONF = "/etc/ceph/ceph.conf"
ISCSI_PORT, NBD_PORT = 3260, 10809


def abilities() -> tuple[str, ...]:
    """`pool.<driver>` for each kind of pool whose programs and QEMU modules this node has."""
    if shutil.which("qemu-img") is None:
        return ()
    needed = {
        PoolDriver.DIRECTORY: True,
        PoolDriver.NFS: True,  # that it is mounted is seen by a probe
        PoolDriver.LVM_THIN: all(map(shutil.which, ("lvs", "lvcreate"))) and MAPPER.exists(),
        PoolDriver.CEPH_RBD: _has_module("block-rbd.so") and all(map(shutil.which, ("rbd", "ceph"))),
        PoolDriver.ISCSI: _has_module("block-iscsi.so"),
        PoolDriver.NBD: True,  # QEMU speaks it itself
    }
    return tuple(f"pool.{kind.value}" for kind, is_here in needed.items() if is_here)


def maker(tools: Tools, own: OwnPool, clock: Clock) -> Callable[[PoolSpec], Pool]:
    """Builds pools whose tools run as `tools` says; `own` keeps image files for those that cannot."""

    def make(spec: PoolSpec) -> Pool:
        told = spec.options
        match spec.driver:
            case PoolDriver.DIRECTORY:
                return DirectoryPool(_path(told), tools=tools)
            case PoolDriver.NFS:
                source = f"{told.get('server', '')}:{told.get('export', '')}"
                return NfsPool(_path(told), "" if source == ":" else source, tools)
            case PoolDriver.LVM_THIN:
                return LvmThinPool(_need(told, "volume_group"), _need(told, "thin_pool"), tools)
            case PoolDriver.CEPH_RBD:
                return RbdPool(_rbd(told), tools, clock)
            case PoolDriver.ISCSI | PoolDriver.NBD:
                at_unit = _iscsi(told) if spec.driver is PoolDriver.ISCSI else _nbd(told)
                return UnitPool(units_of(told), given_units(told), at_unit, own, own.image_path, tools)

    return make


def _rbd(told: Mapping[str, str]) -> RbdAt:
    keyring = told.get("keyring", "")
    return RbdAt(
        pool=_need(told, "pool"),
        image="",
        conf=Path(told.get("conf", CEPH_CONF)),
        user=told.get("user", "admin"),
        namespace=told.get("namespace", ""),
        key_file=Path(keyring) if keyring else None,
    )


def _iscsi(told: Mapping[str, str]) -> Callable[[str], IscsiAt]:
    portal, target = _need(told, "portal"), _need(told, "target")
    secret = told.get("password_file", "")
    if not all(unit.isdecimal() for unit in units_of(told)):
        raise InvalidInput.field("options.units", "holds something else than numbers", "give LUNs, as in 1-8")
    return lambda unit: IscsiAt(
        portal=portal if _port(portal) else f"{portal}:{ISCSI_PORT}",
        target=target,
        lun=int(unit),
        user=told.get("user", ""),
        password_file=Path(secret) if secret else None,
        initiator=told.get("initiator", ""),
    )


def _nbd(told: Mapping[str, str]) -> Callable[[str], NbdAt]:
    address = _need(told, "address")
    if address.startswith("/"):
        return lambda unit: NbdAt(export=unit, socket=Path(address))
    port = _port(address)
    host = address.removesuffix(f":{port}") if port else address
    return lambda unit: NbdAt(export=unit, host=host.strip("[]"), port=int(port or NBD_PORT))


def _port(address: str) -> str:
    """The port at the end of `host:port`; empty: it has none."""
    _, colon, port = address.rpartition(":")
    return port if colon and port.isdecimal() else ""


def _path(told: Mapping[str, str]) -> Path:
    path = Path(_need(told, "path"))
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidInput.field("options.path", "is not an absolute path", "give the directory the pool lies in")
    return path


def _need(told: Mapping[str, str], key: str) -> str:
    if not told.get(key):
        raise InvalidInput.field(f"options.{key}", "is needed", "see docs/storage-backends.md")
    return told[key]


def _has_module(name: str) -> bool:
    return any((place / name).exists() for place in MODULES)
