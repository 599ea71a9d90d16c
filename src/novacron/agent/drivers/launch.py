"""What a machine is launched from, resolved to this node: sources of disks, media, cards, and all of it together."""

from __future__ import annotations

from pathlib import Path

import msgspec

from novacron.model.machine import DriveBus, MachineSpec, Qos


class FileAt(msgspec.Struct, frozen=True, tag="file"):
    """A file or block device of this node."""

    path: Path


class RbdAt(msgspec.Struct, frozen=True, kw_only=True, tag="rbd"):
    """An image of a Ceph cluster. conf: its configuration file, which names the monitors. key_file: holds the user's
    key, read by the hypervisor; None: the configuration names a keyring.
    """

    pool: str
    image: str
    conf: Path
    user: str = "admin"
    namespace: str = ""
    key_file: Path | None = None


class NbdAt(msgspec.Struct, frozen=True, kw_only=True, tag="nbd"):
    """An export of an NBD server: at host and port, or at a unix socket."""

    export: str
    host: str = ""
    port: int = 0
    socket: Path | None = None


class IscsiAt(msgspec.Struct, frozen=True, kw_only=True, tag="iscsi"):
    """A logical unit of an iSCSI target. portal: host:port. password_file: for CHAP, read by the hypervisor."""

    portal: str
    target: str
    lun: int
    user: str = ""
    password_file: Path | None = None
    initiator: str = ""


Source = FileAt | RbdAt | NbdAt | IscsiAt


class Layer(msgspec.Struct, frozen=True):
    """One layer of a disk: where its bytes are, and their format, which is always told and never probed."""

    source: Source
    format: str  # qcow2 | raw


class DiskFile(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as this node opens it. The layers below are told too, nearest first; they are only read."""

    volume_id: str
    source: Source
    format: str  # qcow2 | raw
    backing: tuple[Layer, ...] = ()
    qos: Qos = Qos()
    boot_order: int = 0


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """A CD-ROM drive; path None: nothing is in it."""

    id: str
    path: Path | None = None
    boot_order: int = 0
    bus: DriveBus = DriveBus.SATA


class NicPlug(msgspec.Struct, frozen=True, kw_only=True):
    """How a card is plugged in on this node: a prepared tap, or user-mode forwards with chosen host ports."""

    nic_id: str
    mac: str
    tap: str = ""
    forwards: tuple[tuple[int, int], ...] = ()  # (guest_port, host_port)


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A MachineSpec with everything resolved to this node's paths.

    run_dir: the machine's own directory (exists, mode 0700, owned by uid when given) for sockets, logs and the
    process identity. keep: likewise, beside its volumes, for what outlives this node's boot; None: it has nothing such.
    uid/gid: run as this unprivileged user; None: as the agent itself.
    memory: a file that is to be its memory, shared with it (memory_shared) or copied as it writes. state: what its
    devices were when that memory was parked: it begins there instead of booting. deadline_s: the time of CLOCK_BOOTTIME
    at which the kernel ends it unless it gets another, whatever else stands still; None: it has none.
    """

    spec: MachineSpec
    run_dir: Path
    keep: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    firmware: Path | None = None
    seed: Path | None = None
    disks: tuple[DiskFile, ...] = ()
    nics: tuple[NicPlug, ...] = ()
    media: tuple[Medium, ...] = ()
    memory: Path | None = None
    memory_shared: bool = False
    state: Path | None = None
    uid: int | None = None
    gid: int | None = None
    deadline_s: float | None = None
