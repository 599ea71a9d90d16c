"""Decides whether a VM may be moved and records the migration; the conductor then performs it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from novacron.clock import Clock
from novacron.control.migrations.choice import Choice
from novacron.control.migrations.links import Links
from novacron.control.migrations.plan import NodePlan, Plan, begun, check_room
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.waiting import body_of, check_alone, decided_anew, first_of, request_of, waiting
from novacron.control.migrations.windows import opens_at, words
from novacron.control.named import named
from novacron.control.once import Beside, Change, Once, Outcome
from novacron.control.pools.quota import check
from novacron.control.pools.reach import free_unit
from novacron.control.room import Room
from novacron.control.store.kinds import MIGRATIONS, NODES, POLICIES, POOLS, VMS, VOLUMES, Kind
from novacron.control.store.records import WRITE_TRIES, Records, Write, create, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed, StateConflict
from novacron.model.bulk_migration import priority_of
from novacron.model.migration import UNDOING, DiskMove, Migration, MigrationState, is_final, paced, waits
from novacron.model.migration_steps import cancelled, may_stream
from novacron.model.vm import Vm
from novacron.model.volume import Place, Volume
from novacron.wire.rest.migrations import MigrationCreate

_NAMED: Mapping[str, Kind[Any]] = {"target_node": NODES, "policy": POLICIES, "pool": POOLS, "volume": VOLUMES}
"""What the fields of a request name."""


class MigrationService:
    """Requests about migrations, answered from the records, and from what the machine's node measures."""

    def __init__(self, records: Records, room: Room, clock: Clock, planner: Planner, links: Links) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._planner = planner
        self._links = links

    async def plan(self, ref: str, asked: MigrationCreate) -> Plan:
        """What `create` would decide, for every node. Changes nothing.

        :raise NotFound: no such VM. Else raises as `create`, but for nodes that cannot take it: the plan says those.
        """
        vm = self._records.find(VMS, ref).record
        wish = self._planner.asked(asked, vm)
        self._planner.plan(vm, wish, "")  # refused before anything is measured
        note = await self._planner.measure(vm, wish, wanted=asked.measure)
        return self._planner.plan(self._records.find(VMS, vm.id).record, wish, note)

    async def create(self, asked: MigrationCreate, by: str, once: Beside) -> Outcome:
        """Check everything, change nothing; then write the migration and the VM it holds in one transaction. One that
        is to begin later is written alone: it waits, and its VM is free (see `take_hold`).

        :raise InvalidInput: no such VM, node or policy, or the VM is there already.
        :raise Unsupported: its node cannot send it.
        :raise StateConflict, Busy: the VM cannot be moved now, or this is to wait as another move of it does already.
        :raise GoalsUnmet: no way that the goals allow reaches them.
        :raise NoRoom: no node can take it, with the reasons of each, or a pool's quota does not allow its disks.
        """
        note = await self._weighed(asked)
        migration_id = self._records.new_id()
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                migration, beside = self._decided(asked, note, by, migration_id)
                writes = (create(MIGRATIONS, migration), *beside, ticket, *once.note(migration, 202))
                try:
                    revision = await self._records.commit(*writes)
                except CompareFailed:
                    if await once.is_used():
                        raise
                    await self._records.refresh()
                    continue
                return Outcome(Stored(migration, revision), 202)
        raise CompareFailed(f"VM {asked.vm!r} is being changed by others: try again")

    async def take_hold(self, migration_id: str) -> None:
        """Have one whose time has come hold its VM: decided anew as if it were asked for now, and written with what it
        holds in one transaction. One that does not wait any more is left as it is; one whose windows have closed
        meanwhile waits for the next to open.

        Raises as `create`; then nothing has changed.
        """
        found = self._records.find(MIGRATIONS, migration_id).record
        if not waits(found):
            return
        note = await self._weighed(body_of(found))
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = self._records.find(MIGRATIONS, migration_id)
                old = stored.record
                if not waits(old):
                    return
                fresh, beside = self._decided(body_of(old), note, old.requested_by, old.id)
                new = decided_anew(old, fresh, partial(self._records.name, NODES))
                try:
                    await self._records.commit(update(MIGRATIONS, stored, new), *beside, ticket)
                except CompareFailed:
                    await self._records.refresh()
                    continue
                return
        raise CompareFailed(f"migration {migration_id} or its VM is being changed by others: try again")

    async def _weighed(self, asked: MigrationCreate) -> str:
        """Measure what is to be known before it is decided; why something was not, in words. Raises as `create`."""
        before: Vm = named(self._records, VMS, asked.vm, "vm").record
        wish = self._planner.asked(asked, before)
        check_room(self._planner.plan(before, wish, ""))  # refused before anything is measured
        note = await self._planner.measure(before, wish, wanted=asked.measure)
        unmeasured = await self._links.freshen(self._planner.plan(before, wish, note))
        return "; ".join(one for one in (note, unmeasured) if one)

    def _decided(
        self, asked: MigrationCreate, note: str, by: str, migration_id: str
    ) -> tuple[Migration, tuple[Write, ...]]:
        """The record as it is to be, under that id, and what is to be written with it: its VM and volumes, held by it.

        One that is to wait for its time holds nothing: then only its VM is expected to be as it is. Raises as `create`.
        """
        vm = named(self._records, VMS, asked.vm, "vm")
        made = self._planner.plan(vm.record, self._planner.asked(asked, vm.record), note)
        migration = self._record(asked, vm.record, made, *begun(made), by, migration_id)
        moved = self._places(migration)
        check(self._records, [new for _, new in moved])
        if migration.not_before is not None:
            mine = (stored.record for stored in self._records.of_vm(MIGRATIONS, vm.record.id))
            check_alone(first_of(mine, but=migration_id))
            return waiting(migration, request_of(asked, self._id_of)), (unchanged(VMS, vm),)
        held = msgspec.structs.replace(vm.record, migration_id=migration.id, updated_at=migration.created_at)
        return migration, (update(VMS, vm, held), *(update(VOLUMES, old, new) for old, new in moved))

    def _id_of(self, field: str, ref: str) -> str:
        kind: Kind[Any] = _NAMED[field]
        found: str = named(self._records, kind, ref, field).record.id
        return found

    def _places(self, migration: Migration) -> list[tuple[Stored[Volume], Volume]]:
        """The volumes that are copied, as they are and as they are to be recorded: with the place of the copy."""
        found = []
        for move in migration.disks:
            stored, pool = self._records.find(VOLUMES, move.volume_id), self._records.find(POOLS, move.to_pool_id)
            node_id = "" if pool.record.shared else migration.target_node
            place = Place(pool_id=move.to_pool_id, node_id=node_id, unit=move.to_unit)
            found.append((stored, msgspec.structs.replace(stored.record, other=place)))
        return found

    def _with_units(self, moves: Sequence[DiskMove]) -> tuple[DiskMove, ...]:
        """Each with a unit of its own where its next pool is made of units. :raise NoRoom: there are not enough."""
        told: list[DiskMove] = []
        for move in moves:
            pool = self._records.find(POOLS, move.to_pool_id).record
            given = [one.to_unit for one in told if one.to_pool_id == pool.id]
            unit = free_unit(self._records, pool, move.volume_id, given)
            told.append(msgspec.structs.replace(move, to_unit=unit))
        return tuple(told)

    async def cancel(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Have it taken back; the VM then runs where it did. One that waits for its time has ended when this returns.

        :raise StateConflict: it has ended, or the VM already belongs to its target. :raise NotFound
        """

        def change(migration: Migration) -> Migration | None:
            if migration.state in UNDOING or migration.state is MigrationState.CANCELLED:
                return None
            return cancelled(migration, self._clock.wall())

        change_of = Change(self._records, MIGRATIONS, ref, held, once)
        return await change_of.write(change, under_way=lambda migration: not is_final(migration))

    async def set_bandwidth(
        self, ref: str, bytes_per_s: int, by: str, held: frozenset[str] | None, once: Once
    ) -> Outcome:
        """Have it go no faster from now on, also while it streams; 0: as the link.

        :raise StateConflict: nothing of it flows any more, or ever does. :raise NotFound
        """

        def change(migration: Migration) -> Migration | None:
            if not may_stream(migration):
                can = ("still to stream",)
                raise StateConflict.of(f"migration {ref}", migration.state.value, can, "set the bandwidth of")
            if migration.goals.bandwidth_bytes_per_s == bytes_per_s:
                return None
            return paced(migration, bytes_per_s, by, self._clock.wall())

        change_of = Change(self._records, MIGRATIONS, ref, held, once)
        return await change_of.write(change, under_way=lambda migration: not is_final(migration))

    def not_before(self, asked: MigrationCreate, made: Plan) -> datetime.datetime | None:
        """Until when it is to wait: for the time asked for, then for a window to open. None: for neither."""
        now = self._clock.wall()
        earliest = max(now, asked.starts_at) if asked.starts_at else now
        opens = None if asked.now else opens_at(made.asked.effective.windows, earliest)
        if opens is None and earliest <= now:
            return None
        return (opens or earliest).astimezone(datetime.UTC)

    def _record(
        self, asked: MigrationCreate, vm: Vm, made: Plan, node: NodePlan, choice: Choice, by: str, migration_id: str
    ) -> Migration:
        now = self._clock.wall()
        not_before = self.not_before(asked, made)
        return Migration(
            id=migration_id,
            vm_id=vm.id,
            vm_name=vm.name,
            kind=choice.way.kind,
            strategy=choice.way.strategy,
            source_node=vm.node_id,
            target_node=node.node_id,
            generation=vm.generation,
            state=MigrationState.PENDING,
            created_at=now,
            updated_at=now,
            at_rest=made.at_rest,
            channels=choice.channels,
            paused=made.paused,
            disks=self._with_units(node.disks),
            belongings=node.belongings,
            goals=choice.goals,
            predicted=choice.way.predicted,
            measured=made.measured,
            requested_by=by,
            labels=asked.labels,
            not_before=not_before,
            priority=priority_of(vm.labels) if asked.priority is None else asked.priority,
            explanation=(*made.explanation(node), *_why_later(asked, made, not_before)),
        )


def _why_later(asked: MigrationCreate, made: Plan, not_before: datetime.datetime | None) -> tuple[str, ...]:
    """Why it begins later, in a sentence."""
    if not_before is None:
        return ()
    effective = made.asked.effective
    told = "starts_at was asked for"
    if not asked.now and effective.windows:
        told = f"windows of policy {effective.windows_by}: {words(effective.windows)}"
    return (f"waits until {not_before:%Y-%m-%d %H:%M} UTC: {told}",)
