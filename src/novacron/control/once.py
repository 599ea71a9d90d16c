"""A write asked for twice is done once: Idempotency-Key, kept in the same transaction as what it made.

idempotency/<principal>/<sha256 of the key>    one Kept each, msgspec JSON

once: Once = Depends(once_of(records))
outcome = await once.perform(VMS, lambda: service.create(body, once))
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Header
from starlette.requests import Request

from novacron.control.store.base import Delete, Expect, Put, Store
from novacron.control.store.records import Kind, R, Stored, Write
from novacron.errors import CompareFailed, Conflict, IdempotencyMismatch, Reason

KEYS = "idempotency/"
KEPT_FOR = datetime.timedelta(hours=24)
_BATCH = 64


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a key once led to. request: hash of method, path and body; record: as it was written then."""

    request: str
    status: int
    record: msgspec.Raw
    revision: int  # of the record; 0: the one that this note was written in
    at: datetime.datetime


class Outcome(msgspec.Struct, frozen=True):
    """How a write ended: the record, and the status to answer with."""

    stored: Stored[Any]
    status: int


class Once:
    """One request's key (or none). The service adds `note` to its commit; `perform` answers a repeat from it."""

    def __init__(self, store: Store, store_key: str, fingerprint: str, now: datetime.datetime) -> None:
        self._store = store
        self._key = store_key
        self._fingerprint = fingerprint
        self._now = now

    def note(self, record: Any, status: int, revision: int = 0) -> tuple[Write, ...]:
        """What to commit together with the record. Empty without a key."""
        if not self._key:
            return ()
        kept = Kept(
            request=self._fingerprint,
            status=status,
            record=msgspec.Raw(msgspec.json.encode(record)),
            revision=revision,
            at=self._now,
        )
        return (Write((Put(self._key, msgspec.json.encode(kept)),), (Expect(self._key, 0),)),)

    async def perform(self, kind: Kind[R], do: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Do it, unless this key has done it before: then its outcome again, word for word.

        :raise IdempotencyMismatch: the key was used for another request.
        """
        if not self._key:
            return await do()
        earlier = await self._earlier(kind)
        if earlier is not None:
            return earlier
        try:
            return await do()
        except (CompareFailed, Conflict):
            earlier = await self._earlier(kind)  # the same request, sent twice at once: the other one won
            if earlier is None:
                raise
            return earlier

    async def _earlier(self, kind: Kind[R]) -> Outcome | None:
        entry = await self._store.get(self._key)
        if entry is None:
            return None
        kept = msgspec.json.decode(entry.value, type=Kept)
        if kept.request != self._fingerprint:
            raise IdempotencyMismatch(
                "this Idempotency-Key was used before for another request",
                [Reason("idempotency.mismatch", "method, path or body differ", remedy="use a new key")],
            )
        record = kind.decode(self._key, bytes(kept.record))
        return Outcome(Stored(record, kept.revision or entry.modified), kept.status)


def once_of(store: Store, now: Callable[[], datetime.datetime]) -> Any:
    """A dependency that gives an endpoint its `Once`."""

    async def dependency(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                description="A request repeated with the same key within 24 hours is done once.",
                min_length=1,
                max_length=255,
                pattern=r"^[\x21-\x7e]+$",
            ),
        ] = None,
    ) -> Once:
        if idempotency_key is None:
            return Once(store, "", "", now())
        key = hashlib.sha256(idempotency_key.encode()).hexdigest()
        asked = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
        asked.update(await request.body())
        return Once(store, f"{KEYS}{request.scope['principal'].name}/{key}", asked.hexdigest(), now())

    return Depends(dependency)


async def sweep(store: Store, now: datetime.datetime) -> int:
    """Forget keys older than a day; how many there were."""
    gone, after = 0, ""
    while True:
        page = await store.list(KEYS, after=after, limit=_BATCH)
        old = [entry for entry in page.entries if now - msgspec.json.decode(entry.value, type=Kept).at > KEPT_FOR]
        if old:
            await store.commit([Delete(entry.key) for entry in old])
            gone += len(old)
        if not page.more:
            return gone
        after = page.entries[-1].key
