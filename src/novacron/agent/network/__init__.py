"""How a machine's cards reach a network: the contract of a network kind, and the table of kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from novacron.agent.drivers.base import NicPlug
from novacron.model.machine import MachineSpec, NetworkKind, Nic
from novacron.model.network import Flow, NetworkSpec


class Network(Protocol):
    """One kind of network. Both verbs are idempotent."""

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:
        """Prepare what the card is plugged into, usable by `uid` (None: by the agent's own user).

        networks: what the machine's spec says of the networks its cards are on.
        :raise Unsupported: this node cannot; the reason's remedy says what is missing. Nothing is left behind.
        """
        ...

    async def unplug(self, nic: Nic) -> None:
        """Take that away. Absent: fine."""
        ...


Networks = Mapping[NetworkKind, Network]


class Luggage(NamedTuple):
    """What a machine takes along, and how long it took to gather."""

    flows: tuple[Flow, ...] = ()
    packed_in_ms: float = 0.0


class Travel(Protocol):
    """What a network does for a machine that moves between nodes. Failures are logged: the guest must not wait."""

    async def leaving(self, spec: MachineSpec) -> Luggage:
        """At the source, when it stands still: the conversations its cards have."""
        ...

    async def arriving(self, spec: MachineSpec, flows: Sequence[Flow]) -> None:
        """At the target, before it continues: let them go on, and find it here."""
        ...

    async def arrived(self, spec: MachineSpec) -> None:
        """It runs here, under the spec's generation: remember so, and tell everybody. Does not wait for either."""
        ...

    async def not_arrived(self, spec: MachineSpec) -> None:
        """It did not continue here: find it where it was."""
        ...


class StayAtHome:
    """The `Travel` of an agent without networks that span nodes."""

    async def leaving(self, spec: MachineSpec) -> Luggage:  # noqa: ARG002
        return Luggage()

    async def arriving(self, spec: MachineSpec, flows: Sequence[Flow]) -> None: ...

    async def arrived(self, spec: MachineSpec) -> None: ...

    async def not_arrived(self, spec: MachineSpec) -> None: ...
