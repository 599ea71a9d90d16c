"""Decides what requests about bulk migrations mean and records it; the worker then has the moves begun."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from novacron.clock import Clock
from novacron.control.bulk_migrations.loss import Lost, Restart, restarts
from novacron.control.bulk_migrations.outlook import Surveyor, planned
from novacron.control.bulk_migrations.selection import Chosen, chosen
from novacron.control.migrations import decide
from novacron.control.migrations.disks import own_pool
from novacron.control.migrations.planner import wishes_of
from novacron.control.named import named
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools.reach import needs_of
from novacron.control.promises import holds_room
from novacron.control.room import Room
from novacron.control.scheduler.placement import Candidate, Need
from novacron.control.store.kinds import BULK_MIGRATIONS, NODES, POLICIES, VMS
from novacron.control.store.records import WRITE_TRIES, Records, Write, create, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.errors import CompareFailed
from novacron.model import bulk_migration as model
from novacron.model.bulk_migration import (
    BulkLimits,
    BulkMigration,
    BulkState,
    EntryState,
    Purpose,
    is_bulk_final,
    priority_of,
    settled,
    with_entries,
)
from novacron.model.vm import Vm, running_spec
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """What the loss of a node would mean. at_rest: its VMs that are not to run."""

    node_id: str
    restarts: tuple[Restart, ...]
    at_rest: int


class BulkMigrationService:
    """Requests about bulk migrations, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock, surveyor: Surveyor) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._surveyor = surveyor

    async def plan(self, asked: BulkMigrationCreate) -> BulkMigration:
        """What `create` would record. Changes nothing. Raises as `create`."""
        return await self._made(asked, chosen(self._records, asked), "")

    async def create(self, asked: BulkMigrationCreate, by: str, once: Once) -> Outcome:
        """Record it as it is planned; with a drain its node is cordoned, with a return it is not any more.

        :raise InvalidInput: it selects nothing, or not in one way; no such VM, node or policy.
        :raise StateConflict: the node is being drained or brought back.
        """
        for _ in range(WRITE_TRIES):
            found = chosen(self._records, asked)
            bulk = await self._made(asked, found, by)
            try:
                beside = self._node_writes(found)
                revision = await self._records.commit(create(BULK_MIGRATIONS, bulk), *beside, *once.note(bulk, 202))
            except CompareFailed:
                if await once.is_used():
                    raise
                await self._records.refresh()
                continue
            return Outcome(Stored(bulk, revision), 202)
        raise CompareFailed("the node is being changed by others: try again")

    def lose(self, ref: str) -> Loss:
        """Where the VMs of the node could be started again if it were gone. Changes nothing. :raise NotFound"""
        node = self._records.find(NODES, ref).record
        nodes = self._room.candidates()
        here = next(one for one in nodes if one.node.id == node.id)
        mine = [stored.record for stored in self._records.on_node(VMS, node.id)]
        left = self._room.draft()
        for vm in mine:
            left.without(vm.id)
        lost = [
            Lost(
                vm_id=vm.id,
                vm_name=vm.name,
                priority=priority_of(vm.labels),
                need=left.with_company(self._need(vm, here)),
            )
            for vm in mine
            if holds_room(vm)
        ]
        others = [one for one in nodes if one.node.id != node.id]
        found = restarts(lost, others, self._room.limits)
        return Loss(node_id=node.id, restarts=found, at_rest=len(mine) - len(lost))

    def _need(self, vm: Vm, here: Candidate) -> Need:
        """What the VM asks of a node it is started on without the one it was on: all its disks, as they are."""
        spec = running_spec(vm)
        own = decide.has_belongings(spec) or any(not disk.pool_id for disk in spec.disks)
        return msgspec.structs.replace(
            decide.need_of(vm, streams=False),
            pools=needs_of(self._records, spec.disks),
            pool_id=own_pool(here) if own else "",
        )

    async def pause(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Begin no more moves; those under way go on. :raise StateConflict, NotFound, PreconditionFailed"""
        return await self._change(ref, held, once, model.paused)

    async def resume(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Go on. :raise StateConflict, NotFound, PreconditionFailed"""
        return await self._change(ref, held, once, model.resumed)

    async def cancel(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Begin nothing more and take back what can be; what has been moved stays. :raise StateConflict, NotFound"""
        return await self._change(ref, held, once, model.cancelled)

    async def _change(
        self,
        ref: str,
        held: frozenset[str] | None,
        once: Once,
        change: Callable[..., BulkMigration],
    ) -> Outcome:
        def now(bulk: BulkMigration) -> BulkMigration:
            return change(bulk, self._clock.wall())

        made = Change(self._records, BULK_MIGRATIONS, ref, held, once)
        return await made.write(now, under_way=lambda bulk: not is_bulk_final(bulk))

    async def _made(self, asked: BulkMigrationCreate, found: Chosen, by: str) -> BulkMigration:
        """The record as it begins: planned; a VM that finds no place stays, and says why."""
        now = self._clock.wall()
        policy = named(self._records, POLICIES, asked.policy, "policy").record if asked.policy else None
        bulk = BulkMigration(
            id=self._records.new_id(),
            state=BulkState.PLANNED,
            purpose=found.purpose,
            selection=found.selection,
            entries=found.entries,
            target_node=found.target_id,
            policy_id=policy.id if policy else "",
            now=asked.now,
            goals=wishes_of(asked),
            limits=BulkLimits(
                max_concurrent=asked.max_concurrent,
                per_node=asked.max_per_node,
                per_link=asked.max_per_link,
                bandwidth_bytes_per_s=asked.bandwidth_budget_bytes_per_s,
                max_attempts=asked.max_attempts,
            ),
            labels=asked.labels,
            requested_by=by,
            created_at=now,
            updated_at=now,
        )
        outlook = await self._surveyor.outlook(bulk)
        entries = dict(planned(bulk, outlook))
        for vm_id, entry in entries.items():
            if not entry.target_node and vm_id not in outlook.passing:
                entries[vm_id] = settled(entry, EntryState.STAYS, now, *entry.reasons)
        return msgspec.structs.replace(with_entries(bulk, entries, now), forecast=outlook.forecast)

    def _node_writes(self, found: Chosen) -> tuple[Write, ...]:
        if found.purpose is Purpose.MOVE:
            return ()
        node = self._records.find(NODES, found.selection.node_id)
        cordoned = found.purpose is Purpose.DRAIN
        if node.record.cordoned is cordoned:
            return (unchanged(NODES, node),)
        changed = msgspec.structs.replace(node.record, cordoned=cordoned, updated_at=self._clock.wall())
        return (update(NODES, node, changed),)
