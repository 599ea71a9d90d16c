"""Decides what requests about migration policies mean and records it. A migration that has begun keeps its goals."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.migrations.windows import zone
from novacron.control.networks.turns import Turns
from novacron.control.once import Once, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import POLICIES
from novacron.control.store.records import Records
from novacron.errors import Conflict, Reason
from novacron.model.migration import Wishes
from novacron.model.policy import Policy, Window
from novacron.wire.rest import policies as wire


class PolicyService:
    """Requests about policies, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._turns: Turns[Policy] = Turns(records, room, POLICIES)

    async def create(self, asked: wire.PolicyCreate, once: Once) -> Outcome:
        """Record a policy. :raise NameTaken :raise Conflict: another is the default. :raise InvalidInput: no such
        time zone.
        """

        def make() -> Policy:
            now = self._clock.wall()
            made = Policy(
                id=self._records.new_id(),
                name=asked.name,
                goals=Wishes(**asked.goals.model_dump()),
                selector=asked.selector,
                is_default=asked.is_default,
                windows=_windows(asked.windows),
                labels=asked.labels,
                description=asked.description,
                created_at=now,
                updated_at=now,
            )
            self._check_default(made)
            return made

        return await self._turns.create(make, once)

    async def update(self, ref: str, asked: wire.PolicyUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what was named; goals as a whole. :raise NotFound, NameTaken, PreconditionFailed :raise Conflict"""
        said = asked.model_dump(exclude_none=True, exclude={"goals", "windows"})
        if asked.goals is not None:
            said["goals"] = Wishes(**asked.goals.model_dump())
        if asked.windows is not None:
            said["windows"] = _windows(asked.windows)

        def change(policy: Policy) -> Policy:
            new = msgspec.structs.replace(policy, **said)
            self._check_default(new)
            return policy if new == policy else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await self._turns.change(ref, held, change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget it. :raise NotFound, PreconditionFailed"""
        await self._turns.delete(ref, held, lambda _: None)

    def _check_default(self, policy: Policy) -> None:
        """:raise Conflict: there would be two defaults."""
        others = (stored.record for stored in self._records.all(POLICIES) if stored.record.id != policy.id)
        other = next((one for one in others if one.is_default), None)
        if policy.is_default and other is not None:
            remedy = f"novacron migration-policy update {other.name} --no-default"
            raise Conflict(
                f"policy {other.name} is the default already",
                [Reason("policy.default_taken", "at most one is the default", other.name, remedy)],
            )


def _windows(asked: Sequence[wire.Window]) -> tuple[Window, ...]:
    """:raise InvalidInput: a time zone is not known here."""
    for one in asked:
        zone(one.timezone)
    return tuple(Window(**one.model_dump() | {"days": tuple(dict.fromkeys(one.days))}) for one in asked)
