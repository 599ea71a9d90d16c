"""Decides what requests about schedules mean and records it; the keeper then works them off."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Change, Once, Outcome
from novacron.control.store.kinds import SCHEDULES
from novacron.control.store.records import Records, create, remove
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed
from novacron.model.snapshot import Schedule
from novacron.wire.rest.snapshots import ScheduleCreate, ScheduleUpdate


class ScheduleService:
    """Requests about schedules, answered from the records alone."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def create(self, asked: ScheduleCreate, once: Once) -> Outcome:
        """:raise NameTaken"""
        now = self._clock.wall()
        schedule = Schedule(id=self._records.new_id(), created_at=now, updated_at=now, **asked.model_dump())
        try:
            revision = await self._records.commit(create(SCHEDULES, schedule), *once.note(schedule, 201))
        except CompareFailed as lost:
            await self._records.refuse_taken_name(SCHEDULES, None, schedule, lost)
            raise
        return Outcome(Stored(schedule, revision), 201)

    async def update(self, ref: str, asked: ScheduleUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what was named. :raise NotFound, NameTaken, PreconditionFailed"""
        named = asked.model_dump(exclude_none=True)

        def change(schedule: Schedule) -> Schedule:
            new = msgspec.structs.replace(schedule, **named)
            return schedule if new == schedule else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await Change(self._records, SCHEDULES, ref, held).write(change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget it; the snapshots it took stay. :raise NotFound, PreconditionFailed"""
        stored = self._records.find(SCHEDULES, ref)
        check_match(held, stored)
        await self._records.commit(remove(SCHEDULES, stored))
