"""Where frames go on one node: which entries its bridge, tunnel and neighbour tables should hold. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from novacron.agent.network.names import probe_mac
from novacron.model.network import Location

EVERYBODY = "00:00:00:00:00:00"
"""The tunnel's entry for what has no entry of its own, and for what is sent to all."""


class Tables(NamedTuple):
    """behind: (MAC, endpoint) pairs of the tunnel. remote: MACs the bridge finds behind its tunnel; local: at which
    tap. neighbours: (address, MAC) the node itself knows.
    """

    behind: frozenset[tuple[str, str]]
    remote: frozenset[str]
    local: Mapping[str, str]
    neighbours: frozenset[tuple[str, str]]


def tables(
    network_id: str,
    here: str,
    endpoints: Iterable[str],
    locations: Collection[Location],
    taps: Mapping[str, str],
    *,
    neighbourly: bool,
) -> Tables:
    """here: this node's tunnel address. taps: of the cards plugged in here, by MAC. neighbourly: it has a gateway."""
    others = {endpoint for endpoint in endpoints if endpoint != here}
    away = {one.mac: one.endpoint for one in locations if one.endpoint != here}
    behind = {(EVERYBODY, other) for other in others} | set(away.items())
    behind |= {(probe_mac(network_id, other), other) for other in others}
    at_home = {one.mac: taps[one.mac] for one in locations if one.endpoint == here and one.mac in taps}
    known = {(address, one.mac) for one in locations for address in one.addresses} if neighbourly else set()
    return Tables(frozenset(behind), frozenset(away), at_home, frozenset(known))
