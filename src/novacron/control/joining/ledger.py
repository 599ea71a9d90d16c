"""What the store knows of joining: tokens by their hash, identities by node, and which names are theirs.

join_tokens/<sha256 in hex>        one JoinToken each
node_identities/<node id>          one NodeIdentity each
node_identity_names/<node name>    the id of the node that has it
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable
from typing import TypeVar

import msgspec

from novacron.control.store.base import Delete, Expect, Put, Store
from novacron.control.store.records import Write
from novacron.errors import CompareFailed, StoreCorrupt
from novacron.model.node_identity import JoinToken, NodeIdentity

TOKENS = "join_tokens/"
IDENTITIES = "node_identities/"
NAMES = "node_identity_names/"
TOKENS_KEPT = datetime.timedelta(days=7)
"""A token is kept for so long after it expired, so that whoever comes with it is told why it is refused."""

_PAGE = 500
Record = TypeVar("Record", JoinToken, NodeIdentity)
_encode = msgspec.json.Encoder().encode


def token_key(secret: str) -> str:
    return TOKENS + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def read(key: str, value: bytes, kind: type[Record]) -> Record:
    """:raise StoreCorrupt"""
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as wrong:
        raise StoreCorrupt(f"record {key} cannot be read: {wrong}") from wrong


async def find(store: Store, key: str, kind: type[Record]) -> tuple[Record | None, int]:
    """A record and the revision that wrote it; None and 0: there is none."""
    entry = await store.get(key)
    return (read(key, entry.value, kind), entry.modified) if entry else (None, 0)


def put(key: str, record: JoinToken | NodeIdentity, seen: int) -> Write:
    """The record, if it still is as it was seen."""
    return Write((Put(key, _encode(record)),), (Expect(key, seen),))


async def revocation(store: Store, node_id: str, reason: str) -> Write | None:
    """What revokes every certificate of the node and frees its name; None: it has no identity that is in force."""
    key = IDENTITIES + node_id
    identity, seen = await find(store, key, NodeIdentity)
    if identity is None or identity.revoked:
        return None
    revoked = msgspec.structs.replace(identity, revoked=True, term=identity.term + 1, reason=reason)
    return Write((Put(key, _encode(revoked)), Delete(NAMES + identity.name)), (Expect(key, seen),))


async def sweep(store: Store, now: datetime.datetime) -> int:
    """Forget tokens long past, and revoked nodes whose every certificate has expired; how many there were."""
    tokens = await _sweep(store, TOKENS, JoinToken, lambda token: now >= token.expires_at + TOKENS_KEPT)
    return tokens + await _sweep(store, IDENTITIES, NodeIdentity, lambda one: one.revoked and now >= one.expires_at)


async def _sweep(store: Store, prefix: str, kind: type[Record], is_past: Callable[[Record], bool]) -> int:
    gone, after, more = 0, "", True
    while more:
        page = await store.list(prefix, after=after, limit=_PAGE)
        old = [entry for entry in page.entries if is_past(read(entry.key, entry.value, kind))]
        for entry in old:
            with contextlib.suppress(CompareFailed):  # it joined anew meanwhile
                await store.commit([Delete(entry.key)], [Expect(entry.key, entry.modified)])
                gone += 1
        more = page.more
        after = page.entries[-1].key if page.entries else ""
    return gone
