"""What a machine's networks do when it moves: its conversations go along, and everybody learns where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from novacron.agent.network import Luggage, flows, nft, speak
from novacron.agent.network.firewall import TABLE
from novacron.agent.network.names import bridge_name, overlay_tap
from novacron.agent.network.overlay import Overlay
from novacron.agent.network.subnets import address
from novacron.clock import Clock
from novacron.errors import NovaCronError
from novacron.model.machine import MachineSpec, NetworkKind, Nic
from novacron.model.network import Flow

FIRST = 500
"""So many conversations are there before the guest continues, within some 15 ms; the rest follow while it runs."""
_ANNOUNCE = "announce"
_FAILED = (NovaCronError, NetlinkError, OSError)


class Movements:
    """The `Travel` of overlay networks."""

    def __init__(self, overlay: Overlay, clock: Clock) -> None:
        self._overlay = overlay
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("networks")

    async def leaving(self, spec: MachineSpec) -> Luggage:
        begun_s, found = self._clock.monotonic_s(), list[Flow]()
        for nic in _stateful(spec):
            try:
                held = await nft.elements(TABLE, flows.names(overlay_tap(nic.id)))
            except NovaCronError as wrong:
                self._log.error("conversations stay behind", mac=nic.mac, why=str(wrong))
            else:
                found += flows.exported(nic.mac, held)
        kept = tuple(sorted(found, key=lambda flow: -flow.left_s)[: flows.MOST])
        return Luggage(kept, (self._clock.monotonic_s() - begun_s) * 1000)

    async def arriving(self, spec: MachineSpec, brought: Sequence[Flow]) -> None:
        found = [self._try(self._overlay.find_here(nic), nic) for nic in _ours(spec)]
        first, rest = brought[:FIRST], brought[FIRST:]
        found += [self._try(self._go_on(nic, first), nic) for nic in _stateful(spec) if first]
        await asyncio.gather(*found)
        for nic in _stateful(spec) if rest else ():
            self._begin(self._go_on(nic, rest), nic, "go on")

    async def arrived(self, spec: MachineSpec) -> None:
        for nic in _ours(spec):
            self._begin(self._overlay.settle(nic, spec.vm_id, spec.generation), nic, "settle")
            addresses = [address(one, "addresses") for one in nic.addresses]
            announcing = speak.announce(bridge_name(nic.network_id), nic.mac, addresses, self._clock)
            self._begin(announcing, nic, _ANNOUNCE)

    async def not_arrived(self, spec: MachineSpec) -> None:
        for nic in _ours(spec):
            await self._try(self._overlay.find_where_it_was(nic), nic)

    async def close(self) -> None:
        """Stop announcing; what is to be remembered is written first."""
        for task in self._tasks:
            if task.get_name() == _ANNOUNCE:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _go_on(self, nic: Nic, brought: Sequence[Flow]) -> None:
        mine = flows.imported(overlay_tap(nic.id), [flow for flow in brought if flow.mac == nic.mac])
        if mine:
            await nft.apply([TABLE.elements(name, elements) for name, elements in mine.items()])

    def _begin(self, work: Coroutine[Any, Any, None], nic: Nic, name: str) -> None:
        task = asyncio.create_task(self._try(work, nic), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _try(self, work: Coroutine[Any, Any, None], nic: Nic) -> None:
        """A guest that could run must not stand still because something about its network failed."""
        try:
            await work
        except _FAILED as wrong:
            self._log.error("a card has not wholly arrived", mac=nic.mac, why=str(wrong))


def _ours(spec: MachineSpec) -> list[Nic]:
    return [nic for nic in spec.nics if nic.network is NetworkKind.OVERLAY]


def _stateful(spec: MachineSpec) -> list[Nic]:
    return [nic for nic in _ours(spec) if nic.filter is not None and nic.filter.stateful]
