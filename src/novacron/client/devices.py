"""Cards, disks and drives of a VM: what is sent, what is answered."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

# -- sent --------------------------------------------------------------------------------------------------


class ForwardIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A TCP port of the guest made reachable on its node. host_port 0: the node chooses."""

    guest_port: int
    host_port: int = 0


class NicIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network card. network: user, bridge or overlay; net, addresses, security_groups, anti_spoofing: of overlay.

    boot_order: from 1, each number once a VM; 0: it is not booted from.
    """

    network: str = "user"
    bridge: str = ""
    mac: str | None = None
    forwards: Sequence[ForwardIn] = ()
    net: str | None = None
    addresses: Sequence[str] = ()
    security_groups: Sequence[str] = ()
    anti_spoofing: bool = True
    boot_order: int = 0


class NicUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed of a card; a field left UNSET stays. security_groups: all of them; boot_order: see NicIn."""

    security_groups: Sequence[str] | UnsetType = UNSET
    anti_spoofing: bool | UnsetType = UNSET
    boot_order: int | UnsetType = UNSET


class QosIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The most a disk may do; 0: without limit."""

    iops: int = 0
    bytes_per_s: int = 0


class DiskIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One more disk: a new empty one of `size_bytes` in `pool`, or a `volume` that exists."""

    size_bytes: int | None = None
    pool: str | None = None
    volume: str | None = None
    qos: QosIn | None = None
    boot_order: int = 0


class MediaIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CD-ROM drive. image: an image with an ISO; none: the drive is empty. bus: sata or scsi; none: chosen."""

    image: str | None = None
    boot_order: int = 0
    bus: str | None = None


class MediaUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be in a drive; None: nothing."""

    image: str | None


# -- answered ----------------------------------------------------------------------------------------------


class Qos(msgspec.Struct, frozen=True, kw_only=True):
    """The most a disk may do; 0: without limit."""

    iops: int = 0
    bytes_per_s: int = 0


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    volume_id: str
    size_bytes: int
    backing_digest: str = ""
    pool_id: str = ""
    qos: Qos = Qos()
    boot_order: int = 0
    slot: int = 0
    source_volume_id: str = ""


class Media(msgspec.Struct, frozen=True, kw_only=True):
    """A CD-ROM drive; an empty digest: nothing is in it."""

    id: str
    digest: str = ""
    boot_order: int = 0
    slot: int = 0
    bus: str = "sata"


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    guest_port: int
    host_port: int = 0


class Nic(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    mac: str
    network: str
    bridge: str = ""
    forwards: list[Forward] = []
    network_id: str = ""
    net: str = ""
    addresses: list[str] = []
    security_groups: list[str] = []
    anti_spoofing: bool = True
    boot_order: int = 0
    slot: int = 0
