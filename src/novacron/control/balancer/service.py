"""The balancer's settings, and what it would do now."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.balancer.decide import decide
from novacron.control.balancer.loads import settings_of
from novacron.control.balancer.plan import Plan
from novacron.control.balancer.survey import Surveyor
from novacron.control.store.kinds import BALANCER
from novacron.control.store.records import WRITE_TRIES, Records, create, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed
from novacron.model import balancer as model
from novacron.model.balancer import Mode, Settings


class BalancerService:
    """Answers from the records; `plan` changes nothing."""

    def __init__(self, records: Records, surveyor: Surveyor, clock: Clock) -> None:
        self._records = records
        self._surveyor = surveyor
        self._clock = clock

    @property
    def settings(self) -> Stored[Settings]:
        """As they are now; revision 0: nobody has set them."""
        return self._records.get(BALANCER, model.BALANCER) or Stored(settings_of(self._records), 0)

    async def set(self, wished: Settings, held: frozenset[str] | None) -> Stored[Settings]:
        """All of them at once. :raise PreconditionFailed: they are not those that the caller holds.

        :raise CompareFailed: others kept changing them.
        """
        for _ in range(WRITE_TRIES):
            seen = self.settings
            check_match(held, seen)
            if seen.modified and msgspec.structs.replace(wished, updated_at=seen.record.updated_at) == seen.record:
                return seen
            new = msgspec.structs.replace(wished, updated_at=self._clock.wall())
            write = update(BALANCER, seen, new) if seen.modified else create(BALANCER, new)
            try:
                return Stored(new, await self._records.commit(write))
            except CompareFailed:
                await self._records.refresh()
        raise CompareFailed("the balancer's settings are being changed by others: try again")

    async def plan(self) -> Plan | None:
        """What may begin now, and why no more does; None: it is off."""
        if self.settings.record.mode is Mode.OFF:
            return None
        return decide(await self._surveyor.scene(), self._surveyor.prices())
