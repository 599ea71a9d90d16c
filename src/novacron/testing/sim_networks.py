"""A simulated node's overlay networks: what it was told, kept by the rules of the real agent, and who answers there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from novacron.agent.drivers.base import NicPlug
from novacron.agent.network.memory import Known, merged
from novacron.clock import Clock
from novacron.errors import StateConflict
from novacron.model.machine import Nic
from novacron.model.network import NetworkSpec
from novacron.testing.fake_driver import Life
from novacron.wire.network import NetworkAnswer, NetworkApply, NetworkForget, NetworkPing

ASK_EVERY_S = 0.01

Answers = Callable[[str, str], bool]
"""(tunnel address, VM id) → whether that machine runs behind it now."""


class SimNetworks:
    """What one host has of networks; outlives its agent, as files and interfaces do."""

    def __init__(self, clock: Clock, answers: Answers) -> None:
        self.known: dict[str, Known] = {}
        self.plugged: dict[str, str] = {}  # card id -> network id
        self.heard: list[NetworkApply] = []
        self.heard_at_s: list[float] = []
        self._clock = clock
        self._answers = answers

    def doers(self, life: Life) -> Mapping[str, Callable[[Any], Awaitable[Any]]]:
        """The verbs, for one agent process."""

        async def apply(verb: NetworkApply) -> None:
            life.check()
            self.heard.append(verb)
            self.heard_at_s.append(self._clock.monotonic_s())
            network_id = verb.state.spec.id
            self.known[network_id] = merged(self.known.get(network_id), verb.state)

        async def forget(verb: NetworkForget) -> None:
            life.check()
            if verb.network_id in self.plugged.values():
                raise StateConflict.of(f"network {verb.network_id}", "in use", ("without cards",), "forget")
            self.known.pop(verb.network_id, None)

        async def ping(verb: NetworkPing) -> NetworkAnswer:
            life.check()
            began_s = self._clock.monotonic_s()
            while (passed_ms := (self._clock.monotonic_s() - began_s) * 1e3) <= verb.deadline_ms:
                if self._is_answered(verb):
                    return NetworkAnswer(answered_after_ms=passed_ms)
                await self._clock.sleep(ASK_EVERY_S)
            return NetworkAnswer(answered_after_ms=None)

        return {"network.apply": apply, "network.forget": forget, "network.ping": ping}

    def _is_answered(self, verb: NetworkPing) -> bool:
        """Frames go where this node believes the card to be; only there it may answer."""
        known = self.known.get(verb.network_id)
        places = known.locations.values() if known else ()
        return any(verb.address in one.addresses and self._answers(one.endpoint, one.vm_id) for one in places)


class SimOverlay:
    """Plugs in memory on these networks."""

    def __init__(self, networks: SimNetworks, life: Life) -> None:
        self._networks = networks
        self._life = life

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:  # noqa: ARG002
        self._life.check()
        self._networks.plugged[nic.id] = nic.network_id
        for spec in networks:
            if spec.id == nic.network_id:
                self._networks.known.setdefault(spec.id, Known(spec=spec))
        return NicPlug(nic_id=nic.id, mac=nic.mac)

    async def unplug(self, nic: Nic) -> None:
        self._life.check()
        self._networks.plugged.pop(nic.id, None)
