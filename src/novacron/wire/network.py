"""Verbs about networks that span nodes: each carries all a node needs of one network, newest revision wins."""

from __future__ import annotations

import msgspec

from novacron.model.network import NetworkState


class NetworkApply(msgspec.Struct, frozen=True, kw_only=True):
    """Make the network as this state says. An older revision, and a location of an older generation, change nothing.

    → None :raise Unsupported: this node cannot have such a network; says what is missing
    """

    state: NetworkState


class NetworkForget(msgspec.Struct, frozen=True, kw_only=True):
    """Take the network away from this node. A card still plugged in: refused (StateConflict). Absent: fine. → None"""

    network_id: str


class NetworkPing(msgspec.Struct, frozen=True, kw_only=True):
    """Ask an address on the network, from this node, until it answers or the time is over. → NetworkAnswer"""

    network_id: str
    address: str
    deadline_ms: int


class NetworkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """answered_after_ms: None: it did not answer."""

    answered_after_ms: float | None


VERBS: dict[str, type[msgspec.Struct]] = {
    "network.apply": NetworkApply,
    "network.forget": NetworkForget,
    "network.ping": NetworkPing,
}
