"""Schedules of snapshots: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of


class ScheduleCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Snapshots of the VMs that bear all labels of `selector`, every `every_s`, the newest `keep` kept."""

    name: str
    selector: Mapping[str, str]
    every_s: int
    keep: int | UnsetType = UNSET
    memory: bool = False
    quiesce: bool = True
    paused: bool = False
    labels: Mapping[str, str] = {}


class ScheduleUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is."""

    name: str | UnsetType = UNSET
    selector: Mapping[str, str] | UnsetType = UNSET
    every_s: int | UnsetType = UNSET
    keep: int | UnsetType = UNSET
    memory: bool | UnsetType = UNSET
    quiesce: bool | UnsetType = UNSET
    paused: bool | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule. next_at: when it takes the next ones; None while it is paused."""

    id: str
    name: str
    selector: dict[str, str]
    every_s: int
    keep: int
    memory: bool
    quiesce: bool
    paused: bool
    labels: dict[str, str]
    last_at: datetime.datetime | None
    next_at: datetime.datetime | None
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(schedule: ScheduleCreate) -> Call[Schedule]:
    return Call(method="POST", path=path_of("schedules"), answer=Schedule, body=schedule)


def get(ref: str) -> Call[Schedule]:
    return Call(method="GET", path=_path(ref), answer=Schedule)


def search(*, labels: Sequence[str] = (), cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[Schedule]]:
    """One page of the schedules that meet all `labels`."""
    query: Query = {"label": labels, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("schedules"), answer=Page[Schedule], query=query)


def update(ref: str, change: ScheduleUpdate, *, revision: int | None = None) -> Call[Schedule]:
    """Change a schedule; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=_path(ref), answer=Schedule, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    """Delete a schedule; the snapshots it took stay."""
    return Call(method="DELETE", path=_path(ref), answer=type(None), revision=revision)


def _path(ref: str) -> str:
    return path_of("schedules", ref_of("schedule", ref))
