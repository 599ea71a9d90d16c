"""Decides what requests about security groups mean and records it; the weaver then tells the nodes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.networks.check import in_use
from novacron.control.networks.turns import Turns
from novacron.control.once import Once, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import SECURITY_GROUPS, VMS
from novacron.control.store.records import Records
from novacron.errors import InvalidInput, NotFound
from novacron.model.network import Rule, SecurityGroup
from novacron.wire.rest import security_groups as wire


class GroupService:
    """Requests about security groups, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._turns: Turns[SecurityGroup] = Turns(records, room, SECURITY_GROUPS)

    async def create(self, asked: wire.SecurityGroupCreate, once: Once) -> Outcome:
        """Record a group. :raise InvalidInput: a rule names no group there is. :raise NameTaken"""

        def make() -> SecurityGroup:
            now, group_id = self._clock.wall(), self._records.new_id()
            return SecurityGroup(
                id=group_id,
                name=asked.name,
                description=asked.description,
                labels=asked.labels,
                rules=self._rules(asked.rules, {asked.name: group_id}),
                created_at=now,
                updated_at=now,
            )

        return await self._turns.create(make, once)

    async def update(self, ref: str, asked: wire.SecurityGroupUpdate, held: frozenset[str] | None) -> Outcome:
        """Change what was named; rules count at once for every card in it.

        :raise InvalidInput: a rule names no group there is. :raise NotFound, NameTaken, PreconditionFailed
        """
        named = asked.model_dump(exclude_none=True, exclude={"rules"})

        def change(group: SecurityGroup) -> SecurityGroup:
            new = msgspec.structs.replace(group, **named)
            if asked.rules is not None:
                new = msgspec.structs.replace(new, rules=self._rules(asked.rules, {new.name: group.id}))
            return group if new == group else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await self._turns.change(ref, held, change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget a group that no card is in and no rule names.

        :raise Conflict: it is in use; names who. :raise NotFound, PreconditionFailed
        """

        def refuse(group: SecurityGroup) -> None:
            users = {stored.record.name for stored in self._records.marked(VMS, group.id)}
            users |= {
                stored.record.name
                for stored in self._records.all(SECURITY_GROUPS)
                if stored.record.id != group.id and any(rule.group_id == group.id for rule in stored.record.rules)
            }
            if users:
                raise in_use(f"cannot delete security group {group.name}", users, "security_group.in_use")

        await self._turns.delete(ref, held, refuse)

    def _rules(self, asked: Sequence[wire.Rule], own: dict[str, str]) -> tuple[Rule, ...]:
        """As recorded: groups by id. own: the group's own name and id, which it may name before it is recorded."""
        return tuple(dict.fromkeys(self._rule(rule, number, own) for number, rule in enumerate(asked)))

    def _rule(self, asked: wire.Rule, number: int, own: dict[str, str]) -> Rule:
        return Rule(
            direction=asked.direction,
            protocol=asked.protocol,
            port_first=asked.port_first,
            port_last=asked.port_last or asked.port_first,
            cidr=asked.cidr,
            group_id=self._group_id(asked.group, f"rules.{number}.group", own) if asked.group else "",
        )

    def _group_id(self, ref: str, field: str, own: dict[str, str]) -> str:
        if ref in own:
            return own[ref]
        try:
            return self._records.find(SECURITY_GROUPS, ref).record.id
        except NotFound as missing:
            raise InvalidInput.field(field, missing.message, "novacron security-group list shows them") from missing
