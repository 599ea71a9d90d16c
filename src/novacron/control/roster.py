"""Which servers there are, which of them live, which leads: each keeps a small record of itself moving.

    servers/<id>    written by that server alone, every BEAT_S

Whether another lives is judged by this server's own clock: its record has moved within SILENT_AFTER_S. It is shown to
people, and told to nodes: whom they name as their servers when they join (see wire.membership.Terms), which is safe
whatever they name, for a server that a node does not name leaves it alone; and where those are, to be dialled.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime

import msgspec
import structlog

import novacron
from novacron.clock import Clock
from novacron.control.leader import read_stand
from novacron.control.store.base import Delete, Entry, Expect, Put, Store
from novacron.errors import CompareFailed, NovaCronError
from novacron.model.leadership import Candidate, Lead, Timing
from novacron.wire.membership import ServerAt

PREFIX = "servers/"
MAX_SERVERS = 100
BEAT_S = 5.0
SILENT_AFTER_S = 12.0
FORGOTTEN_AFTER_S = 86400.0

_encode = msgspec.json.Encoder().encode


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """What a server says of itself. process_id: another with each start. place: where nodes reach it, if told."""

    id: str
    name: str
    address: str
    version: str
    process_id: str
    started_at: datetime.datetime
    place: str = ""


class Seen(msgspec.Struct, frozen=True):
    """A server as this one sees it. seen_ago_s: since its record moved; lead: of the term it holds, if it leads."""

    presence: Presence
    seen_ago_s: float
    lead: Lead | None

    @property
    def is_up(self) -> bool:
        return self.seen_ago_s < SILENT_AFTER_S


class Roster:
    """`run` until cancelled, then `leave`. `servers` can be asked at any time."""

    def __init__(
        self, store: Store, clock: Clock, me: Candidate, address: str, timing: Timing, place: str = ""
    ) -> None:
        self._store = store
        self._clock = clock
        self._is_alone = timing.is_alone
        self._mine = Presence(
            id=me.server_id,
            name=me.name,
            address=address,
            version=novacron.__version__,
            process_id=me.process_id,
            started_at=clock.wall(),
            place=place,
        )
        self._moved: dict[str, tuple[int, float]] = {}  # by key: the revision last seen, and when it was new to us
        self._places: dict[str, str] = {}  # by id, as last read
        self._log = structlog.get_logger("roster")

    @property
    def server_id(self) -> str:
        return self._mine.id

    def living(self) -> tuple[str, ...]:
        """Ids of this server and of those it has seen move lately, in order."""
        others = {key.removeprefix(PREFIX) for key, (_, moved_s) in self._moved.items() if self._is_near(moved_s)}
        return tuple(sorted(others | {self._mine.id}))

    def places(self) -> tuple[ServerAt, ...]:
        """Of those that live, where nodes reach them, as far as they say so."""
        known = {**self._places, self._mine.id: self._mine.place}
        living = [(server_id, known.get(server_id)) for server_id in self.living()]
        return tuple(ServerAt(id=server_id, address=place) for server_id, place in living if place)

    def _is_near(self, moved_s: float) -> bool:
        return not self._is_alone and self._clock.monotonic_s() - moved_s < SILENT_AFTER_S

    async def run(self) -> None:
        """Say that this server lives; who has the store alone says it once."""
        await self._beat()
        await self._look()
        while True:
            if self._is_alone:
                await asyncio.Event().wait()
            await self._clock.sleep(BEAT_S)
            try:
                await self._beat()
                await self._look()
            except NovaCronError as error:
                self._log.warning("this server could not say that it lives", why=error.message)

    async def leave(self) -> None:
        """This server ends: it is no longer in the list. What cannot be written is seen by its silence."""
        try:
            async with asyncio.timeout(1.0):
                await self._store.commit([Delete(PREFIX + self._mine.id)])
        except (NovaCronError, TimeoutError) as error:
            self._log.info("this server stays in the list", why=str(error))

    async def servers(self) -> list[Seen]:
        """All of them, by name. :raise StoreUnavailable"""
        entries = await self._look()
        lead = (await read_stand(self._store)).lead
        leading = lead if lead is not None and not lead.resigned else None
        found = [self._seen(entry, leading) for entry in entries]
        return sorted((one for one in found if one is not None), key=lambda one: (one.presence.name, one.presence.id))

    def _seen(self, entry: Entry, leading: Lead | None) -> Seen | None:
        presence = _decoded(entry)
        if presence is None:
            return None
        mine = presence.id == self._mine.id
        ago_s = 0.0 if mine else self._clock.monotonic_s() - self._moved[entry.key][1]
        leads = leading is not None and leading.process_id == presence.process_id
        return Seen(presence, ago_s, leading if leads else None)

    async def _beat(self) -> None:
        await self._store.commit([Put(PREFIX + self._mine.id, _encode(self._mine))])

    async def _look(self) -> tuple[Entry, ...]:
        """The records; when each was seen to move is kept, and one that has not for a day is taken away."""
        entries = (await self._store.list(PREFIX, limit=MAX_SERVERS)).entries
        now_s = self._clock.monotonic_s()
        self._moved = {entry.key: self._when(entry, now_s) for entry in entries}
        presences = [_decoded(entry) for entry in entries]
        self._places = {presence.id: presence.place for presence in presences if presence is not None}
        for entry in entries:
            if now_s - self._moved[entry.key][1] > FORGOTTEN_AFTER_S and not self._is_alone:
                try:
                    await self._store.commit([Delete(entry.key)], [Expect(entry.key, entry.modified)])
                except CompareFailed:
                    self._log.info("a server is back after a day", key=entry.key)
        return entries

    def _when(self, entry: Entry, now_s: float) -> tuple[int, float]:
        before = self._moved.get(entry.key)
        return before if before is not None and before[0] == entry.modified else (entry.modified, now_s)


def _decoded(entry: Entry) -> Presence | None:
    """None: of another version."""
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(entry.value, type=Presence)
    return None
