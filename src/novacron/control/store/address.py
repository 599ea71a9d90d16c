"""Where a store is: the address that `--store` takes, read into its parts.

`sqlite:/var/lib/novacron/store.db`, or `etcd://host:port,host:port/prefix?ca=FILE&cert=FILE&key=FILE`.
"""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import NoReturn

import msgspec

from novacron.config import is_loopback
from novacron.errors import InvalidInput

ETCD_PORT = 2379
DEFAULT_PREFIX = "novacron"
PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
MAX_PREFIX_BYTES = 64
ETCD_FORM = "give etcd://host:port,host:port/prefix?ca=FILE&cert=FILE&key=FILE"


class SqliteAddress(msgspec.Struct, frozen=True):
    """A file of this machine."""

    path: Path

    def __str__(self) -> str:
        return f"sqlite:{self.path}"


class EtcdAddress(msgspec.Struct, frozen=True):
    """An etcd cluster and the prefix under which all of the store lies. No ca: not encrypted, and loopback only."""

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def __str__(self) -> str:
        return f"etcd://{','.join(self.endpoints)}/{self.prefix}"


Address = SqliteAddress | EtcdAddress


def parse(text: str, field: str = "store") -> Address:
    """The address in `text`, which stood in `field`. Nothing is opened.

    :raise InvalidInput: it is neither form; names what is wrong with it.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "sqlite" and rest and not rest.startswith("//"):
        return SqliteAddress(Path(rest))
    if scheme == "etcd" and rest.startswith("//"):
        return _etcd(text, field)
    raise InvalidInput.field(field, f"{text!r} is no store's address", f"give sqlite:FILE, or {ETCD_FORM[5:]}")


def _etcd(text: str, field: str) -> EtcdAddress:
    try:
        parts = urllib.parse.urlsplit(text)
        given = urllib.parse.parse_qs(parts.query, strict_parsing=bool(parts.query), keep_blank_values=True)
    except ValueError as wrong:
        _refuse(field, f"cannot be read: {wrong}")
    unknown = sorted(set(given) - {"ca", "cert", "key"})
    if unknown or parts.fragment or any(len(values) > 1 or not values[0] for values in given.values()):
        _refuse(field, f"has options other than one ca, cert and key{': ' if unknown else ''}{', '.join(unknown)}")
    files = {name: Path(values[0]) for name, values in given.items()}
    endpoints = tuple(_endpoint(one, field) for one in parts.netloc.split(","))
    if ("cert" in files) != ("key" in files):
        _refuse(field, "has one of cert and key without the other")
    if "ca" not in files:
        _refuse_plain(field, endpoints, files)
    return EtcdAddress(endpoints, _prefix(parts.path, field), **files)


def _endpoint(text: str, field: str) -> str:
    """As `host:port`; IPv6 hosts in brackets."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(\d{1,5}))?", text)
    if found is None or not 0 < int(found[2] or ETCD_PORT) <= 65535:
        _refuse(field, f"names {text!r}, which is not host:port")
    return f"{found[1]}:{found[2] or ETCD_PORT}"


def _prefix(path: str, field: str) -> str:
    prefix = path.strip("/") or DEFAULT_PREFIX
    if not PREFIX.fullmatch(prefix) or len(prefix) > MAX_PREFIX_BYTES:
        _refuse(field, f"has the prefix {prefix!r}: up to {MAX_PREFIX_BYTES} letters, digits, . _ - and / are allowed")
    return prefix


def _refuse_plain(field: str, endpoints: tuple[str, ...], files: dict[str, Path]) -> None:
    if files:
        _refuse(field, "has cert and key without ca: etcd's own certificate would be trusted unseen")
    for endpoint in endpoints:
        if not is_loopback(endpoint.rpartition(":")[0].strip("[]")):
            _refuse(field, f"names {endpoint}, which is not loopback, without ca")


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidInput.field(field, why, ETCD_FORM)
