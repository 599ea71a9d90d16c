"""Writes that must see every other: a network or group is made, changed and deleted in its turn (see control.room).

VMs are born in the same queue, so none is put on a network, or into a group, that is going away meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from novacron.control.answers import check_match
from novacron.control.once import Change, Once, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import Kind, R
from novacron.control.store.records import WRITE_TRIES, Records, create, remove
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed


class Turns(Generic[R]):
    """Create, change and delete records of one kind, each in its turn."""

    def __init__(self, records: Records, room: Room, kind: Kind[R]) -> None:
        self._records = records
        self._room = room
        self._kind = kind

    async def create(self, make: Callable[[], R], once: Once) -> Outcome:
        """Record what `make` returns; it looks at the records in its turn and may refuse. :raise NameTaken"""
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                record = make()
                try:
                    revision = await self._records.commit(create(self._kind, record), ticket, *once.note(record, 201))
                except CompareFailed as lost:
                    if await once.is_used():
                        raise
                    await self._records.refuse_taken_name(self._kind, None, record, lost)
                    await self._records.refresh()
                    continue
                return Outcome(Stored(record, revision), 201)
        raise CompareFailed("others kept writing: try again")

    async def change(self, ref: str, held: frozenset[str] | None, change: Callable[[R], R]) -> Outcome:
        """As Change.write, in its turn. :raise NotFound, NameTaken, PreconditionFailed"""
        async with self._room.turn():
            return await Change(self._records, self._kind, ref, held, beside=self._room.ticket).write(change)

    async def delete(self, ref: str, held: frozenset[str] | None, check: Callable[[R], None]) -> None:
        """Delete it unless `check` refuses. :raise NotFound, PreconditionFailed"""
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = self._records.find(self._kind, ref)
                check_match(held, stored)
                check(stored.record)
                try:
                    await self._records.commit(remove(self._kind, stored), ticket)
                except CompareFailed:
                    await self._records.refresh()
                    continue
                return
        raise CompareFailed(f"{self._kind.object_type.value} {ref!r} is being changed by others: try again")
