"""Security groups: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What may begin a conversation. direction: in or out; protocol: any, tcp, udp or icmp; ports 0: any.

    The peer is in `cidr`, or has a card in `group` (id or name; the id in answers); neither: anybody.
    """

    direction: str
    protocol: str = "any"
    port_first: int = 0
    port_last: int = 0
    cidr: str = ""
    group: str | None = None


class SecurityGroupCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A group of rules."""

    name: str
    description: str = ""
    labels: Mapping[str, str] = {}
    rules: Sequence[Rule] = ()


class SecurityGroupUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels, rules: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    rules: Sequence[Rule] | UnsetType = UNSET


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    labels: dict[str, str]
    rules: list[Rule]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(group: SecurityGroupCreate) -> Call[SecurityGroup]:
    """Make a group."""
    return Call(method="POST", path=path_of("security_groups"), answer=SecurityGroup, body=group)


def get(ref: str) -> Call[SecurityGroup]:
    path = path_of("security_groups", ref_of("security_group", ref))
    return Call(method="GET", path=path, answer=SecurityGroup)


def search(*, labels: Sequence[str] = (), cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[SecurityGroup]]:
    """One page of the groups that meet all `labels`."""
    query: Query = {"label": labels, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("security_groups"), answer=Page[SecurityGroup], query=query)


def update(ref: str, change: SecurityGroupUpdate, *, revision: int | None = None) -> Call[SecurityGroup]:
    """Change a group; with `revision`, only when it is still that one."""
    path = path_of("security_groups", ref_of("security_group", ref))
    return Call(method="PATCH", path=path, answer=SecurityGroup, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Delete a group that no card is in and no rule of another names."""
    path = path_of("security_groups", ref_of("security_group", ref))
    return Call(method="DELETE", path=path, answer=type(None), revision=revision)
