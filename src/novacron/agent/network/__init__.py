"""How a machine's cards reach a network: the contract of a network kind, and the table of kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from novacron.agent.drivers.base import NicPlug
from novacron.model.machine import NetworkKind, Nic


class Network(Protocol):
    """One kind of network. Both verbs are idempotent."""

    async def plug(self, nic: Nic, uid: int | None) -> NicPlug:
        """Prepare what the card is plugged into, usable by `uid` (None: by the agent's own user).

        :raise Unsupported: this node cannot; the reason's remedy says what is missing. Nothing is left behind.
        """
        ...

    async def unplug(self, nic: Nic) -> None:
        """Take that away. Absent: fine."""
        ...


Networks = Mapping[NetworkKind, Network]
