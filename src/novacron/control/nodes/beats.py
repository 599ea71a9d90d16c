"""Heartbeats of many nodes in one transaction: what comes while one is being written goes together into the next.

Each beat stays a compare-and-swap of its own record (rule R1, docs/decisions): a transaction expects each record as it
was read, and when it loses, each of its beats is tried alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from novacron.control.store.kinds import MEMBERS
from novacron.control.store.records import Records, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, NovaCronError
from novacron.model import membership
from novacron.model.membership import Membership
from novacron.wire.membership import Beat

MAX_TOGETHER = 128
"""As many as a transaction of etcd holds without flags; a thousand nodes fill eight a heartbeat."""

Counted = Stored[Membership] | None
"""The record with the beat in it; None: the beat does not count."""


class _Waiting(msgspec.Struct):
    """A beat of a node, and where who brought it waits."""

    node_id: str
    beat: Beat
    answer: asyncio.Future[Counted]


class Beats:
    """`count` writes a beat, together with those of other nodes that wait."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def count(self, node_id: str, beat: Beat) -> Counted:
        """:raise NotFound: the node has no record. :raise NovaCronError: it is not known whether it was written."""
        answer: asyncio.Future[Counted] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(node_id, beat, answer))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="beats")
        return await answer

    async def _write_all(self) -> None:
        """Until none waits. Who no longer waits for an answer has its beat written as well: it was sent."""
        try:
            while self._waiting:
                turn, self._waiting = self._waiting[:MAX_TOGETHER], self._waiting[MAX_TOGETHER:]
                await self._write(turn)
        finally:
            self._writing = None
            for left in self._waiting:
                left.answer.cancel()

    async def _write(self, turn: Sequence[_Waiting]) -> None:
        """Settle every beat of the turn, whatever happens."""
        try:
            done = await self._together(turn)
        except CompareFailed:
            await asyncio.gather(*(self._alone(one) for one in turn))
        except NovaCronError as error:
            for one in turn:
                _settle(one, error)
        except BaseException:
            for one in turn:
                one.answer.cancel()
            raise
        else:
            alone = [one for one in turn if one.node_id not in done or done[one.node_id][0] is not one]
            for one, counted in done.values():
                _settle(one, counted)
            await asyncio.gather(*(self._alone(one) for one in alone))

    async def _together(self, turn: Sequence[_Waiting]) -> Mapping[str, tuple[_Waiting, Counted]]:
        """By node id, whose beat was written, or was found not to count. Of two of one node: of the first.

        :raise CompareFailed: none was written.
        """
        done: dict[str, tuple[_Waiting, Counted]] = {}
        writes, new = [], {}
        for one in turn:
            stored = self._records.get(MEMBERS, one.node_id)
            if stored is None or one.node_id in done:
                continue
            done[one.node_id] = (one, None)
            written = _beaten(stored.record, one.beat)
            if written is not None:
                new[one.node_id] = written
                writes.append(update(MEMBERS, stored, written))
        if not writes:
            return done
        revision = await self._records.commit(*writes)
        return done | {node_id: (done[node_id][0], Stored(record, revision)) for node_id, record in new.items()}

    async def _alone(self, one: _Waiting) -> None:
        try:
            counted = await self._records.change(MEMBERS, one.node_id, lambda now: _beaten(now, one.beat))
        except NovaCronError as error:
            _settle(one, error)
        else:
            _settle(one, counted)


def _beaten(member: Membership, beat: Beat) -> Membership | None:
    return membership.beaten(member, beat.epoch, beat.beats, beat.ttl_s)


def _settle(one: _Waiting, outcome: Counted | NovaCronError) -> None:
    if one.answer.done():  # who brought it has gone
        return
    if isinstance(outcome, NovaCronError):
        one.answer.set_exception(outcome)
    else:
        one.answer.set_result(outcome)
