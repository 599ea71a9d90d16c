"""A write asked for twice is done once: Idempotency-Key, kept in the same transaction as what it made.

idempotency/<principal>/<sha256 of the key>    one Kept each, msgspec JSON

once: Once = Depends(once_of(records))
outcome = await once.perform(VMS, lambda: service.create(body, once))
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Generic, Protocol

import msgspec
from fastapi import Depends, Header
from starlette.requests import Request

from novacron.control.answers import check_match
from novacron.control.store.base import Delete, Expect, Put, Store
from novacron.control.store.kinds import Kind, R
from novacron.control.store.records import WRITE_TRIES, Records, Write, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, Conflict, IdempotencyMismatch, NovaCronError, Reason

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
    warnings: tuple[Reason, ...] = ()


class Outcome(msgspec.Struct, frozen=True):
    """How a write ended: the record, the status to answer with, and what to warn of."""

    stored: Stored[Any]
    status: int
    warnings: tuple[Reason, ...] = ()


class Beside(Protocol):
    """What is written in the same transaction as a record, by whoever asked for the record."""

    def note(self, record: Any, status: int, revision: int = 0) -> tuple[Write, ...]:
        """What to commit together with the record; asked anew before each try. May raise a refusal."""
        ...

    async def is_used(self) -> bool:
        """Whether it has been written meanwhile, so that nothing is left to do."""
        ...


class Once:
    """One request's key (or none). The service adds `note` to its commit; `perform` answers a repeat from it.

    warnings: what the answer warns of, set before `note`; after a repeat, what the first answer warned of.
    """

    def __init__(self, store: Store, store_key: str, fingerprint: str, now: datetime.datetime) -> None:
        self._store = store
        self._key = store_key
        self._fingerprint = fingerprint
        self._now = now
        self.warnings: tuple[Reason, ...] = ()

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
            warnings=self.warnings,
        )
        return (Write((Put(self._key, msgspec.json.encode(kept)),), (Expect(self._key, 0),)),)

    async def is_used(self) -> bool:
        """Whether a request with this key has been written meanwhile."""
        return bool(self._key) and await self._store.get(self._key) is not None

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
        self.warnings = kept.warnings
        return Outcome(Stored(record, kept.revision or entry.modified), kept.status, kept.warnings)


def _never(_: Any) -> bool:
    return False


class Change(Generic[R]):
    """One change of one record, as a request asked for it: under If-Match, once, with what goes beside it.

    beside: what else to write in the same transaction, asked anew before each try.
    """

    def __init__(
        self,
        records: Records,
        kind: Kind[R],
        ref: str,
        held: frozenset[str] | None = None,
        once: Once | None = None,
        beside: Callable[[], Awaitable[Write]] | None = None,
    ) -> None:
        self._records = records
        self._kind = kind
        self._ref = ref
        self._held = held
        self._once = once
        self._beside = beside

    async def write(self, change: Callable[[R], R | None], under_way: Callable[[R], bool] = _never) -> Outcome:
        """Apply the pure change to the newest record until it is written. Status 202 when work is then under way.

        `change` answers None when the record already is so; it may raise a refusal.

        :raise NotFound, PreconditionFailed, NameTaken
        :raise CompareFailed: others kept writing, or the key was used meanwhile.
        """
        fresh = False  # whether it is decided from no older a state than the request
        for _ in range(WRITE_TRIES):
            beside = [await self._beside()] if self._beside else []
            try:
                stored = self._records.find(self._kind, self._ref)
                check_match(self._held, stored)
                new = change(stored.record)
            except NovaCronError:
                if fresh:
                    raise
                fresh = await self._refreshed()
                continue
            leaves = new is None or new == stored.record
            if leaves and not fresh:
                fresh = await self._refreshed()
                continue
            try:
                if new is None or leaves:
                    return await self._leave(stored, 202 if under_way(stored.record) else 200)
                status = 202 if under_way(new) else 200
                note = self._once.note(new, status) if self._once else ()
                revision = await self._records.commit(update(self._kind, stored, new), *beside, *note)
                return Outcome(Stored(new, revision), status)
            except CompareFailed as lost:
                if self._once and await self._once.is_used():
                    raise
                if new is not None:
                    await self._records.refuse_taken_name(self._kind, stored.record, new, lost)
                fresh = await self._refreshed()
        raise CompareFailed(f"{self._kind.object_type.value} {self._ref!r} is being changed by others: try again")

    async def _refreshed(self) -> bool:
        """Another server may have written just before. What is written is compared by the store, but a refusal, or that
        nothing is to be written, rests on the cache alone.
        """
        await self._records.refresh()
        return True

    async def _leave(self, stored: Stored[R], status: int) -> Outcome:
        note = self._once.note(stored.record, status, stored.modified) if self._once else ()
        if note:
            await self._records.commit(unchanged(self._kind, stored), *note)
        return Outcome(stored, status)


async def _once(
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
    records: Records = request.app.state.records
    now = request.app.state.clock.wall()
    if idempotency_key is None:
        return Once(records.store, "", "", now)
    key = hashlib.sha256(idempotency_key.encode()).hexdigest()
    asked = hashlib.sha256(f"{request.method} {request.url.path}?{request.url.query}\n".encode())
    asked.update(await request.body())
    return Once(records.store, f"{KEYS}{request.scope['principal'].name}/{key}", asked.hexdigest(), now)


Asked = Annotated[Once, Depends(_once)]
"""The request's Idempotency-Key, as a parameter of an endpoint. The application's state holds `records` and `clock`."""


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
