"""Decides whether a VM may be moved and records the migration; the conductor then performs it."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.clock import Clock
from novacron.control.migrations import decide
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools.reach import needs_of
from novacron.control.room import Room
from novacron.control.store.records import MIGRATIONS, NODES, VMS, WRITE_TRIES, Records, Stored, create, update
from novacron.errors import CompareFailed, InvalidInput, NotFound
from novacron.model.migration import UNDOING, Goals, Migration, MigrationState, Strategy, cancelled, is_final
from novacron.model.vm import Vm, running_spec
from novacron.wire.rest.migrations import MigrationCreate


class MigrationService:
    """Requests about migrations, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._room = room
        self._clock = clock

    async def create(self, asked: MigrationCreate, by: str, once: Once) -> Outcome:
        """Check everything, change nothing; then write the migration and the VM it holds in one transaction.

        :raise InvalidInput: no such VM or node, or the VM runs there already.
        :raise Unsupported: a kind this server cannot do.
        :raise StateConflict, Busy: the VM cannot be moved now.
        :raise NoRoom: no node can take it, with a reason for each.
        """
        decide.check_kind(asked.kind)
        target = self._named("target_node", NODES, asked.target_node).record.id if asked.target_node else ""
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                vm: Stored[Vm] = self._named("vm", VMS, asked.vm)
                pools = needs_of(self._records, running_spec(vm.record).disks)
                move = decide.plan(vm.record, self._room.candidates(), target, self._room.limits, pools)
                migration = self._record(asked, vm.record, move, by)
                held = msgspec.structs.replace(vm.record, migration_id=migration.id, updated_at=migration.created_at)
                writes = (create(MIGRATIONS, migration), update(VMS, vm, held), ticket, *once.note(migration, 202))
                try:
                    revision = await self._records.commit(*writes)
                except CompareFailed:
                    if await once.is_used():
                        raise
                    await self._records.caught_up(await self._records.store.revision())
                    continue
                return Outcome(Stored(migration, revision), 202)
        raise CompareFailed(f"VM {asked.vm!r} is being changed by others: try again")

    async def cancel(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Have it taken back; the VM then runs where it did.

        :raise StateConflict: it has ended, or the VM already belongs to its target. :raise NotFound
        """

        def change(migration: Migration) -> Migration | None:
            if migration.state in UNDOING or migration.state is MigrationState.CANCELLED:
                return None
            return cancelled(migration, self._clock.wall())

        change_of = Change(self._records, MIGRATIONS, ref, held, once)
        return await change_of.write(change, under_way=lambda migration: not is_final(migration))

    def _record(self, asked: MigrationCreate, vm: Vm, move: decide.Move, by: str) -> Migration:
        now = self._clock.wall()
        return Migration(
            id=self._records.new_id(),
            vm_id=vm.id,
            vm_name=vm.name,
            kind=asked.kind,
            strategy=Strategy.PRECOPY,
            source_node=vm.node_id,
            target_node=move.target,
            generation=vm.generation,
            state=MigrationState.PENDING,
            created_at=now,
            updated_at=now,
            goals=Goals(
                max_downtime_ms=asked.max_downtime_ms,
                bandwidth_bytes_per_s=asked.bandwidth_bytes_per_s,
                finish_within_s=asked.finish_within_s,
            ),
            requested_by=by,
            labels=asked.labels,
            explanation=move.explanation,
        )

    def _named(self, field: str, kind: Any, ref: str) -> Stored[Any]:
        try:
            found: Stored[Any] = self._records.find(kind, ref)
        except NotFound as missing:
            raise InvalidInput.field(field, missing.message, "give the id or name of one that exists") from missing
        return found
