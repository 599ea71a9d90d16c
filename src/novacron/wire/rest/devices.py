"""What a VM has plugged in, on the wire: its network cards, its disks and its CD-ROM drives."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from novacron.model.machine import DriveBus, NetworkKind
from novacron.wire.rest.common import Ref, Strict, example
from novacron.wire.rest.images import ImageRef
from novacron.wire.rest.networks import Address

MIB = 1 << 20
Port = Annotated[int, Field(ge=1, le=65535)]
Mac = Annotated[str, StringConstraints(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]
SizeBytes = Annotated[int, Field(ge=MIB, le=64 << 40, multiple_of=512)]
BootOrder = Annotated[int, Field(ge=0, le=64)]


class ForwardIn(Strict):
    """A TCP port of the guest made reachable on its node. host_port 0: the node chooses."""

    guest_port: Port
    host_port: Annotated[int, Field(ge=0, le=65535)] = 0


class NicIn(Strict):
    """A network card. `bridge` (a bridge on the nodes) goes with network=bridge; `forwards` with network=user.

    With network=overlay: `net` (id or name of a network), `addresses` (wished ones; else chosen), `security_groups`
    (none: everything may pass; some: what their rules allow) and `anti_spoofing` (it sends under its own MAC and
    addresses alone). boot_order: as for disks, but 0: it is not booted from.
    """

    network: NetworkKind = NetworkKind.USER
    bridge: Annotated[str, StringConstraints(pattern=r"^([a-z][a-z0-9-]{0,14})?$")] = ""
    mac: Annotated[Mac | None, Field(description="None: chosen by NovaCron")] = None
    forwards: Annotated[list[ForwardIn], Field(max_length=32)] = []
    net: Ref | None = None
    addresses: Annotated[list[Address], Field(max_length=2)] = []
    security_groups: Annotated[list[Ref], Field(max_length=16)] = []
    anti_spoofing: bool = True
    boot_order: BootOrder = 0

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.network is NetworkKind.BRIDGE and not self.bridge:
            raise ValueError("network=bridge needs the name of a bridge in `bridge`")
        if self.network is not NetworkKind.BRIDGE and self.bridge:
            raise ValueError("`bridge` goes with network=bridge")
        if self.network is not NetworkKind.USER and self.forwards:
            raise ValueError("`forwards` go with network=user: elsewhere the guest has an address of its own")
        if (self.network is NetworkKind.OVERLAY) is not (self.net is not None):
            raise ValueError("network=overlay and `net`, the network it is on, go together")
        if self.net is None and (self.addresses or self.security_groups or not self.anti_spoofing):
            raise ValueError("`addresses`, `security_groups` and `anti_spoofing` go with network=overlay")
        return self


class NicUpdate(Strict):
    """What may be changed of a card. On an overlay network, at once: security_groups (all of them), anti_spoofing.

    boot_order: from 1; 0: it is not booted from. Counts from the next start.
    """

    security_groups: Annotated[list[Ref], Field(max_length=16)] | None = None
    anti_spoofing: bool | None = None
    boot_order: BootOrder | None = None

    model_config = Strict.model_config | example({"security_groups": ["web", "ssh"]})


class QosIn(Strict):
    """The most a disk may do; 0: without limit."""

    iops: Annotated[int, Field(ge=0, le=10**9)] = 0
    bytes_per_s: Annotated[int, Field(ge=0, le=1 << 50)] = 0


class DiskIn(Strict):
    """One more disk: a new empty one of `size_bytes` (in `pool`, or the default one), or a `volume` that exists.

    boot_order: from 1, each number once a VM; 0: after those with a number. qos left out: the volume's own.
    """

    size_bytes: SizeBytes | None = None
    pool: Ref | None = None
    volume: Ref | None = None
    qos: QosIn | None = None
    boot_order: BootOrder = 0

    model_config = Strict.model_config | example({"size_bytes": 10737418240, "pool": "fast", "qos": {"iops": 500}})

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.size_bytes is None) is (self.volume is None):
            raise ValueError("give either `size_bytes` for a new disk, or a `volume` that exists")
        if self.volume is not None and self.pool is not None:
            raise ValueError("`pool` goes with `size_bytes`: a volume lies where it lies")
        return self


class MediaIn(Strict):
    """A CD-ROM drive. `image`: an image with an ISO, none: the drive is empty. boot_order: as for disks.

    `bus`: sata, which every firmware and installer knows, or scsi (virtio), which kernels for clouds know. None: scsi
    for a VM that starts from its image's kernel, else sata. It stays as long as the drive does.
    """

    image: ImageRef | None = None
    boot_order: BootOrder = 0
    bus: DriveBus | None = None

    model_config = Strict.model_config | example({"image": "debian-12-netinst", "boot_order": 1})


class MediaUpdate(Strict):
    """What is to be in a drive; null: nothing."""

    image: ImageRef | None

    model_config = Strict.model_config | example({"image": "virtio-win"})


class QosOut(Strict):
    """The most a disk may do; 0: without limit."""

    iops: int = 0
    bytes_per_s: int = 0


class DiskOut(Strict):
    volume_id: str
    size_bytes: int
    backing_digest: str = ""
    pool_id: str = ""
    qos: QosOut = QosOut()
    boot_order: int = 0
    slot: int = 0
    source_volume_id: str = ""


class MediaOut(Strict):
    """A CD-ROM drive; an empty digest: nothing is in it."""

    id: str
    digest: str = ""
    boot_order: int = 0
    slot: int = 0
    bus: DriveBus = DriveBus.SATA


class ForwardOut(Strict):
    guest_port: int
    host_port: int = 0


class NicOut(Strict):
    """A network card; `net`: the name of the overlay network it is on. security_groups: ids."""

    id: str
    mac: str
    network: NetworkKind
    bridge: str = ""
    forwards: list[ForwardOut] = []
    network_id: str = ""
    net: str = ""
    addresses: list[str] = []
    security_groups: list[str] = []
    anti_spoofing: bool = True
    boot_order: int = 0
    slot: int = 0
