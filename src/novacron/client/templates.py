"""Templates: what is sent, what is answered, and every call about them."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from novacron.client.call import MAX_PAGE, Call, Page, Query, path_of, ref_of
from novacron.client.vms import VmList


class ParameterIn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Something asked for when a VM is made. type: text or integer. Without a default it must be given."""

    name: str
    type: str = "text"
    description: str = ""
    default: str | int | None = None
    choices: Sequence[str | int] = ()
    multiline: bool = False


class VersionCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """vm: what `vms.create` sends, without its name."""

    vm: Mapping[str, Any]
    parameters: Sequence[ParameterIn] = ()
    note: str = ""


class TemplateCreate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A template with its first version."""

    name: str
    vm: Mapping[str, Any]
    parameters: Sequence[ParameterIn] = ()
    note: str = ""
    description: str = ""
    labels: Mapping[str, str] = {}


class TemplateUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What may be changed; a field left UNSET stays as it is. labels: all of them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    labels: Mapping[str, str] | UnsetType = UNSET
    default_version: int | UnsetType = UNSET


class Instantiate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """VMs to be made: all or none. With count 1 the VM has that name, with more `<name>-1` and so on."""

    name: str
    count: int = 1
    first_index: int = 1
    version: int = 0
    parameters: Mapping[str, str | int] = {}
    labels: Mapping[str, str] = {}
    node: str | None = None


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    type: str
    description: str = ""
    default: str | int | None = None
    choices: list[str | int] = []
    multiline: bool = False


class Version(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    vm: dict[str, Any]
    parameters: list[Parameter]
    note: str
    created_at: datetime.datetime


class Template(msgspec.Struct, frozen=True, kw_only=True):
    """A template; its versions never change, the newest is the last."""

    id: str
    name: str
    description: str
    labels: dict[str, str]
    default_version: int
    versions: list[Version]
    created_at: datetime.datetime
    updated_at: datetime.datetime
    revision: int


def create(template: TemplateCreate) -> Call[Template]:
    return Call(method="POST", path=path_of("templates"), answer=Template, body=template)


def get(ref: str) -> Call[Template]:
    return Call(method="GET", path=_path(ref), answer=Template)


def search(*, labels: Sequence[str] = (), cursor: str = "", limit: int = MAX_PAGE) -> Call[Page[Template]]:
    """One page of the templates that meet all `labels`."""
    query: Query = {"label": labels, "cursor": cursor, "limit": limit}
    return Call(method="GET", path=path_of("templates"), answer=Page[Template], query=query)


def update(ref: str, change: TemplateUpdate, *, revision: int | None = None) -> Call[Template]:
    """Change its words or its default; with `revision`, only when it is still that one."""
    return Call(method="PATCH", path=_path(ref), answer=Template, body=change, revision=revision)


def delete(ref: str, *, revision: int | None = None) -> Call[None]:
    return Call(method="DELETE", path=_path(ref), answer=type(None), revision=revision)


def add_version(ref: str, version: VersionCreate) -> Call[Template]:
    return Call(method="POST", path=_path(ref, "versions"), answer=Template, body=version)


def delete_version(ref: str, number: int) -> Call[Template]:
    return Call(method="DELETE", path=_path(ref, f"versions/{number:d}"), answer=Template)


def instantiate(ref: str, wish: Instantiate) -> Call[VmList]:
    """Make VMs of it; the answer holds their records to watch."""
    return Call(method="POST", path=_path(ref, "instantiate"), answer=VmList, body=wish)


def _path(ref: str, action: str = "") -> str:
    return path_of("templates", ref_of("template", ref), action)
