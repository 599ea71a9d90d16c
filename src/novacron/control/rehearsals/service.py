"""Decides whether a VM can be rehearsed and records all that is made for it; the worker then has it done."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.migrations.plan import NodePlan, Plan
from novacron.control.migrations.service import MigrationService
from novacron.control.named import named
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools import quota
from novacron.control.pools.reach import needs_of
from novacron.control.rehearsals import decide
from novacron.control.rehearsals.copy import Made, copy_of
from novacron.control.room import Room
from novacron.control.store.kinds import POOLS, REHEARSALS, VMS, VOLUMES
from novacron.control.store.records import WRITE_TRIES, Records, create, remove, update
from novacron.control.store.shelf import Stored
from novacron.control.vms import birth
from novacron.control.vms.birth import Means
from novacron.control.vms.placing import Placing
from novacron.errors import CompareFailed, NoRoom
from novacron.model import rehearsal as model
from novacron.model.rehearsal import Rehearsal, RehearsalState
from novacron.model.vm import Task, TaskKind, Vm
from novacron.wire.rest.migrations import MigrationCreate
from novacron.wire.rest.rehearsals import RehearsalCreate


class RehearsalService:
    """Requests about rehearsals. pool_id: the default pool's."""

    def __init__(self, records: Records, room: Room, clock: Clock, migrations: MigrationService, pool_id: str) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._migrations = migrations
        self._pool_id = pool_id

    async def create(self, asked: RehearsalCreate, by: str, once: Once) -> Outcome:
        """Plan it as a migration, then write the rehearsal, the copy with its disks and its network, and the task that
        holds the original while its disks are copied, in one transaction (202).

        :raise InvalidInput: no such VM or node, or the VM is there already.
        :raise StateConflict, Busy, Unsupported: the VM cannot be rehearsed (now).
        :raise NoRoom: no node can take it or its copy, or a quota does not allow the copy's disks.
        """
        wish = MigrationCreate(vm=asked.vm, target_node=asked.target_node, measure=False)
        for _ in range(WRITE_TRIES):
            decide.check_vm(named(self._records, VMS, asked.vm, "vm").record)
            plan = await self._migrations.plan(asked.vm, wish)
            node = decide.node_of(plan)
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = named(self._records, VMS, asked.vm, "vm")
                decide.check_vm(stored.record)
                rehearsal, made = self._made(asked, stored.record, plan, node, by)
                held = msgspec.structs.replace(stored.record, task=_task(rehearsal))
                try:
                    revision = await self._records.commit(
                        create(REHEARSALS, rehearsal),
                        update(VMS, stored, held),
                        *made.writes,
                        ticket,
                        *once.note(rehearsal, 202),
                    )
                except CompareFailed:
                    if await once.is_used():
                        raise
                    await self._records.refresh()
                    continue
                return Outcome(Stored(rehearsal, revision), 202)
        raise CompareFailed(f"VM {asked.vm!r} is being changed by others: try again")

    async def cancel(self, ref: str, held: frozenset[str] | None, once: Once) -> Outcome:
        """Have the copy deleted at once. :raise StateConflict: it has ended. :raise NotFound, PreconditionFailed"""
        change = Change(self._records, REHEARSALS, ref, held, once)
        return await change.write(
            lambda rehearsal: model.cancelled(rehearsal, self._clock.wall()),
            under_way=lambda rehearsal: not model.is_final(rehearsal),
        )

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget one that has ended. :raise StateConflict: it has not. :raise NotFound, PreconditionFailed"""
        stored = self._records.find(REHEARSALS, ref)
        check_match(held, stored)
        model.check_final(stored.record)
        await self._records.commit(remove(REHEARSALS, stored))

    # -- parts ---------------------------------------------------------------------------------------------

    def _made(self, asked: RehearsalCreate, vm: Vm, plan: Plan, node: NodePlan, by: str) -> tuple[Rehearsal, Made]:
        now, rehearsal_id = self._clock.wall(), self._records.new_id()
        means = Means(self._records.new_id, lambda: "", by, now)  # its cards have their addresses
        slot = next(self._room.free_slots())
        made = copy_of(self._records, vm, node.node_id, rehearsal_id, self._pool_id, slot, means)
        self._check_room(made, node)
        rehearsal = Rehearsal(
            id=rehearsal_id,
            vm_id=vm.id,
            vm_name=vm.name,
            state=RehearsalState.COPYING,
            source_node=vm.node_id,
            target_node=node.node_id,
            generation=vm.generation,
            task_id=self._records.new_id(),
            copy_id=made.vm.id,
            copy_name=made.vm.name,
            network_id=made.network.id if made.network else "",
            copies=made.copies,
            keep_for_s=asked.keep_for_s,
            boot_within_s=asked.boot_within_s,
            watch_for_s=asked.watch_for_s,
            bandwidth_bytes_per_s=asked.bandwidth_bytes_per_s,
            labels=asked.labels,
            requested_by=by,
            explanation=plan.explanation(node),
            checks=(decide.planned(node),),
            created_at=now,
            updated_at=now,
        )
        return rehearsal, made

    def _check_room(self, made: Made, node: NodePlan) -> None:
        """:raise NoRoom: the node, a pool or a quota has too little left for the copy."""
        quota.check(self._records, made.volumes)
        volumes = [one.record for one in self._records.all(VOLUMES)]
        pools = {one.record.id: one.record for one in self._records.all(POOLS)}
        decide.check_space(made.copies, volumes, pools, node)
        spec = made.vm.spec
        need = birth.need_of(
            spec, self._pool_id, node.node_id, needs_of(self._records, spec.disks), labels=made.vm.labels
        )
        reason = Placing(self._room).refusal(need, node.node_id)
        if reason is not None:
            raise NoRoom(f"{node.node_name} cannot take the copy {made.vm.name}: {reason.message}", [reason])


def _task(rehearsal: Rehearsal) -> Task:
    """What holds the original while its disks are copied."""
    return Task(
        id=rehearsal.task_id,
        kind=TaskKind.REHEARSE,
        requested_at=rehearsal.created_at,
        requested_by=rehearsal.requested_by,
    )
