"""Networks that span nodes, on one node: made as they are told, with the cards plugged in here.

Each is a bridge, a VXLAN tunnel with fixed entries, filters at every port and, if it is wanted, a gateway and a DHCP
server. All of it outlives the agent and is found again; `forget` alone takes it away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import msgspec
import structlog
from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from novacron.agent.drivers.base import NicPlug
from novacron.agent.network import ability, changes, check, dhcp, firewall, gateway, links, memory, nft, speak, tap
from novacron.agent.network.dnsmasq import Dnsmasq
from novacron.agent.network.forwarding import tables
from novacron.agent.network.grammar import Command
from novacron.agent.network.memory import Known, Memory, Port
from novacron.agent.network.names import bridge_name, gateway_mac, has_gateway, overlay_tap, probe_mac, tunnel_name
from novacron.agent.network.subnets import Subnet, address, gateway_of, subnets
from novacron.clock import Clock
from novacron.errors import NotFound, NovaCronError, Reason, StateConflict, Unsupported
from novacron.model.machine import Nic
from novacron.model.network import Addressing, Location, NetworkSpec, PortFilter
from novacron.wire import network as wire

TEND_S = 5.0
PAUSE_S = 1.0  # after our filters were set again, so that a program that always changes them does not keep us at it
_FAILED = (NovaCronError, NetlinkError, OSError)


class Overlay:
    """Verbs take their wire struct and answer its result; all are idempotent. `here`: this node's tunnel address."""

    def __init__(self, remembered: Memory, servers: Dnsmasq, here: str, clock: Clock) -> None:
        self.here = here
        self._memory = remembered
        self._servers = servers
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._arriving: set[str] = set()  # MACs of machines that continue here, before anybody said that they may
        self._turn = asyncio.Lock()
        self._changes = changes.Changes({firewall.TABLE, gateway.TABLE})
        self._log = structlog.get_logger("networks")

    async def adopt(self) -> None:
        """Once, at the agent's start: bring what stands in step with what is remembered; nothing is made anew.

        From then on changes that others make to our filters are seen: `close` ends that.
        """
        try:
            self._changes.open()
        except OSError as wrong:
            self._log.info("what others change of nftables is not seen here", why=str(wrong))
        for network_id, known in self._memory.read().items():
            try:
                async with self._turn:
                    known = await self._without_lost(known)
                    self._known[network_id] = known
                    await self._make(known, known.ports.values())
                    await self._join(known)
            except _FAILED as wrong:
                self._log.error("a network is not as it should be", network_id=network_id, why=str(wrong))

    def close(self) -> None:
        """Look after nothing any more."""
        self._changes.close()

    async def tend(self) -> None:
        """For as long as the agent runs: what ended by itself, or was changed by others, is as it should be again."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._tend_servers())
            both.create_task(self._tend_filters())

    async def _tend_filters(self) -> None:
        whole = True
        while True:
            if whole:
                await self._changes.heard()
            async with self._turn:
                by = self._changes.take()
                if not by and whole:
                    continue
                whole = await self._restore(by)
            await self._clock.sleep(PAUSE_S)

    async def _restore(self, by: Iterable[str]) -> bool:
        """All filters anew, for somebody has changed them. Whether that succeeded for every network."""
        whole = True
        self._log.warning("another program changed our filters; setting them again", by=sorted(set(by)))
        for network_id, known in self._known.items():
            try:
                filters = await self._filters(known, known.ports.values())
                await self._write([*filters, *self._gateway_rules()])
            except _FAILED as wrong:
                whole = False
                self._log.error("a network's cards are not filtered", network_id=network_id, why=str(wrong))
        self._changes.excuse()
        return whole

    async def _tend_servers(self) -> None:
        while True:
            await self._clock.sleep(TEND_S)
            for network_id in list(self._known):
                async with self._turn:
                    known = self._known.get(network_id)
                    if known is None or not dhcp.wanted(known.spec) or self._servers.pid(network_id) is not None:
                        continue
                    self._log.warning("a network's DHCP server has ended; starting it again", network_id=network_id)
                    try:
                        await self._servers.ensure(known.spec, _cards(known))
                    except _FAILED as wrong:
                        self._log.error("it does not start", network_id=network_id, why=str(wrong))

    def known(self, network_id: str) -> Known | None:
        """What this node knows of a network."""
        return self._known.get(network_id)

    def ids(self) -> tuple[str, ...]:
        """Those networks this node has something of."""
        return tuple(self._known)

    # -- verbs ---------------------------------------------------------------------------------------------

    async def apply(self, args: wire.NetworkApply) -> None:
        """:raise Unsupported: this node cannot have it; says what is missing."""
        state = args.state
        check.check_state(state)
        ability.check()
        async with self._turn:
            before = self._known.get(state.spec.id)
            if before is not None and state.revision < before.revision:
                return
            now = memory.merged(before, state)
            ports = before.ports if before else {}
            other_spec = before is None or before.spec != now.spec
            changed = [port for mac, port in now.ports.items() if other_spec or not memory.alike(port, ports.get(mac))]
            self._arriving -= {mac for mac, place in now.locations.items() if self._settled(place)}
            await self._keep(now)
            await self._make(now, changed)

    def _settled(self, place: Location) -> bool:
        return place.endpoint == self.here

    async def forget(self, args: wire.NetworkForget) -> None:
        """:raise StateConflict: a card is plugged in."""
        check.check_id(args.network_id)
        async with self._turn:
            known = self._known.get(args.network_id)
            if known is not None:
                known = await self._without_lost(known)
            if known is not None and known.ports:
                raise StateConflict.of(f"network {args.network_id}", "in use here", ("without cards",), "forget")
            await self._servers.end(args.network_id)
            async with AsyncIPRoute() as kernel:
                await links.remove(kernel, args.network_id)
            self._known.pop(args.network_id, None)
            gone = firewall.without(tunnel_name(args.network_id), ()) if self._known else firewall.nothing()
            await self._write([*gone, *self._gateway_rules()])
            await asyncio.to_thread(self._memory.remove, args.network_id)

    async def ping(self, args: wire.NetworkPing) -> wire.NetworkAnswer:
        """:raise NotFound: the network is not on this node."""
        asked = address(args.address, "address")
        if args.network_id not in self._known:
            raise NotFound(f"network {args.network_id} is not on this node")
        mac = probe_mac(args.network_id, self.here)
        took = await speak.ask(bridge_name(args.network_id), mac, asked, args.deadline_ms / 1000, self._clock)
        return wire.NetworkAnswer(answered_after_ms=took)

    # -- cards ---------------------------------------------------------------------------------------------

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:
        """A tap on the network's bridge, filtered before it is there. The network is made if it is not here.

        :raise Unsupported: this node cannot; or nobody told it of the network.
        After a failure there is no tap, unless there was one before.
        """
        check.check_nic(nic)
        ability.check()
        name = overlay_tap(nic.id)
        tap.check_door(uid)
        async with self._turn:
            port = _port(nic)
            known = memory.plugged(self._known_by(nic.network_id, networks), port)
            async with AsyncIPRoute() as kernel:
                existed = await links.find(kernel, name) is not None
                try:
                    await self._make(known, [known.ports[nic.mac]])
                    await asyncio.to_thread(tap.make_tap, name, uid)
                    bridge = await links.find(kernel, bridge_name(known.spec.id))
                    await tap.attach(kernel, name, bridge)
                    await self._keep(known)
                    await self._fill(kernel, known)
                except BaseException as failed:
                    if not existed:
                        await tap.remove(kernel, name)
                        await self._unfilter(name)
                    if isinstance(failed, OSError | NetlinkError):
                        raise tap.refusal(failed, bridge_name(known.spec.id)) from failed
                    raise
        return NicPlug(nic_id=nic.id, mac=nic.mac, tap=name)

    async def unplug(self, nic: Nic) -> None:
        name = overlay_tap(nic.id)
        async with self._turn:
            async with AsyncIPRoute() as kernel:
                await tap.remove(kernel, name)
            await self._unfilter(name)
            self._arriving.discard(nic.mac)
            known = self._known.get(nic.network_id)
            if known is not None and nic.mac in known.ports and known.ports[nic.mac].nic_id == nic.id:
                await self._keep(memory.unplugged(known, nic.mac))

    async def find_here(self, nic: Nic) -> None:
        """From now on the node's own bridge finds this card here, whatever it was told before."""
        self._arriving.add(nic.mac)
        async with AsyncIPRoute() as kernel:
            link = await links.find(kernel, overlay_tap(nic.id))
            if link is not None:
                await links.place(kernel, nic.mac, link["index"])

    async def find_where_it_was(self, nic: Nic) -> None:
        """Take `find_here` back."""
        self._arriving.discard(nic.mac)
        async with self._turn, AsyncIPRoute() as kernel:
            if (known := self._known.get(nic.network_id)) is not None:
                await self._fill(kernel, known)

    async def settle(self, nic: Nic, vm_id: str, generation: int) -> None:
        """Remember that the card is here under this generation: what speaks of an older one changes nothing."""
        async with self._turn:
            known = self._known.get(nic.network_id)
            if known is not None and nic.mac in known.ports:
                place = Location(
                    mac=nic.mac, vm_id=vm_id, generation=generation, endpoint=self.here, addresses=nic.addresses
                )
                await self._keep(memory.located(known, place))
            self._arriving.discard(nic.mac)

    # -- inside --------------------------------------------------------------------------------------------

    def _known_by(self, network_id: str, networks: Sequence[NetworkSpec]) -> Known:
        """What is known of it; before the first state was heard, what the machine's spec says."""
        known = self._known.get(network_id)
        told = next((spec for spec in networks if spec.id == network_id), None)
        if told is not None and (known is None or known.revision == memory.NONE_YET):
            check.check_spec(told)
            known = Known(spec=told, ports=known.ports if known else {})
        if known is None:
            why = Reason("network.unknown", "nobody told this node what it is", network_id, "give it in the spec")
            raise Unsupported(f"this node does not know network {network_id!r}", [why])
        return known

    async def _make(self, known: Known, ports: Iterable[Port]) -> None:
        """The network as it is known, with these cards' filters. What there is already forwards all the while."""
        spec, own = known.spec, _gateway_subnets(known.spec)
        async with AsyncIPRoute() as kernel:
            if await links.existing(kernel, spec.id) is not None:
                await self._fill(kernel, known)
            await self._write([*await self._filters(known, ports), *self._gateway_rules(known)])
            await links.ensure(kernel, spec, address(self.here, "tunnel_host"), own)
            await self._fill(kernel, known)
        await asyncio.to_thread(gateway.open_ways, [spec])
        if dhcp.wanted(spec):
            await self._servers.ensure(spec, _cards(known))
        else:
            await self._servers.end(spec.id)

    async def _join(self, known: Known) -> None:
        """Taps whose bridge was taken away are on the new one."""
        async with AsyncIPRoute() as kernel:
            bridge = await links.find(kernel, bridge_name(known.spec.id))
            for port in known.ports.values():
                await tap.attach(kernel, overlay_tap(port.nic_id), bridge)
            await self._fill(kernel, known)

    async def _fill(self, kernel: AsyncIPRoute, known: Known) -> None:
        pair = await links.existing(kernel, known.spec.id)
        if pair is None:
            return
        places = [
            msgspec.structs.replace(place, endpoint=self.here) if mac in self._arriving else place
            for mac, place in known.locations.items()
        ]
        taps = {mac: overlay_tap(port.nic_id) for mac, port in known.ports.items()}
        neighbourly = bool(_gateway_subnets(known.spec))
        wanted = tables(known.spec.id, self.here, known.endpoints, places, taps, neighbourly=neighbourly)
        await links.fill(kernel, pair, wanted)

    async def _filters(self, known: Known, ports: Iterable[Port]) -> list[Command]:
        spec = known.spec
        gateways = [gateway_of(one) for one in _gateway_subnets(spec)]
        managed = spec.addressing is Addressing.MANAGED
        made = firewall.tunnel(tunnel_name(spec.id), gateways, gateway_mac(spec.id), managed=managed)
        present = await nft.names_of_sets(firewall.TABLE)
        for port in ports:
            own = [address(one, "addresses") for one in port.filter.addresses]
            made += firewall.port(
                overlay_tap(port.nic_id),
                port.mac,
                port.filter,
                own=own,
                checked=bool(own) or spec.addressing is not Addressing.NONE,
                served_by=gateways if managed else (),
                present=present,
            )
        return made

    def _gateway_rules(self, known: Known | None = None) -> list[Command]:
        """For all networks of this node: what passes between them is one table."""
        every = {**self._known, **({known.spec.id: known} if known else {})}
        here = address(self.here, "tunnel_host")
        return gateway.rules(
            [
                gateway.Span(one.spec, {here, *(address(endpoint, "endpoints") for endpoint in one.endpoints)})
                for one in every.values()
            ]
        )

    async def _write(self, commands: Sequence[Command]) -> None:
        """Change nftables, known as a change of ours."""
        self._changes.note(but=await nft.apply(commands))

    async def _unfilter(self, name: str) -> None:
        if nft.is_here():  # where it is not, nothing was ever filtered
            await self._write(firewall.without(name, await nft.names_of_sets(firewall.TABLE)))

    async def _keep(self, known: Known) -> None:
        self._known[known.spec.id] = known
        await asyncio.to_thread(self._memory.write, known)

    async def _without_lost(self, known: Known) -> Known:
        """Without cards whose taps went with a restart of the host, or by hand."""
        async with AsyncIPRoute() as kernel:
            for mac, port in known.ports.items():
                if await links.find(kernel, overlay_tap(port.nic_id)) is None:
                    known = memory.unplugged(known, mac)
        return known


def _port(nic: Nic) -> Port:
    wanted = nic.filter if nic.filter is not None else PortFilter(addresses=nic.addresses)
    return Port(nic_id=nic.id, mac=nic.mac, addresses=nic.addresses, filter=wanted)


def _cards(known: Known) -> dict[str, tuple[str, ...]]:
    found = {mac: place.addresses for mac, place in known.locations.items() if place.addresses}
    return {**{mac: port.addresses for mac, port in known.ports.items() if port.addresses}, **found}


def _gateway_subnets(spec: NetworkSpec) -> list[Subnet]:
    return subnets(spec) if has_gateway(spec) else []
