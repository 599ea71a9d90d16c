"""Leader election over the store contract alone: at most one server at a time acts as the one that runs the workers.

`Leader.run` waits until this server may lead, runs the work for as long as its time lasts, and begins again. What the
work writes goes through `GuardedStore`, so that not even a server that stood still in the midst of a write does harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.store.base import Change, Delete, Entry, Expect, Page, Put, Store
from novacron.errors import CompareFailed, NotLeading, NovaCronError, StoreCorrupt
from novacron.model import leadership
from novacron.model.leadership import Candidate, Lead, Sighting, Stand, Timing

PREFIX = "leader/"
TERM_KEY = PREFIX + "term"
BEAT_KEY = PREFIX + "beat"
RESIGN_WITHIN_S = 2.0

_encode = msgspec.json.Encoder().encode
_lead: msgspec.json.Decoder[Lead] = msgspec.json.Decoder(Lead)


class Term:
    """One time of leading. It ends when its deadline passes without having been moved on, or by `end`, and for good."""

    def __init__(self, lead: Lead, revision: int, deadline_s: float, clock: Clock) -> None:
        """revision: of the term's record, which nobody changes while the term lasts."""
        self.lead = lead
        self.revision = revision
        self._deadline_s = deadline_s
        self._clock = clock
        self._ended = asyncio.Event()

    @property
    def number(self) -> int:
        return self.lead.term

    def holds(self) -> bool:
        """Whether this server may still act on it; asked directly before every act."""
        return not self._ended.is_set() and self._clock.monotonic_s() < self._deadline_s

    def check(self) -> None:
        """:raise NotLeading: its time is over."""
        if not self.holds():
            raise NotLeading(f"this server's term {self.number} as leader is over; another goes on with it")

    def end(self) -> None:
        """Nothing is done in its name from here on."""
        self._ended.set()

    def prolong(self, deadline_s: float) -> None:
        """A beat was written. A term that has ended stays so."""
        if self.holds():
            self._deadline_s = max(self._deadline_s, deadline_s)

    async def over(self) -> None:
        """Wait for its end."""
        while self.holds():
            lapsing = asyncio.ensure_future(self._clock.sleep(self._deadline_s - self._clock.monotonic_s()))
            ending = asyncio.ensure_future(self._ended.wait())
            try:
                await asyncio.wait({lapsing, ending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                lapsing.cancel()
                ending.cancel()


class GuardedStore:
    """The store as a leader's workers write to it: each transaction expects that the term still stands.

    Implements Store. A write that reaches the store after another server began its term changes nothing.
    """

    def __init__(self, store: Store, term: Term) -> None:
        self._store = store
        self._term = term

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        """See Store.commit. :raise NotLeading: the term is over; nothing was written."""
        self._term.check()
        try:
            return await self._store.commit(ops, (*expect, Expect(TERM_KEY, self._term.revision)))
        except CompareFailed:
            entry = await self._store.get(TERM_KEY)
            if entry is None or entry.modified != self._term.revision:
                self._term.end()
                self._term.check()
            raise

    async def compact(self, revision: int) -> None:
        self._term.check()
        await self._store.compact(revision)

    async def get(self, key: str) -> Entry | None:
        return await self._store.get(key)

    async def list(self, prefix: str, *, after: str = "", limit: int = 1000) -> Page:
        return await self._store.list(prefix, after=after, limit=limit)

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[tuple[Change, ...]]:
        return self._store.watch(prefix, after=after)

    async def revision(self) -> int:
        return await self._store.revision()

    async def close(self) -> None:
        """The store is not this one's to close."""


class Work(Protocol):
    def __call__(self, term: Term) -> Awaitable[None]:
        """What a leader does; cancelled when the term is over."""
        ...


async def read_stand(store: Store) -> Stand:
    """Who leads, by the records. :raise StoreCorrupt: they cannot be read."""
    entries = {entry.key: entry for entry in (await store.list(PREFIX, limit=2)).entries}
    term, beat = entries.get(TERM_KEY), entries.get(BEAT_KEY)
    try:
        lead = _lead.decode(term.value) if term else None
    except msgspec.DecodeError as wrong:
        raise StoreCorrupt(f"the record {TERM_KEY} cannot be read: {wrong}") from wrong
    return Stand(lead, term.modified if term else 0, beat.modified if beat else 0)


class Leader:
    """One server's part in the election. `term` is the one it holds, or None."""

    def __init__(self, store: Store, clock: Clock, candidate: Candidate, timing: Timing) -> None:
        self._store = store
        self._clock = clock
        self._candidate = candidate
        self._timing = timing
        self.term: Term | None = None
        self._log = structlog.get_logger("leader")

    async def run(self, work: Work) -> None:
        """Lead whenever it may, for ever. When this is cancelled the work ends, and the lead is handed over at once."""
        while True:
            term = await self._won()
            self._log.info("this server leads", term=term.number)
            try:
                await self._lead(term, work)
            except asyncio.CancelledError:
                await self._resign(term)
                raise
            self._log.warning("this server leads no more", term=term.number)
            await self._clock.sleep(self._timing.look_s)

    async def _lead(self, term: Term, work: Work) -> None:
        """Until the term is over; what the work still does after that is refused, then it is gone."""
        self.term = term
        tasks = {asyncio.ensure_future(work(term)), asyncio.ensure_future(term.over())}
        if not self._timing.is_alone:
            tasks.add(asyncio.ensure_future(self._beat(term)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            term.end()  # first: who is cancelled must not take it for a wish to undo what goes on
            self.term = None
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    self._log.error("the leader's work broke", exc_info=ended)

    async def _won(self) -> Term:
        """Look at the records until a term of our own is written."""
        sighting: Sighting | None = None
        while True:
            try:
                stand = await read_stand(self._store)
                now_s = self._clock.monotonic_s()
                sighting = leadership.sighted(sighting, stand, now_s)
                if leadership.may_lead(sighting, self._candidate, now_s, self._timing):
                    return await self._begin(stand)
            except CompareFailed:
                self._log.info("another server was first")
            except NovaCronError as error:
                self._log.warning("no election without the store", why=error.message)
            await self._clock.sleep(self._timing.look_s)

    async def _begin(self, stand: Stand) -> Term:
        lead = leadership.begun(stand, self._candidate, self._clock.wall())
        asked_s = self._clock.monotonic_s()
        expect = (Expect(TERM_KEY, stand.term_revision), Expect(BEAT_KEY, stand.beat_revision))
        revision = await self._store.commit([Put(TERM_KEY, _encode(lead)), Put(BEAT_KEY, b"0")], expect)
        return Term(lead, revision, asked_s + self._timing.lease_s, self._clock)

    async def _beat(self, term: Term) -> None:
        """Returns when another has begun a term. A beat of unknown outcome moves nothing on."""
        beats = 0
        while True:
            await self._clock.sleep(self._timing.beat_s)
            beats += 1
            asked_s = self._clock.monotonic_s()
            try:
                await self._store.commit([Put(BEAT_KEY, b"%d" % beats)], [Expect(TERM_KEY, term.revision)])
            except CompareFailed:
                return
            except NovaCronError as error:
                self._log.warning("a beat of the leader may not be written", why=error.message)
            else:
                term.prolong(asked_s + self._timing.lease_s)

    async def _resign(self, term: Term) -> None:
        """So that nobody waits for us. What cannot be written now is seen by our silence."""
        given = Put(TERM_KEY, _encode(leadership.resigned(term.lead)))
        writing = asyncio.ensure_future(self._store.commit([given], [Expect(TERM_KEY, term.revision)]))
        late = asyncio.ensure_future(self._clock.sleep(RESIGN_WITHIN_S))
        try:
            await asyncio.wait({writing, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            late.cancel()
            writing.cancel()
            (outcome,) = await asyncio.gather(writing, return_exceptions=True)
        if isinstance(outcome, BaseException):
            self._log.warning("the lead was not handed over", why=str(outcome) or type(outcome).__name__)
