"""Which addresses a new card gets: pure; whoever records the answer does so in the turn in which it was asked.

IPv4: the lowest free address after the gateway's. IPv6: the subnet (always a /64) and the card's MAC in its modified
EUI-64 form: unique where MACs are, the same every time, and what a guest that configures itself arrives at too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence

from novacron.control.networks.cards import gateway_of, subnets_of
from novacron.errors import Conflict, InvalidInput, NoRoom, Reason
from novacron.model.network import Addressing, Network


def choose(network: Network, mac: str, wished: Sequence[str], taken: Collection[str], field: str) -> tuple[str, ...]:
    """One address in each subnet, IPv4 first: the wished one, else a free one. `field`: the path of `addresses`.

    :raise InvalidInput: a wish that lies in no subnet, is not a host's, or is the second in its subnet.
    :raise Conflict: a wished address is taken. :raise NoRoom: none is left.
    """
    if network.spec.addressing is Addressing.NONE:
        if wished:
            raise InvalidInput.field(field, f"nobody manages addresses on {network.name}", "leave them out")
        return ()
    subnets = subnets_of(network.spec)
    placed: dict[int, str] = {}
    for number, text in enumerate(wished):
        place = _place(network, text, f"{field}.{number}")
        if place in placed:
            raise InvalidInput.field(f"{field}.{number}", "is the second one in its subnet", "give one a subnet")
        if text in taken:
            raise Conflict(
                f"address {text} on network {network.name} is taken",
                [Reason("address.taken", "taken", subject=text, remedy="give another, or none")],
            )
        placed[place] = text
    return tuple(placed.get(place) or _free(network, place, mac, taken) for place in range(len(subnets)))


def _place(network: Network, text: str, field: str) -> int:
    """Which of its subnets a wished address is a host of. :raise InvalidInput"""
    address = ipaddress.ip_address(text)
    for place, subnet in enumerate(subnets_of(network.spec)):
        if address.version != subnet.version or address not in subnet:
            continue
        if text == gateway_of(subnet):
            raise InvalidInput.field(field, f"is the gateway of {network.name}", "give another")
        if address in (subnet.network_address, subnet.broadcast_address):
            raise InvalidInput.field(field, "is the first or last of the subnet, which no host has", "give another")
        return place
    known = " or ".join(str(subnet) for subnet in subnets_of(network.spec))
    raise InvalidInput.field(field, f"is not on {network.name}", f"give one in {known}")


def _free(network: Network, place: int, mac: str, taken: Collection[str]) -> str:
    subnet = subnets_of(network.spec)[place]
    if isinstance(subnet, ipaddress.IPv6Network):
        found = str(subnet.network_address + eui64(mac))
        if found not in taken:
            return found
        raise Conflict(
            f"address {found} on network {network.name} is taken",
            [Reason("address.taken", "it belongs to this MAC", subject=found, remedy="give another MAC or address")],
        )
    first, last = int(subnet.network_address) + 2, int(subnet.broadcast_address) - 1
    for number in range(first, last + 1):
        text = str(ipaddress.IPv4Address(number))
        if text not in taken:
            return text
    raise NoRoom(
        f"network {network.name} is full: all {last - first + 1} addresses of {subnet} are taken",
        [Reason("network.full", "no address is left", network.name, "delete VMs on it, or use another network")],
    )


def eui64(mac: str) -> int:
    """The interface identifier that a card of this MAC gives itself (RFC 4291, appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:])
