"""Typed records over the store: reads from a cache fed by the watch, writes by compare-and-swap.

    vms/<id> nodes/<id> images/<id> …                  one record each, msgspec JSON; kinds.KINDS has them all
    names/<kind>/<name>                                → id; makes names unique in the same transaction

Every write waits until the cache has seen it, so a caller reads its own writes. Listeners are told of each revision
in order, after the cache holds it.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import copy
import heapq
import itertools
import random
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put, Store
from novacron.control.store.kinds import KINDS, Kind, N, R, V, name_of
from novacron.control.store.shelf import Shelf, Stored
from novacron.errors import CompareFailed, NameTaken, NotFound, StoreUnavailable
from novacron.model.identity import is_id, new_id

PAGE = 5000
"""Records asked for at once: etcd looks through all that follow, whatever the limit, so few large pages are quicker."""

WRITE_TRIES = 16
SLICE = 10_000  # records looked at in one go: some milliseconds


class Seen(msgspec.Struct, frozen=True):
    """One change of one record, decoded: `now` None when deleted, `before` None when created."""

    revision: int
    index: int
    kind: Any  # Kind[R]
    now: Any | None
    before: Any | None


Listener = Callable[[Sequence[Seen]], None]

_encode = msgspec.json.Encoder().encode


class Write(msgspec.Struct, frozen=True):
    """A planned write, made by `create`, `update` and `remove`; several go into one `Records.commit`."""

    ops: tuple[Put | Delete, ...]
    expect: tuple[Expect, ...]


def create(kind: Kind[R], record: R) -> Write:
    """Write a record that must not exist; its name (if the kind has names) must be free."""
    ops: list[Put | Delete] = [Put(kind.key(record.id), _encode(record))]
    expect = [Expect(kind.key(record.id), 0)]
    if kind.named:
        name_key = kind.name_key(name_of(record))
        ops.append(Put(name_key, record.id.encode()))
        expect.append(Expect(name_key, 0))
    return Write(tuple(ops), tuple(expect))


def update(kind: Kind[R], old: Stored[R], new: R) -> Write:
    """Replace a record as it was read; a changed name must be free."""
    ops: list[Put | Delete] = [Put(kind.key(new.id), _encode(new))]
    expect = [Expect(kind.key(new.id), old.modified)]
    if kind.named and name_of(old.record) != name_of(new):
        ops += [Delete(kind.name_key(name_of(old.record))), Put(kind.name_key(name_of(new)), new.id.encode())]
        expect.append(Expect(kind.name_key(name_of(new)), 0))
    return Write(tuple(ops), tuple(expect))


def remove(kind: Kind[R], old: Stored[R]) -> Write:
    """Delete a record as it was read, and its name."""
    ops: list[Put | Delete] = [Delete(kind.key(old.record.id))]
    if kind.named:
        ops.append(Delete(kind.name_key(name_of(old.record))))
    return Write(tuple(ops), (Expect(kind.key(old.record.id), old.modified),))


def unchanged(kind: Kind[R], seen: Stored[R]) -> Write:
    """Only expect that a record is still as it was read."""
    return Write((), (Expect(kind.key(seen.record.id), seen.modified),))


class _Stand:
    """How far the cache has come; shared by all views of it."""

    def __init__(self) -> None:
        self.revision = 0
        self.following = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap by revision: few wait, many come
        self._count = itertools.count()

    def reached(self, revision: int) -> asyncio.Future[None]:
        """Done once the cache has come to the revision, or follows no more."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.revision >= revision or not self.following:
            done.set_result(None)
        else:
            heapq.heappush(self._waiting, (revision, next(self._count), done))
        return done

    def move(self, revision: int) -> None:
        """It has come so far."""
        self.revision = revision
        self._wake(revision)

    def end(self) -> None:
        """It follows no more."""
        self.following = False
        self._wake(None)

    def _wake(self, revision: int | None) -> None:
        while self._waiting and (revision is None or self._waiting[0][0] <= revision):
            _, _, done = heapq.heappop(self._waiting)
            if not done.done():  # else who waited has gone
                done.set_result(None)


class Records:
    """The one way to records. `start` fills the cache and follows the store; `stop` ends that."""

    def __init__(self, store: Store, clock: Clock, rng: random.Random) -> None:
        self.store = store
        self._clock = clock
        self._rng = rng
        self._shelves: dict[str, Shelf[Any]] = {kind.prefix: Shelf(kind) for kind in KINDS}
        self._kinds = {kind.prefix: kind for kind in KINDS}
        self._listeners: list[Listener] = []
        self._stand = _Stand()
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read everything once, then follow the watch. :raise StoreCorrupt: a record cannot be read."""
        self._stand.revision = await self.store.revision()
        await self._load()
        self._stand.following = True
        self._follower = asyncio.create_task(self._follow(), name="records-follow")
        await self.refresh()  # what was loaded half old, half new is one moment now

    async def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            self._follower = None

    def written_through(self, store: Store) -> Records:
        """The same records, cache and listeners, whose writes go through `store`: the same one, behind a guard."""
        view = copy.copy(self)
        view.store = store
        return view

    @property
    def revision(self) -> int:
        """The store revision the cache stands at."""
        return self._stand.revision

    @property
    def following(self) -> bool:
        """Whether the cache still follows the store; when not, it is old for ever and every write is refused."""
        return self._stand.following

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` in the event loop with each revision's changes; returns how to stop it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- reading: from the cache, at once -------------------------------------------------------------------

    def get(self, kind: Kind[R], record_id: str) -> Stored[R] | None:
        shelf: Shelf[R] = self._shelves[kind.prefix]
        return shelf.by_id.get(record_id)

    def find(self, kind: Kind[R], ref: str) -> Stored[R]:
        """By id, name or alias. :raise NotFound"""
        shelf: Shelf[R] = self._shelves[kind.prefix]
        record_id = ref if is_id(ref) else shelf.by_name.get(ref, "")
        found = shelf.by_id.get(record_id)
        if found is None:
            raise NotFound(f"no {kind.object_type.value} {ref!r}")
        return found

    def name(self, kind: Kind[R], record_id: str) -> str:
        """What people call it; its id when it is not there."""
        stored = self.get(kind, record_id)
        return name_of(stored.record) if stored else record_id

    def all(self, kind: Kind[R]) -> list[Stored[R]]:
        """Every record of the kind, oldest first."""
        shelf: Shelf[R] = self._shelves[kind.prefix]
        return [shelf.by_id[record_id] for record_id in shelf.order]

    def of_vm(self, kind: Kind[V], vm_id: str) -> list[Stored[V]]:
        """Every record of the kind that has this vm_id, oldest first, without looking at the others."""
        shelf: Shelf[V] = self._shelves[kind.prefix]
        return [shelf.by_id[record_id] for record_id in shelf.ids_of(vm_id)]

    def on_node(self, kind: Kind[N], node_id: str) -> list[Stored[N]]:
        """Every record of the kind that has this node_id, oldest first, without looking at the others."""
        shelf: Shelf[N] = self._shelves[kind.prefix]
        return [shelf.by_id[record_id] for record_id in shelf.ids_on(node_id)]

    def marked(self, kind: Kind[R], mark: str) -> list[Stored[R]]:
        """Every record of the kind that has this mark (see kinds), oldest first, without looking at the others."""
        shelf: Shelf[R] = self._shelves[kind.prefix]
        return [shelf.by_id[record_id] for record_id in shelf.ids_marked(mark)]

    def busy(self, kind: Kind[R]) -> list[Stored[R]]:
        """Every record of the kind that has a task, oldest first, without looking at the others."""
        shelf: Shelf[R] = self._shelves[kind.prefix]
        return [shelf.by_id[record_id] for record_id in shelf.busy()]

    def page(
        self, kind: Kind[R], *, after: str, limit: int, vm_id: str = "", match: Callable[[R], bool] | None = None
    ) -> tuple[list[Stored[R]], bool]:
        """Up to `limit` matching records with ids after `after`, and whether more follow.

        vm_id: only those that have it, as in `of_vm`; empty: of all.
        """
        shelf: Shelf[R] = self._shelves[kind.prefix]
        ids = shelf.ids_of(vm_id) if vm_id else shelf.order
        found: list[Stored[R]] = []
        for place in range(bisect.bisect_right(ids, after), len(ids)):
            stored = shelf.by_id[ids[place]]
            if match is None or match(stored.record):
                if len(found) == limit:
                    return found, True
                found.append(stored)
        return found, False

    async def search(
        self,
        kind: Kind[R],
        *,
        after: str,
        limit: int,
        match: Callable[[R], bool],
        labels: Collection[tuple[str, str]] = (),
        node_id: str = "",
    ) -> tuple[list[Stored[R]], bool]:
        """As `page`, but others may act while very many records are looked at; each is found as it was then.

        labels, node_id: what `match` asks for among other things; fewer records need to be looked at then.
        """
        shelf: Shelf[R] = self._shelves[kind.prefix]
        found: list[Stored[R]] = []
        while len(found) <= limit:
            ids = shelf.narrowed(labels, node_id)
            begin = bisect.bisect_right(ids, after)
            slice_ = ids[begin : begin + SLICE]
            fitting = (one for one in map(shelf.by_id.__getitem__, slice_) if match(one.record))
            found += itertools.islice(fitting, limit + 1 - len(found))
            if begin + SLICE >= len(ids):
                break
            after = slice_[-1]
            await asyncio.sleep(0)
        return found[:limit], len(found) > limit

    # -- writing: compare-and-swap, then wait for the cache -------------------------------------------------

    def new_id(self) -> str:
        return new_id(int(self._clock.wall().timestamp() * 1000), self._rng.getrandbits(74))

    async def commit(self, *writes: Write, ops: Iterable[Put | Delete] = (), expect: Iterable[Expect] = ()) -> int:
        """All the writes (and raw operations) in one transaction; returns when the cache holds it.

        :raise CompareFailed: something changed since it was read; nothing was written.
        :raise StoreUnavailable: the outcome is unknown.
        """
        all_ops = [op for write in writes for op in write.ops] + list(ops)
        all_expect = [one for write in writes for one in write.expect] + list(expect)
        revision = await self.store.commit(all_ops, all_expect)
        await self.caught_up(revision)
        return revision

    async def create(self, kind: Kind[R], record: R) -> Stored[R]:
        """Write a new record. :raise NameTaken"""
        try:
            revision = await self.commit(create(kind, record))
        except CompareFailed as lost:
            await self.refuse_taken_name(kind, None, record, lost)
            raise
        return Stored(record, revision)

    async def change(self, kind: Kind[R], record_id: str, change: Callable[[R], R | None]) -> Stored[R] | None:
        """Apply a pure change to the newest record until it is written; None: `change` wanted nothing.

        `change` is called again with a newer record when somebody wrote in between, and may raise a refusal.

        :raise NotFound: it is gone. :raise NameTaken: the change renamed it to a name in use.
        """
        key = kind.key(record_id)
        async with self._turns.setdefault(key, asyncio.Lock()):  # here one after the other; others may still win
            for _ in range(WRITE_TRIES):
                stored = self.get(kind, record_id)
                if stored is None:
                    raise NotFound(f"no {kind.object_type.value} {record_id!r}")
                new = change(stored.record)
                if new is None or new == stored.record:
                    return None
                try:
                    return Stored(new, await self.commit(update(kind, stored, new)))
                except CompareFailed as lost:
                    await self.refuse_taken_name(kind, stored.record, new, lost)
                    await self.refresh()
        raise CompareFailed(f"{key} was changed by others {WRITE_TRIES} times in a row")

    async def refuse_taken_name(self, kind: Kind[R], old: R | None, new: R, lost: CompareFailed) -> None:
        """:raise NameTaken: a write of `new` lost because another holds the name it would take."""
        if not kind.named or (old is not None and name_of(old) == name_of(new)):
            return
        holder = await self.store.get(kind.name_key(name_of(new)))
        if holder is not None and holder.value != new.id.encode():
            raise NameTaken(f"the name {name_of(new)!r} is taken by another {kind.object_type.value}") from lost

    async def refresh(self) -> None:
        """Wait until the cache holds everything that was committed, by any server, before this call.

        Costs one question to the store. :raise StoreUnavailable: it does not answer, or the cache no longer follows.
        """
        await self.caught_up(await self.store.revision())

    async def caught_up(self, revision: int) -> None:
        """Wait until the cache holds `revision`. :raise StoreUnavailable: the cache no longer follows."""
        stand = self._stand
        if stand.revision >= revision:
            return
        await stand.reached(revision)
        if stand.revision < revision:
            raise StoreUnavailable("the record cache has lost the store")

    # -- the cache ------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        """Fill the shelves. What is written meanwhile may be in them already; following tells it again."""
        for kind in KINDS:
            self._shelves[kind.prefix] = Shelf(kind)
            async with contextlib.aclosing(self._pages(kind)) as pages:
                async for page in pages:
                    async for entry in breathing(page.entries):
                        self._take(kind, entry)

    async def _pages(self, kind: Kind[Any]) -> AsyncGenerator[Page, None]:
        """All of a kind. The store looks for the next page while the one before is taken in: each costs as much."""

        def ask(after: str) -> asyncio.Task[Page]:
            return asyncio.create_task(self.store.list(kind.prefix, after=after, limit=PAGE))

        asked: asyncio.Task[Page] | None = ask("")
        try:
            while asked is not None:
                page = await asked
                asked = ask(page.entries[-1].key) if page.more else None
                yield page
        finally:
            if asked is not None:
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    def _take(self, kind: Kind[Any], entry: Entry) -> None:
        record = kind.decode(entry.key, entry.value)
        self._shelves[kind.prefix].put(Stored(record, entry.modified))

    async def _follow(self) -> None:
        try:
            async for changes in self.store.watch("", after=self._stand.revision):
                seen = [one for one in map(self._apply, changes) if one is not None]
                self._stand.move(changes[0].revision)
                if seen:
                    for listener in tuple(self._listeners):
                        listener(seen)
        finally:
            self._stand.end()

    def _apply(self, change: Change) -> Seen | None:
        prefix = change.key[: change.key.find("/") + 1]
        kind = self._kinds.get(prefix)
        if kind is None:
            return None
        shelf = self._shelves[prefix]
        record_id = change.key[len(prefix) :]
        if change.value is None:
            before = shelf.drop(record_id)
            return Seen(change.revision, change.index, kind, None, before) if before is not None else None
        record = kind.decode(change.key, change.value)
        before = shelf.put(Stored(record, change.revision))
        return Seen(change.revision, change.index, kind, record, before)
