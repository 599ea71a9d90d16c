"""What switches a node's power: the contract, and the table of kinds. A new kind is a class and a word in the model.

An answer to `off` proves nothing: BMCs answer before the power is off, and some when nothing has happened at all. Only
what `power` reads counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from novacron.control.fencing.ipmi import Ipmi
from novacron.control.fencing.redfish import Redfish
from novacron.control.fencing.seal import Seal
from novacron.model.fence_device import FenceDevice, FenceDeviceKind, Power


class Switch(Protocol):
    """One node's power, from outside. Both end within `WITHIN_S` of their kind, and may be asked again."""

    async def power(self) -> Power:
        """What it is now, read from the device. :raise NovaCronError: it could not be read; nothing is known."""
        ...

    async def off(self) -> None:
        """Ask for it to be cut, without asking the host. :raise NovaCronError: it is not known whether it was heard."""
        ...


KINDS: Mapping[FenceDeviceKind, Callable[[FenceDevice, str], Switch]] = {
    FenceDeviceKind.REDFISH: Redfish,
    FenceDeviceKind.IPMI: Ipmi,
}

Opens = Callable[[FenceDevice], Switch]


def opener(seal: Seal) -> Opens:
    """What reaches a device by its record. :raise Conflict: its password cannot be read."""
    return lambda device: KINDS[device.kind](device, seal.opened(device))
