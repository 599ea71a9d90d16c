"""Puts new cards on networks: finds what they name, gives them addresses, and tells their guest of them.

One Connector serves one turn (see control.room): it reads once which addresses are taken, and remembers those it gave.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.control.named import named
from novacron.control.networks.addresses import choose
from novacron.control.networks.cards import cards_on
from novacron.control.networks.guide import guided
from novacron.control.store.kinds import NETWORKS, SECURITY_GROUPS, VMS
from novacron.control.store.records import Records
from novacron.model.machine import Nic
from novacron.model.vm import Vm, VmSpec
from novacron.wire.rest.devices import NicIn


class Connector:
    """Cards of new VMs, and new cards of VMs there are."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._taken: dict[str, set[str]] = {}  # by network id

    def born(self, spec: VmSpec, asked: Sequence[NicIn]) -> VmSpec:
        """The spec of a new VM with its cards (made from `asked`, in that order) on their networks.

        :raise InvalidInput, Conflict, NoRoom: as `joined`, the field named below `nics`.
        """
        pairs = zip(spec.nics, asked, strict=True)
        nics = tuple(self.joined(nic, one, f"nics.{number}.") for number, (nic, one) in enumerate(pairs))
        named = (self._records.get(NETWORKS, nic.network_id) for nic in nics if nic.network_id)
        networks = {stored.record.id: stored.record for stored in named if stored is not None}
        return msgspec.structs.replace(spec, nics=nics, cloud_init=guided(spec.cloud_init, nics, networks))

    def joined(self, nic: Nic, asked: NicIn, field: str = "") -> Nic:
        """The card on the network it asked for; unchanged when it asked for none. `field`: what its paths begin with.

        :raise InvalidInput: no such network or group, or an address that is not on it.
        :raise Conflict: an address is taken. :raise NoRoom: the network is full.
        """
        if asked.net is None:
            return nic
        network = named(self._records, NETWORKS, asked.net, f"{field}net").record
        taken = self._taken_on(network.id)
        addresses = choose(network, nic.mac, asked.addresses, taken, f"{field}addresses")
        taken.update(addresses)
        return msgspec.structs.replace(
            nic,
            network_id=network.id,
            addresses=addresses,
            security_groups=groups_named(self._records, asked.security_groups, f"{field}security_groups"),
            anti_spoofing=asked.anti_spoofing,
        )

    def _taken_on(self, network_id: str) -> set[str]:
        if network_id not in self._taken:
            cards = cards_on(self._records, network_id)
            self._taken[network_id] = {address for _, nic in cards for address in nic.addresses}
        return self._taken[network_id]


def with_macs_of(records: Records, spec: VmSpec) -> list[Vm]:
    """The VMs there are that have a card with one of its MAC addresses."""
    return [stored.record for nic in spec.nics for stored in records.marked(VMS, nic.mac)]


def groups_named(records: Records, refs: Sequence[str], field: str) -> tuple[str, ...]:
    """Ids of the security groups, each once. :raise InvalidInput: there is no such group."""
    found = (named(records, SECURITY_GROUPS, ref, f"{field}.{number}").record.id for number, ref in enumerate(refs))
    return tuple(dict.fromkeys(found))
