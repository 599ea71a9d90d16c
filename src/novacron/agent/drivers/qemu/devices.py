"""Disks, cards and drives as QEMU is told of them, on a command line and over QMP alike. Pure.

Every device is named after what it is (a volume's id, a card's id), never after its position, and sits where its slot
says: both ends of a migration build the same machine, whatever was plugged and unplugged meanwhile.

    disks   slots 1 to 17   virtio-blk on the board     32 to 47   SCSI targets of one virtio-scsi controller
    cards   slots 1 to 8    virtio-net on the board     32, 33     behind a PCI Express port each
    drives  slots 1 to 4    the board's own AHCI, or SCSI targets after those of the disks: as each drive's bus says
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Medium, NicPlug, Source
from novacron.agent.drivers.qemu.protocol import key_of, protocol
from novacron.errors import Unsupported
from novacron.model.machine import (
    BOARD_DISKS,
    BOARD_NICS,
    DRIVES,
    HOT_DISKS,
    HOT_FROM_MIB,
    HOT_NICS,
    HOT_SLOT,
    DriveBus,
    Endpoint,
    MachineKind,
    MachineSpec,
)

LOOPBACK = "127.0.0.1"
MAX_QUEUES = 4
CONTROLLER = "scsi"
DISK, NIC, DRIVE = "disk-", "nic-", "cd-"
NETWORK_ROM_BYTES = 512 << 10
"""What a card's ROM takes of the guest's address space. It travels with a machine, so that both ends must agree on it,
whatever the size of the file each node has.
"""

VOLUME_NODES = ("v", "w")
"""What names of volumes' nodes begin with: the second is that of a copy which has taken the place of the first."""

_BOARD = {"screen": 0x01, "rng": 0x02, "serial": 0x03, "disk": 0x04, "seed": 0x15, "nic": 0x16, "port": 0x1E}
_ID = re.compile(r"[A-Za-z0-9-]{1,36}\Z")
_PERIPHERAL = re.compile(r"(?:/machine/peripheral/)?([A-Za-z0-9-]+)(?:/.*)?\Z")
_NODE_CHARS = 30

Told = dict[str, object]


# -- names -----------------------------------------------------------------------------------------------------


def disk_id(volume_id: str) -> str:
    return DISK + _checked(volume_id)


def nic_id(card_id: str) -> str:
    return NIC + _checked(card_id)


def netdev_id(card_id: str) -> str:
    return "net-" + _checked(card_id)


def drive_id(media_id: str) -> str:
    return DRIVE + _checked(media_id)


def node_of(volume_id: str) -> str:
    """The block node of a volume. QEMU takes 31 characters: the last 30 of the id are enough to tell them apart."""
    return VOLUME_NODES[0] + _checked(volume_id).replace("-", "")[-_NODE_CHARS:]


def other_node(node: str) -> str:
    """What the node of a volume is called that takes the place of this one, while both are there."""
    first, second = VOLUME_NODES
    return (second if node[0] == first else first) + node[1:]


def medium_node(media_id: str) -> str:
    return "m" + _checked(media_id).replace("-", "")[-_NODE_CHARS:]


def device_in(qdev: str) -> str:
    """The id of the device that QEMU calls so: by its id, or by a path when the device is a part of ours."""
    found = _PERIPHERAL.match(qdev)
    return found[1] if found else ""


def _checked(name: str) -> str:
    if _ID.match(name) is None:
        raise Unsupported(f"{name!r} is not an id")
    return name


# -- places ----------------------------------------------------------------------------------------------------


def is_hot(spec: MachineSpec) -> bool:
    """Whether devices can come and go while it runs. Decided by what never changes as long as it does."""
    return spec.machine is MachineKind.Q35 and base_mib(spec) >= HOT_FROM_MIB


def base_mib(spec: MachineSpec) -> int:
    """Its memory without what was plugged in since its start."""
    return spec.memory_mib - sum(spec.dimms_mib)


def queues(spec: MachineSpec) -> int:
    """Of each disk and card: by how many vCPUs it can ever have, so that plugging one changes no device."""
    return min(MAX_QUEUES, max(spec.vcpus, spec.max_vcpus))


def slots(launch: Launch, field: str) -> dict[str, int]:
    """By id, where each of the launch's disks, nics or media sits. :raise Unsupported: two in one, or out of range."""
    key = "volume_id" if field == "disks" else "id"
    own = "nic_id" if field == "nics" else key
    board, hot = {"disks": (BOARD_DISKS, HOT_DISKS), "nics": (BOARD_NICS, HOT_NICS), "media": (DRIVES, 0)}[field]
    hot = hot if is_hot(launch.spec) else 0
    named = {getattr(part, key): part.slot for part in getattr(launch.spec, field)}
    found = {getattr(part, own): 0 for part in getattr(launch, field)}
    for position, name in enumerate(found, 1):
        found[name] = named.get(name) or position
    for name, slot in found.items():
        if not (1 <= slot <= board or HOT_SLOT <= slot < HOT_SLOT + hot) and launch.spec.machine is MachineKind.Q35:
            raise Unsupported(f"{name} cannot be in slot {slot}: a machine like this has {board} of {field} and {hot}")
    if len(set(found.values())) != len(found):
        raise Unsupported(f"two of its {field} are in one slot")
    return found


def at(family: str, offset: int = 0) -> Told:
    return {"bus": "pcie.0", "addr": f"{_BOARD[family] + offset:#x}"}


def fixtures(spec: MachineSpec) -> Sequence[Told]:
    """What a machine needs so that devices can come and go."""
    if not is_hot(spec):
        return ()
    made: list[Told] = []
    for index in range(HOT_NICS):
        place: Told = {"bus": "pcie.0", "addr": f"{_BOARD['port']:#x}.{index:#x}"}
        place |= {"multifunction": True} if index == 0 else {}
        made.append({"driver": "pcie-root-port", "id": f"port{index}", **place, "chassis": index + 1})
    place = {"bus": "pcie.0", "addr": f"{_BOARD['port']:#x}.{HOT_NICS:#x}"}
    made.append({"driver": "virtio-scsi-pci", "id": CONTROLLER, **place, "num_queues": 1})
    return made


def virtio(kind: str, name: str, options: Mapping[str, object], place: Mapping[str, object], *, pci: bool) -> Told:
    driver = f"virtio-{kind}-{'pci' if pci else 'device'}"
    return {"driver": driver, "id": name, **(place if pci else {}), **options}


# -- disks -----------------------------------------------------------------------------------------------------


def secrets(disk: DiskFile) -> Sequence[Told]:
    """Objects that hold what its sources ask for, read from files by QEMU itself."""
    found = map(key_of, (disk.source, *(layer.source for layer in disk.backing)))
    return [key for key in found if key is not None]


def storage(disk: DiskFile, node: str = "") -> Told:
    """Every layer is told with its format, down to the end, so that QEMU looks into no file to find out.

    node: its name; empty: the usual one.
    """
    chain: Mapping[str, object] | None = None
    for below in reversed(disk.backing):
        chain = layer(below.source, below.format, read_only=True, backing=chain)
    top = layer(disk.source, disk.format, read_only=False, backing=chain)
    return {"node-name": node or node_of(disk.volume_id), **top}


def disk_device(disk: DiskFile, slot: int, spec: MachineSpec, bootindex: int = 0) -> Told:
    """bootindex 0: it is not started from."""
    options: Told = {"drive": node_of(disk.volume_id), "serial": disk.volume_id[-20:]}
    options |= {"werror": "stop", "rerror": "stop"}
    options |= {"bootindex": bootindex} if bootindex else {}
    pci = spec.machine is MachineKind.Q35
    if pci and slot >= HOT_SLOT:
        place = {"bus": f"{CONTROLLER}.0", "channel": 0, "scsi-id": slot - HOT_SLOT, "lun": 0}
        return {"driver": "scsi-hd", "id": disk_id(disk.volume_id), **place, **options}
    options |= {"num-queues": queues(spec)}
    return virtio("blk", disk_id(disk.volume_id), options, at("disk", slot - 1) if pci else {}, pci=pci)


def layer(source: Source, form: str, *, read_only: bool, backing: Mapping[str, object] | None = None) -> Told:
    """One layer of a disk, with all that is below it."""
    if form not in ("qcow2", "raw"):
        raise Unsupported(f"{form!r} is not a disk format: qcow2 and raw are")
    if form == "raw" and backing is not None:
        raise Unsupported("a raw disk has no backing file")
    cache = {"direct": False, "no-flush": False}
    file = {**protocol(source), "read-only": read_only, "cache": cache, "discard": "unmap"}
    told: Told = {"driver": form, "read-only": read_only, "cache": cache, "discard": "unmap", "file": file}
    return told | ({"backing": backing} if form == "qcow2" else {})


# -- drives ----------------------------------------------------------------------------------------------------


def medium(path: Path, media_id: str) -> Told:
    """The node of an ISO image. It is only read, and never taken for anything but raw."""
    return {"node-name": medium_node(media_id), **layer(FileAt(path), "raw", read_only=True)}


def drive(one: Medium, slot: int, bootindex: int = 0) -> Told:
    if one.bus is DriveBus.SCSI:
        place: Told = {"bus": f"{CONTROLLER}.0", "channel": 0, "scsi-id": HOT_DISKS + slot - 1, "lun": 0}
        told: Told = {"driver": "scsi-cd", "id": drive_id(one.id), **place}
    else:
        told = {"driver": "ide-cd", "id": drive_id(one.id), "bus": f"ide.{slot - 1}"}
    told |= {"drive": medium_node(one.id)} if one.path is not None else {}
    return told | ({"bootindex": bootindex} if bootindex else {})


# -- cards -----------------------------------------------------------------------------------------------------


def netdev(nic: NicPlug) -> Told:
    name = netdev_id(nic.nic_id)
    if nic.tap:
        return {"type": "tap", "id": name, "ifname": nic.tap, "script": "no", "downscript": "no", "vhost": False}
    forwards = [{"str": f"tcp:{LOOPBACK}:{host:d}-:{guest:d}"} for guest, host in nic.forwards]
    return {"type": "user", "id": name, "hostfwd": forwards}


def card(nic: NicPlug, slot: int, spec: MachineSpec, bootindex: int = 0, *, rom: bool = False) -> Told:
    """bootindex 0: it is not booted from. rom: it carries QEMU's own ROM along, for BIOS to boot from it.

    That ROM is not named: QEMU makes it fit the card only then.
    """
    pci = spec.machine is MachineKind.Q35
    options: Told = {"netdev": netdev_id(nic.nic_id), "mac": nic.mac}
    if pci:
        options |= {"romsize": NETWORK_ROM_BYTES} if bootindex and rom else {"romfile": ""}
    options |= {"bootindex": bootindex} if bootindex else {}
    hot = {"bus": f"port{slot - HOT_SLOT}", "addr": "0x0"}
    place = hot if slot >= HOT_SLOT else at("nic", slot - 1)
    return virtio("net", nic_id(nic.nic_id), options, place, pci=pci)


# -- what it starts from ---------------------------------------------------------------------------------------


def boot_indexes(launch: Launch) -> dict[str, int]:
    """By device, from 1: those with a number first, in that order; then disks, then drives, as they stand.

    A card without a number is not booted from.
    A machine that is given a kernel or a firmware of its own does not look for one on them.
    """
    if launch.kernel is not None or launch.firmware is not None:
        return {}
    known = {disk.volume_id: disk.boot_order for disk in launch.spec.disks}
    asked = [(disk.boot_order or known.get(disk.volume_id, 0), disk_id(disk.volume_id)) for disk in launch.disks]
    asked += [(one.boot_order, drive_id(one.id)) for one in launch.media]
    cards = {nic.id: nic.boot_order for nic in launch.spec.nics}
    asked += [(cards[nic.nic_id], nic_id(nic.nic_id)) for nic in launch.nics if cards.get(nic.nic_id)]
    ordered = sorted(asked, key=lambda pair: pair[0] or len(asked) + 1000)
    return {name: index for index, (_, name) in enumerate(ordered, 1)}


def endpoints(launch: Launch, spec: MachineSpec) -> tuple[Endpoint, ...]:
    """Where forwarded ports of the cards it has are reachable."""
    there = {nic.id for nic in spec.nics} or {nic.nic_id for nic in launch.nics}
    return tuple(
        Endpoint(nic_id=nic.nic_id, guest_port=guest, host=LOOPBACK, host_port=port)
        for nic in launch.nics
        for guest, port in nic.forwards
        if nic.nic_id in there
    )
