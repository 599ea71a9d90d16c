"""Decides what requests about networks mean and records it; the weaver then tells the nodes."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.networks import check
from novacron.control.networks.cards import cards_on
from novacron.control.networks.turns import Turns
from novacron.control.once import Once, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import NETWORKS, NODES
from novacron.control.store.records import Records
from novacron.model.network import Network, NetworkSpec
from novacron.model.vm import Vm
from novacron.wire.rest.networks import NetworkCreate, NetworkUpdate

SPEC = ("dns", "mode", "ipv4", "ipv6")
"""What may be changed of what nodes are told."""


class NetworkService:
    """Requests about networks, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._turns: Turns[Network] = Turns(records, room, NETWORKS)

    async def create(self, asked: NetworkCreate, once: Once) -> Outcome:
        """Record a network; nodes hear of it with their first card on it.

        :raise InvalidInput: a subnet no network can have. :raise NameTaken, Conflict: what it asks for is another's.
        """

        def make() -> Network:
            others = [stored.record for stored in self._records.all(NETWORKS)]
            now, network_id = self._clock.wall(), self._records.new_id()
            spec = NetworkSpec(
                id=network_id,
                vni=asked.vni or check.free_vni(others),
                ipv4=asked.ipv4,
                ipv6=asked.ipv6,
                mode=asked.mode,
                addressing=asked.addressing,
                mtu=asked.mtu,
                dns=tuple(asked.dns),
            )
            network = Network(
                id=network_id,
                name=asked.name,
                description=asked.description,
                labels=asked.labels,
                spec=spec,
                created_at=now,
                updated_at=now,
            )
            self._check(network)
            return network

        return await self._turns.create(make, once)

    async def update(self, ref: str, asked: NetworkUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what was named. Nodes follow at once; guests hear of new resolvers when they ask again.

        :raise NotFound, NameTaken, PreconditionFailed
        :raise InvalidInput: a subnet no network can have. :raise Conflict: it is another's, or cards have addresses in
            the one it has.
        """
        named = asked.model_dump(exclude_none=True)
        told = {field: named.pop(field) for field in SPEC if field in named}
        if asked.dns is not None:
            told["dns"] = tuple(asked.dns)

        def change(network: Network) -> Network:
            spec = msgspec.structs.replace(network.spec, **told)
            new = msgspec.structs.replace(network, **named, spec=spec)
            if new == network:
                return network
            if spec != network.spec:
                check.check_change(network.spec, spec, self._users(network), network.name)
                self._check(new)
            return msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await self._turns.change(ref, held, change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget a network no card is on. :raise Conflict: VMs have cards on it. :raise NotFound, PreconditionFailed"""

        def refuse(network: Network) -> None:
            users = {vm.name for vm in self._users(network)}
            if users:
                raise check.in_use(f"cannot delete network {network.name}", users, "network.in_use")

        await self._turns.delete(ref, held, refuse)

    def _check(self, network: Network) -> None:
        others = (stored.record for stored in self._records.all(NETWORKS))
        check.check(network, others, [stored.record for stored in self._records.all(NODES)])

    def _users(self, network: Network) -> list[Vm]:
        return [vm for vm, _ in cards_on(self._records, network.id)]
