"""Writes nodes' heartbeats, joins and leaving into their membership records; promises time when the store is away."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from novacron.control.ha.sights import Sights
from novacron.control.nodes.beats import Beats
from novacron.control.store.kinds import MEMBERS
from novacron.control.store.records import Records
from novacron.errors import CompareFailed, NotFound
from novacron.model import membership
from novacron.model.membership import Membership, Pledge
from novacron.wire.membership import Beat, Join, Leave, Plea, Question, ServerAt, Standing


class Registrar:
    """`answer` is what a link calls for each question of a node (see LineListeners.on_question)."""

    def __init__(
        self,
        records: Records,
        sights: Sights,
        servers: Callable[[], tuple[str, ...]],
        places: Callable[[], tuple[ServerAt, ...]] = tuple,
    ) -> None:
        """servers: ids of those that nodes are to ask for time when the store is away, this moment; places: where."""
        self._records = records
        self._sights = sights
        self._servers = servers
        self._places = places
        self._beats = Beats(records)
        self._log = structlog.get_logger("registrar")

    async def answer(self, node_id: str, question: Question) -> Standing:
        """What the node is told.

        :raise StoreUnavailable: it is not known whether it was written; the node must hear nothing.
        """
        match question:
            case Beat():
                return await self._beat(node_id, question)
            case Join():
                return await self._join(node_id, question)
            case Plea():
                self._sights.promise(node_id)
                return Standing(id=question.id, counted=True)
            case Leave():
                return await self._leave(node_id, question)

    async def _beat(self, node_id: str, asked: Beat) -> Standing:
        try:
            stored = await self._beats.count(node_id, asked)
        except NotFound:
            return self._standing(node_id, asked, None)
        return self._standing(node_id, asked, stored.record if stored else None)

    async def _join(self, node_id: str, asked: Join) -> Standing:
        pledge = Pledge(boot_id=asked.boot_id, fence_class=asked.fence_class, ttl_s=asked.ttl_s, servers=asked.servers)

        def write(member: Membership | None) -> Membership | None:
            return membership.joined(member, node_id, asked.state, asked.epoch, pledge)

        written: Membership | None = None
        try:
            if self._records.get(MEMBERS, node_id) is None:
                new = write(None)
                written = (await self._records.create(MEMBERS, new)).record if new else None
            else:
                stored = await self._records.change(MEMBERS, node_id, write)
                written = stored.record if stored else None
        except (CompareFailed, NotFound):
            self._log.info("a join was overtaken", node_id=node_id)
        return self._standing(node_id, asked, written)

    async def _leave(self, node_id: str, asked: Leave) -> Standing:
        def write(member: Membership) -> Membership | None:
            return membership.left(member, asked.state, asked.epoch)

        try:
            stored = await self._records.change(MEMBERS, node_id, write)
        except NotFound:
            return self._standing(node_id, asked, None)
        if stored is not None:
            self._log.warning("a node has left", node_id=node_id, why=stored.record.reason)
        return self._standing(node_id, asked, stored.record if stored else None)

    def _standing(self, node_id: str, asked: Beat | Join | Leave, written: Membership | None) -> Standing:
        stored = self._records.get(MEMBERS, node_id)
        now = written or (stored.record if stored else None)
        servers, places = self._servers(), self._places()
        return Standing(id=asked.id, counted=written is not None, member=now, servers=servers, places=places)
