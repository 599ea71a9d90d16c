"""The cluster store: etcd 3.4 or later, any member of it, with the same promises as the embedded one.

A commit is one etcd transaction that is safe to send again (etcd_commit); a watch goes on at another member where it
was (etcd_watch); keys and revisions are mapped by etcd_layout. Reads are linearizable: any member answers them truly.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from novacron.clock import Clock
from novacron.control.store import bounds, etcd_origin
from novacron.control.store.address import EtcdAddress
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put
from novacron.control.store.etcd_commit import Committer, Slots
from novacron.control.store.etcd_errors import AnswerTooLarge
from novacron.control.store.etcd_layout import Count, Layout
from novacron.control.store.etcd_line import COMPACT, LONG_ATTEMPT_S, RANGE, TXN, Credentials, Line
from novacron.control.store.etcd_origin import Way
from novacron.control.store.etcd_watch import Watcher
from novacron.control.store.etcd_words_pb2 import CompactRequest, RangeRequest, TxnRequest
from novacron.errors import Compacted, InvalidInput, NovaCronError, StoreUnavailable

WRITER_BITS = 64
BEAT_S = 2.0  # so long a watch may hear nothing from a member that has fallen silent
PAGE = 1000


class _Opened(msgspec.Struct, frozen=True):
    """What an open store holds."""

    line: Line
    layout: Layout
    count: Count
    writer: str
    clock: Clock


class EtcdStore:
    """Implements `Store`. `open` makes one; `close` lets go of its connections."""

    def __init__(self, opened: _Opened) -> None:
        self._line = opened.line
        self._layout = opened.layout
        self._count = opened.count
        self._forgotten = 0
        self._closed = False
        self._asking = 0
        self._quiet = asyncio.Event()
        self._committer = Committer(self._line, self._layout, self._count, Slots(self._layout, opened.writer))
        self._watcher = Watcher(self._line, self._layout, self._count, lambda: self._forgotten, lambda: self._closed)
        self._beating = asyncio.create_task(self._beat(opened.clock), name="store-beat")

    @classmethod
    async def open(
        cls, address: EtcdAddress, clock: Clock, rng: random.Random, *, way: Way = "serve", floor: int = 0
    ) -> Self:
        """The store at `address`, for a server; for other ways see etcd_origin. floor: where a copy's revisions begin.

        :raise StoreUnavailable: no member answers, it is another cluster than the one the store was made in, it is an
            unfinished copy, or etcd was not started for it.
        :raise StoreCorrupt: not a store of ours, or of a newer NovaCron. :raise InvalidInput: no such certificate.
        :raise NotFound: to be read, and there is none. :raise Conflict: to be filled, and there is something.
        """
        line = Line(address.endpoints, _credentials(address), clock)
        layout = Layout.under(address.prefix)
        try:
            count = await etcd_origin.enter(line, layout, str(address), way, floor)
            await etcd_origin.prove_limits(line)
            await etcd_origin.clear_slots(line, layout)
        except BaseException:
            await line.close()
            raise
        return cls(_Opened(line, layout, count, f"{rng.getrandbits(WRITER_BITS):016x}", clock))

    async def finish(self) -> None:
        """It was filled, and is whole: servers may use it."""
        with self._busy():
            await etcd_origin.finish(self._line, self._layout)

    async def entries(self, revision: int) -> AsyncIterator[Entry]:
        """All records in key order, as they were at a revision. :raise Compacted: it is no longer kept."""
        low, high = self._layout.reach(bounds.range_of(""))
        more = True
        while more:
            page = await self._page(low, high, PAGE, self._count.theirs(revision))
            for entry in page.entries:
                yield entry
                low = self._layout.record(bounds.bytes_of(entry.key)) + b"\0"
            more = page.more

    async def get(self, key: str) -> Entry | None:
        asked = RangeRequest(key=self._layout.record(bounds.bytes_of(key)))
        with self._busy():
            answer, _ = await self._line.ask(RANGE, asked)
        return self._count.entry(key, answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        low, high = self._layout.reach(bounds.range_of(prefix))
        if after:
            low = max(low, self._layout.record(bounds.bytes_of(after)) + b"\0")  # the first key greater than `after`
        return await self._page(low, high, limit)

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        bounds.check(ops, expect)
        with self._busy():
            return await self._committer.commit(ops, expect)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        async with contextlib.aclosing(self._watcher.follow(prefix, after)) as told:
            async for changes in told:
                yield changes

    async def revision(self) -> int:
        with self._busy():
            answer, _ = await self._line.ask(RANGE, self._layout.newest_slot())
        return self._count.newest(answer)

    async def compact(self, revision: int) -> None:
        """As in the contract. etcd forgets for all that it keeps, whoever it is from."""
        upto = min(revision, await self.revision())
        if upto <= max(self._count.floor, self._forgotten):
            return
        self._forgotten = upto
        with self._busy(), contextlib.suppress(Compacted):  # by another server, and further
            await self._line.ask(COMPACT, CompactRequest(revision=self._count.theirs(upto)))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._beating.cancel()
            self._line.end_streams()
        await asyncio.gather(self._beating, return_exceptions=True)
        while self._asking:
            self._quiet.clear()
            await self._quiet.wait()
        await self._line.close()

    async def _beat(self, clock: Clock) -> None:
        """Ask now and then, so that a silent member is left, and watches with it, though nobody else asks."""
        while True:
            await clock.sleep(BEAT_S)
            with contextlib.suppress(NovaCronError):  # told to whoever asks for something
                await self.revision()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """`close` waits for what is asked inside. :raise StoreUnavailable: the store is closed."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self._quiet.set()

    async def _page(self, low: bytes, high: bytes, limit: int, revision: int = 0) -> Page:
        """At etcd's `revision`, 0: now. May be shorter than asked, and then says that there is more."""
        question = TxnRequest()
        question.success.add(range=RangeRequest(key=low, range_end=high, limit=limit, revision=revision))
        question.success.add(range=self._layout.newest_slot())
        try:
            with self._busy():
                answer, _ = await self._line.ask(TXN, question, LONG_ATTEMPT_S)
        except AnswerTooLarge:
            if limit == 1:
                raise
            return await self._page(low, high, limit // 2, revision)
        found, newest = (done.range for done in answer.responses)
        entries = tuple(self._count.entry(self._layout.text(one.key), one) for one in found.kvs)
        return Page(entries, self._count.newest(newest), found.more)


def _credentials(address: EtcdAddress) -> Credentials | None:
    """:raise InvalidInput: a file cannot be read."""
    if address.ca is None:
        return None
    cert = _read("cert", address.cert) if address.cert else None
    key = _read("key", address.key) if address.key else None
    return Credentials(_read("ca", address.ca), cert, key)


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as wrong:
        raise InvalidInput.field(
            "store", f"cannot read {name} {file}: {wrong.strerror}", f"give {name}=FILE with a PEM file"
        ) from wrong
