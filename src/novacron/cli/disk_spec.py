"""What the options for disks and CD-ROM drives mean, as the body that is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from novacron.cli import amounts

if TYPE_CHECKING:
    from novacron.client.devices import DiskIn, MediaIn, QosIn

DISK_RULE = "SIZE[,pool=POOL] or volume=VOLUME, either with [,iops=N][,rate=RATE][,boot=N]"
DRIVE_RULE = "IMAGE[,bus=sata|scsi][,boot=N]"
BUSES = ("sata", "scsi")


class DiskType(click.ParamType["dict[str, Any]"]):
    """One `--disk`: what its words mean, as arguments of DiskIn."""

    name = "disk"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_disk(str(value))
        except ValueError as wrong:
            self.fail(f"{wrong}; give {DISK_RULE}", param, ctx)


def read_disk(text: str) -> dict[str, Any]:
    """Arguments of DiskIn. :raise ValueError: says which word is wrong."""
    disk: dict[str, Any] = {}
    limits: dict[str, int] = {}
    for word in text.split(","):
        key, separator, value = word.partition("=")
        if not separator:
            disk["size_bytes"] = amounts.read_size(word)
        elif key in ("volume", "pool") and value:
            disk[key] = value
        elif key == "boot":
            disk["boot_order"] = read_number(value)
        elif key == "iops":
            limits["iops"] = read_number(value)
        elif key == "rate":
            limits["bytes_per_s"] = amounts.read_rate(value)
        else:
            raise ValueError(f"{word!r} means nothing here")
    if ("size_bytes" in disk) is ("volume" in disk):
        raise ValueError(f"{text!r} is neither a size nor a volume")
    if limits:
        disk["qos"] = limits
    return disk


class DriveType(click.ParamType["dict[str, Any]"]):
    """One `--cd`: what its words mean, as arguments of MediaIn."""

    name = "drive"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            return read_drive(str(value))
        except ValueError as wrong:
            self.fail(f"{wrong}; give {DRIVE_RULE}", param, ctx)


def read_drive(text: str) -> dict[str, Any]:
    """Arguments of MediaIn. :raise ValueError: says which word is wrong."""
    image, *words = text.split(",")
    if not image:
        raise ValueError(f"{text!r} names no image")
    drive: dict[str, Any] = {"image": image}
    for word in words:
        key, _, value = word.partition("=")
        if key == "boot":
            drive["boot_order"] = read_number(value)
        elif key == "bus" and value in BUSES:
            drive["bus"] = value
        else:
            raise ValueError(f"{word!r} means nothing here")
    return drive


def read_number(text: str) -> int:
    """A whole number. :raise ValueError: it is none."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def disk_in(disk: dict[str, Any]) -> DiskIn:
    """What `read_disk` read, as it is sent."""
    from novacron.client.devices import DiskIn

    qos = disk.get("qos")
    return DiskIn(**(disk | {"qos": qos_in(qos.get("iops"), qos.get("bytes_per_s")) if qos else None}))


def media_in(drive: dict[str, Any]) -> MediaIn:
    """What `read_drive` read, as it is sent."""
    from novacron.client.devices import MediaIn

    return MediaIn(**drive)


def qos_in(iops: int | None, bytes_per_s: int | None) -> QosIn | None:
    """Limits as they are sent; None when none was given."""
    from novacron.client.devices import QosIn

    if iops is None and bytes_per_s is None:
        return None
    return QosIn(iops=iops or 0, bytes_per_s=bytes_per_s or 0)
