"""Networks: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of


class NetworkCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network that spans the nodes. mode: isolated, nat or routed; addressing: managed, static or none.

    vni None: chosen. What is left at its default is left to the server.
    """

    name: str
    description: str = ""
    labels: Mapping[str, str] = {}
    ipv4: str = ""
    ipv6: str = ""
    mode: str | UnsetType = UNSET
    addressing: str | UnsetType = UNSET
    mtu: int | UnsetType = UNSET
    dns: Sequence[str] = ()
    vni: int | None = None


class NetworkUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels, dns: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    dns: Sequence[str] | UnsetType = UNSET
    mode: str | UnsetType = UNSET
    ipv4: str | UnsetType = UNSET
    ipv6: str | UnsetType = UNSET


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A network; words that may grow are plain text, so that an old client can read a newer server."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    vni: int
    ipv4: str
    ipv6: str
    gateways: list[str]
    mode: str
    addressing: str
    mtu: int
    dns: list[str]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(network: NetworkCreate) -> Call[Network]:
    """Make a network."""
    return Call(method="POST", path=path_of("networks"), answer=Network, body=network)


def get(ref: str) -> Call[Network]:
    return Call(method="GET", path=path_of("networks", ref_of("network", ref)), answer=Network)


def search(*, labels: Sequence[str] = (), cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[Network]]:
    """One page of the networks that meet all `labels`."""
    query: Query = {"label": labels, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("networks"), answer=Page[Network], query=query)


def update(ref: str, change: NetworkUpdate, *, revision: int | None = None) -> Call[Network]:
    """Change a network; with `revision`, only when it is still that one."""
    path = path_of("networks", ref_of("network", ref))
    return Call(method="PATCH", path=path, answer=Network, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Delete a network that no card is on."""
    path = path_of("networks", ref_of("network", ref))
    return Call(method="DELETE", path=path, answer=type(None), revision=revision)
