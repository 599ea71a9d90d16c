"""User-mode networks: the hypervisor's own NAT, with ports of the guest made reachable on 127.0.0.1."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from novacron.agent.drivers.base import NicPlug
from novacron.errors import NovaCronError
from novacron.model.machine import Nic
from novacron.model.network import NetworkSpec

HOST = "127.0.0.1"
_TRIES = 64


class UserNetwork:
    """Chooses host ports; a port given to one card is not given to another while that one is plugged.

    Between choosing and the hypervisor's own listen another process may take a port. The hypervisor then refuses to
    start, `port_was_taken` tells so, and plugging again chooses others.
    """

    def __init__(self) -> None:
        self._given: dict[str, frozenset[int]] = {}  # nic id -> host ports

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:  # noqa: ARG002
        """:raise NovaCronError: no port is free."""
        self._given.pop(nic.id, None)
        pairs: list[tuple[int, int]] = []
        for forward in nic.forwards:
            host_port = forward.host_port or self._free_port({taken for _, taken in pairs})
            pairs.append((forward.guest_port, host_port))
        self._given[nic.id] = frozenset(host_port for _, host_port in pairs)
        return NicPlug(nic_id=nic.id, mac=nic.mac, forwards=tuple(pairs))

    async def unplug(self, nic: Nic) -> None:
        self._given.pop(nic.id, None)

    def _free_port(self, mine: set[int]) -> int:
        given = mine.union(*self._given.values())
        for _ in range(_TRIES):
            with socket.socket() as probe:
                probe.bind((HOST, 0))
                port: int = probe.getsockname()[1]
            if port not in given:
                return port
        raise NovaCronError(f"no free TCP port on {HOST} after {_TRIES} tries")


def port_was_taken(error: NovaCronError) -> bool:
    """Whether a hypervisor died because a forwarded port was in use."""
    words = " ".join([error.message, *(reason.message for reason in error.reasons)]).lower()
    return "host forwarding" in words or "hostfwd" in words
