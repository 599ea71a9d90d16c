"""Migration policies: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.migrations import Goals

COLLECTION = "migration-policies"


class Window(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When migrations may begin, each week. ends (`05:00`) not after begins: on the day after."""

    days: list[str]
    begins: str
    ends: str
    timezone: str = "UTC"


class PolicyCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Goals under a name: for VMs with all labels of `selector` (an empty value: any value), for migrations that name
    it, and, if it is the default, for all others.
    """

    name: str
    goals: Goals
    selector: Mapping[str, str] = {}
    is_default: bool = False
    windows: list[Window] = []
    labels: Mapping[str, str] = {}
    description: str = ""


class PolicyUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. goals, selector, labels: all of them."""

    name: str | UnsetType = UNSET
    goals: Goals | UnsetType = UNSET
    selector: Mapping[str, str] | UnsetType = UNSET
    is_default: bool | UnsetType = UNSET
    windows: list[Window] | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    description: str | UnsetType = UNSET


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    goals: Goals
    selector: dict[str, str]
    is_default: bool
    windows: list[Window]
    labels: dict[str, str]
    description: str
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(policy: PolicyCreate) -> Call[Policy]:
    """Give goals a name."""
    return Call(method="POST", path=path_of(COLLECTION), answer=Policy, body=policy)


def get(ref: str) -> Call[Policy]:
    return Call(method="GET", path=path_of(COLLECTION, ref_of("policy", ref)), answer=Policy)


def search(*, labels: Sequence[str] = (), cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[Policy]]:
    """One page of the policies that meet all `labels`."""
    query: Query = {"label": labels, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of(COLLECTION), answer=Page[Policy], query=query)


def update(ref: str, change: PolicyUpdate, *, revision: int | None = None) -> Call[Policy]:
    """Change a policy; with `revision`, only when it is still that one."""
    path = path_of(COLLECTION, ref_of("policy", ref))
    return Call(method="PATCH", path=path, answer=Policy, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Forget a policy."""
    path = path_of(COLLECTION, ref_of("policy", ref))
    return Call(method="DELETE", path=path, answer=type(None), revision=revision)
