"""Storage pools: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of


class PoolCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place where volumes lie. options: what its driver must be told. shared None: as the driver usually is.

    quota_bytes: how large its volumes may be together; 0: without limit.
    """

    name: str
    driver: str
    options: Mapping[str, str] = {}
    shared: bool | None = None
    description: str = ""
    labels: Mapping[str, str] = {}
    image_cache_bytes: int = 0
    quota_bytes: int = 0


class PoolUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels, options: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    options: Mapping[str, str] | UnsetType = UNSET
    image_cache_bytes: int | UnsetType = UNSET
    quota_bytes: int | UnsetType = UNSET


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """A pool as one node found it. reason: why it is not available."""

    node: str
    node_id: str
    available: bool
    checked_at: datetime.datetime
    reason: str = ""
    free_bytes: int = 0
    size_bytes: int = 0


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool; `driver` is plain text, so that an old client can read a newer server."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    driver: str
    options: dict[str, str]
    shared: bool
    is_default: bool
    image_cache_bytes: int
    quota_bytes: int
    reach: list[Reach]
    free_bytes: int
    size_bytes: int
    volume_count: int
    promised_bytes: int
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(pool: PoolCreate) -> Call[Pool]:
    """Make a pool known; which nodes reach it is seen within seconds."""
    return Call(method="POST", path=path_of("pools"), answer=Pool, body=pool)


def get(ref: str) -> Call[Pool]:
    return Call(method="GET", path=path_of("pools", ref_of("pool", ref)), answer=Pool)


def search(
    *, labels: Sequence[str] = (), driver: str = "", cursor: str = "", limit: int = MAX_PAGE
) -> Call[Page[Pool]]:
    """One page of the pools that meet all `labels` and are of that `driver`; empty: any."""
    query: Query = {"label": labels, "driver": driver, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("pools"), answer=Page[Pool], query=query)


def update(ref: str, change: PoolUpdate, *, revision: int | None = None) -> Call[Pool]:
    """Change a pool; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=path_of("pools", ref_of("pool", ref)), answer=Pool, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Forget a pool in which no volume lies."""
    return Call(method="DELETE", path=path_of("pools", ref_of("pool", ref)), answer=type(None), revision=revision)
