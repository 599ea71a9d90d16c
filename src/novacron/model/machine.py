"""A machine: a VM as one node knows it. What a node is told (MachineSpec) and what it sees (MachineReport)."""

from __future__ import annotations

import datetime
from enum import StrEnum

import msgspec

from novacron.model.ha import Protection
from novacron.model.network import NetworkSpec, PortFilter
from novacron.model.pool import PoolSpec


class MachineKind(StrEnum):
    """Which virtual hardware: q35 (PCI Express PC) or microvm (virtio-mmio, smallest and quickest)."""

    Q35 = "q35"
    MICROVM = "microvm"


class Firmware(StrEnum):
    """How it boots. `auto` follows the image: a kernel boots directly, a firmware file is used, a disk gets BIOS."""

    AUTO = "auto"
    BIOS = "bios"
    UEFI = "uefi"


class NetworkKind(StrEnum):
    """`user`: QEMU's own user-mode network, needs no privilege. `bridge`: a tap on a bridge that is on the node.

    `overlay`: a tap on a network that NovaCron spans between its nodes (a record of its own).
    """

    USER = "user"
    BRIDGE = "bridge"
    OVERLAY = "overlay"


class DriveBus(StrEnum):
    """Where a CD-ROM drive is plugged in: on the board's own AHCI, which every firmware and installer knows, or on the
    virtio-scsi controller, which kernels know that know no real hardware.
    """

    SATA = "sata"
    SCSI = "scsi"


HOT_SLOT = 32
"""Slots below are on the board: taken at a start, left at an end. From here on devices come and go as it runs."""

HOT_FROM_MIB = 128  # smaller machines stay as small as they are
HOT_DISKS = 16
HOT_NICS = 2  # each has a PCI Express port of its own, and each port costs downtime
BOARD_DISKS = 17
BOARD_NICS = 8
DRIVES = 4


class Forward(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A TCP port of the guest made reachable on the node (user networks only). host_port 0: the node chooses."""

    guest_port: int
    host_port: int = 0


class Nic(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One network card. `mac` is chosen at creation and never changes; `bridge` names a bridge on the node.

    network_id: the network it is on (overlay). addresses: given to it by NovaCron, without prefix, IPv4 first.
    security_groups: ids, in the record alone, as is anti_spoofing (see PortFilter); `filter`: what they come to, in
    what a node is told alone.
    boot_order: from 1, among disks and drives; 0: it is not booted from. slot: see Disk.
    """

    id: str
    mac: str
    network: NetworkKind = NetworkKind.USER
    bridge: str = ""
    forwards: tuple[Forward, ...] = ()
    network_id: str = ""
    addresses: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    anti_spoofing: bool = True
    filter: PortFilter | None = None
    boot_order: int = 0
    slot: int = 0


class Qos(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The most a disk may do. 0: without limit."""

    iops: int = 0
    bytes_per_s: int = 0


class Disk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One disk: a volume, empty or a copy-on-write child of an image's disk file.

    pool_id: where it lies; empty: the pool server and nodes share from the start. The pool decides on the format.
    slot: where it is plugged in, chosen when it is attached and kept as long as it is, so that both ends of a migration
    build the same machine whatever was plugged and unplugged meanwhile. From HOT_SLOT on: places it can leave while the
    machine runs. 0: as its position among the disks says. source_volume_id: what a copy of a parked machine begins as.
    """

    volume_id: str
    size_bytes: int
    backing_digest: str = ""
    pool_id: str = ""
    qos: Qos = Qos()
    boot_order: int = 0  # from 1; 0: in the order of the disks, after those with a number
    slot: int = 0
    source_volume_id: str = ""


class Media(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A CD-ROM drive and the ISO image in it; an empty digest: nothing is in it.

    slot: from 1, see Disk; one count for drives on either bus. bus: chosen when the drive is added, and kept.
    """

    id: str
    digest: str = ""
    boot_order: int = 0
    slot: int = 0
    bus: DriveBus = DriveBus.SATA


class CloudInit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Documents of a NoCloud seed, as text. `meta_data` is made by NovaCron when empty."""

    user_data: str = ""
    network_config: str = ""
    meta_data: str = ""


class BootFiles(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Image files a machine boots from, by sha256 digest (64 hex digits); empty = not used."""

    kernel: str = ""
    initrd: str = ""
    firmware: str = ""
    cmdline: str = ""


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything a node needs to run one machine; nothing in it is looked up elsewhere.

    vm_id: the only text that may reach a command line. generation: of the ownership it is told under.
    machine_type, cpu_model: pinned names, empty = the node chooses and reports (first start only).
    isolation_slot: picks the unprivileged uid (agent's base + slot), the same on every node.
    max_vcpus, max_memory_mib: how far it can grow while it runs (0: not at all). dimms_mib: what part of memory_mib was
    plugged in since its start, in that order. pools, networks: what its disks and
    cards name, so that the node can reach them. shared_memory: its memory may be parked for copies to begin from.
    parent_id: the parked machine of this node it begins as a copy of (first start only); hostname: its name then.
    ha: whether it has a deadline here, so that it may be restarted elsewhere.
    """

    vm_id: str
    generation: int
    vcpus: int
    memory_mib: int
    machine: MachineKind = MachineKind.Q35
    machine_type: str = ""
    cpu_model: str = ""
    firmware: Firmware = Firmware.AUTO
    boot: BootFiles = BootFiles()
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    cloud_init: CloudInit | None = None
    guest_agent: bool = False
    isolation_slot: int = 0
    max_vcpus: int = 0
    max_memory_mib: int = 0
    dimms_mib: tuple[int, ...] = ()
    media: tuple[Media, ...] = ()
    tpm: bool = False
    secure_boot: bool = False
    pools: tuple[PoolSpec, ...] = ()
    networks: tuple[NetworkSpec, ...] = ()
    shared_memory: bool = False
    parent_id: str = ""
    hostname: str = ""
    ha: Protection = Protection()


class MachineStatus(StrEnum):
    """What a node sees of a machine."""

    ABSENT = "absent"  # nothing of it runs here
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"  # it ended in an orderly way: the guest powered off, or it was told to
    CRASHED = "crashed"  # the process ended without being told to
    INCOMING = "incoming"  # waits for, or is receiving, a migration stream
    HANDED_OFF = "handed_off"  # its state has left; paused, and must not continue without the ownership
    STALLED = "stalled"  # paused by an I/O error (disk full); continues when there is room
    UNKNOWN = "unknown"  # the process lives, its monitor does not answer
    PARKED = "parked"  # it was ended; its memory and its devices' state lie in files that copies begin from


ENDED = frozenset({MachineStatus.ABSENT, MachineStatus.STOPPED, MachineStatus.CRASHED, MachineStatus.PARKED})
"""Nothing of it runs."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a guest's forwarded TCP port can be reached on the node."""

    nic_id: str
    guest_port: int
    host: str
    host_port: int


class Belonging(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A file that belongs to a machine and is no volume: its UEFI variables, its TPM's state. name: as its driver knows
    it. data: a secret (a TPM's keys): never logged, never on a record.
    """

    name: str
    data: bytes

    def __repr__(self) -> str:
        """Without the content."""
        return f"Belonging({self.name!r}, {len(self.data)} bytes)"


class MachineReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A machine as its node sees it now.

    reason: one sentence when the status needs one (how it died, and what it wrote last);
    machine_type, cpu_model, accelerator: as started; since: when this status began;
    full_volumes: those that have no room, for which it is stalled; let_go: how many devices its guest has let go of
    after it had been asked in vain, so that another adjustment finds more done; resume_first: it was taken back from a
    move while it was paused, and its hypervisor sends it again only once it has run.
    """

    vm_id: str
    generation: int
    status: MachineStatus
    since: datetime.datetime
    reason: str = ""
    pid: int = 0
    machine_type: str = ""
    cpu_model: str = ""
    accelerator: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    migration_id: str = ""
    full_volumes: tuple[str, ...] = ()
    let_go: int = 0
    resume_first: bool = False


class StopMode(StrEnum):
    """`graceful` asks the guest and forces at the deadline; `forced` ends the process at once."""

    GRACEFUL = "graceful"
    FORCED = "forced"
