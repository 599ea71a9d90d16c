"""A fence device: how a node's power is switched off, and seen to be off, from outside. Pure.

Its password is in the record only sealed (see control.fencing.seal); it is in no view, no event and no log.
"""

from __future__ import annotations

import datetime
import re
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from novacron.errors import InvalidInput

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?)(?::[0-9]{1,5})?")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SYSTEM = re.compile(r"/redfish/v1/Systems/[A-Za-z0-9._~%:-]{1,200}")
IPMI_PASSWORD_BYTES = 20
"""More of them IPMI 2.0 does not carry."""


class FenceDeviceKind(StrEnum):
    """`redfish`: a BMC over HTTPS. `ipmi`: a BMC over IPMI 2.0 (lanplus)."""

    REDFISH = "redfish"
    IPMI = "ipmi"


class Power(StrEnum):
    """What a device says of a node's power. Only `off` says that nothing runs: one that is on its way may run yet."""

    ON = "on"
    OFF = "off"
    CHANGING = "changing"
    UNKNOWN = "unknown"


class FenceDevice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record. id: the node's. address: `https://host[:port]` for redfish, `host[:port]` for ipmi.

    system: the Redfish system that is the node; empty: the only one there is. fingerprint: SHA-256 of the certificate
    the device shows; empty: it is of a CA the server's host trusts, for the name in the address.
    """

    id: str
    kind: FenceDeviceKind
    address: str
    user: str
    sealed_password: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    system: str = ""
    fingerprint: str = ""


def check(device: FenceDevice, password: str) -> None:
    """:raise InvalidInput: names the field that cannot be."""
    if device.kind is FenceDeviceKind.REDFISH:
        _check_redfish(device)
        return
    if not _HOST.fullmatch(device.address):
        raise InvalidInput.field("address", "is no host", "give host or host:port of the BMC")
    for name, value in (("system", device.system), ("fingerprint", device.fingerprint)):
        if value:
            raise InvalidInput.field(name, "does not go with kind ipmi", "leave it out")
    if len(password.encode()) > IPMI_PASSWORD_BYTES:
        remedy = f"give the BMC's user one of at most {IPMI_PASSWORD_BYTES} bytes, or use redfish"
        raise InvalidInput.field("password", f"is longer than the {IPMI_PASSWORD_BYTES} bytes IPMI carries", remedy)


def _check_redfish(device: FenceDevice) -> None:
    scheme, _, place = device.address.partition("://")
    if scheme != "https" or not _HOST.fullmatch(place):
        raise InvalidInput.field("address", "is no address of a BMC", "give https://host or https://host:port")
    if device.system and not _SYSTEM.fullmatch(device.system):
        raise InvalidInput.field("system", "is no path of a system", "give /redfish/v1/Systems/ID, or leave it out")
    if device.fingerprint and not _FINGERPRINT.fullmatch(device.fingerprint):
        raise InvalidInput.field("fingerprint", "is no SHA-256 in hex", "give its 64 hex digits")


def host_and_port(device: FenceDevice) -> tuple[str, int]:
    """Where the device is reached; the usual port of its kind where the address names none.

    :raise InvalidInput: the port is out of bounds.
    """
    usual = 443 if device.kind is FenceDeviceKind.REDFISH else 623
    parts = urlsplit(device.address if "://" in device.address else f"//{device.address}")
    try:
        return parts.hostname or "", parts.port or usual
    except ValueError as wrong:
        raise InvalidInput.field("address", "names no port", "give a port from 1 to 65535") from wrong
