"""Writes a migration's story: each step begun and done, the hand-over, the way back, the end. The one writer.

A write that comes after a cancel request changes nothing: the request wins, and the conductor looks again.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.migrations.disks import carried
from novacron.control.migrations.waiting import refused
from novacron.control.store.kinds import MEMBERS, MIGRATIONS, NODES, VMS, VOLUMES
from novacron.control.store.records import Records, update
from novacron.control.store.shelf import Stored
from novacron.control.vms import decide
from novacron.errors import CompareFailed, NovaCronError
from novacron.failpoint import reach
from novacron.model import membership
from novacron.model import migration_steps as machine
from novacron.model.machine import MachineReport
from novacron.model.membership import Membership
from novacron.model.migration import UNDOING, Figures, Migration, MigrationState, Progress, is_final, is_here, judged
from novacron.model.migration_steps import COMMIT, Do, Step, next_action
from novacron.model.verdict import Verdict
from novacron.model.vm import Problem, Vm
from novacron.model.volume import Volume, alone, swapped

BACK_WITHIN_S = 2.0
"""How long a guest stands still for a target whose line has just broken: as when another server leads, or its agent
was started anew.
"""
LOOK_S = 0.05


class Journal:
    """Every method returns when the record is durable and the cache holds it."""

    def __init__(self, records: Records, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock

    async def put_off(self, migration_id: str, error: NovaCronError) -> None:
        """One that waits cannot take hold of its VM although its time has come: why, or its end where it never will."""

        def write(now: Migration) -> Migration | None:
            vm = self._records.get(VMS, now.vm_id)
            return refused(now, error, vm.record if vm else None, self._now())

        await self._records.change(MIGRATIONS, migration_id, write)

    async def begin(self, migration: Migration, step: Step) -> None:
        """Before the first try of a step."""
        if step.name not in migration.began:
            await self._forward(migration.id, lambda now: machine.began(now, step, self._now()))

    async def did(
        self,
        migration_id: str,
        step: Step,
        *,
        figures: Figures | None = None,
        note: str = "",
        verdict: Verdict | None = None,
    ) -> None:
        """A step is done; the next one is opened by the same write. What a verdict finds wrong is explained, too."""

        def write(now: Migration) -> Migration:
            now = machine.did(now, step, self._now())
            if figures is not None:
                now = msgspec.structs.replace(now, figures=figures)
            if note:
                now = msgspec.structs.replace(now, explanation=(*now.explanation, note))
            if verdict is not None:
                now = judged(now, verdict)
            return self._opened(now)

        await self._forward(migration_id, write)

    async def departed(self, migration: Migration, step: Step) -> None:
        """The source stands still: hand over, unless more is to be brought before."""
        steps = machine.steps_of(migration)
        if steps[steps.index(step) + 1].name == COMMIT:
            await self.hand_over(migration.id, step)
        else:
            await self.did(migration.id, step)

    async def progress(self, migration_id: str, progress: Progress) -> None:
        """What the source counts; nothing else of the record is touched."""
        await self._forward(migration_id, lambda now: msgspec.structs.replace(now, progress=progress))

    async def note(self, migration_id: str, sentence: str) -> None:
        """What a person should know of how it goes."""
        await self._forward(
            migration_id, lambda now: msgspec.structs.replace(now, explanation=(*now.explanation, sentence))
        )

    async def hand_over(self, migration_id: str, before: Step | None) -> None:
        """The commit: in one transaction the step before is done, the target owns the VM, the next step has begun.

        When this returns without the commit in the record, a cancel request came first, or the migration has ended (the
        VM was taken over), or it rolls back: the target is silent or fenced, so the guest could not go on there.
        """
        steps = machine.steps_of(self._migration(migration_id).record)
        commit = next(step for step in steps if step.name == COMMIT)
        reach("conductor.commit:began")
        while True:
            migration, vm = self._pair(migration_id)
            story = migration.record
            if story.state in UNDOING or is_final(story) or COMMIT in story.did:
                return  # final: its source was fenced, and the VM is being started elsewhere
            if not is_here(story) and (problem := await self._objection(story)) is not None:
                await self.went_wrong(migration_id, problem)
                return
            now = self._now()
            story = story if before is None else machine.did(story, before, now)
            story = machine.did(machine.began(story, commit, now), commit, now)
            owned = vm.record if is_here(story) else _owned_by(vm.record, story.target_node, now)
            held = carried(owned, story.disks)
            if await self._both(migration, self._opened(story), vm, held, swapped):
                reach("conductor.commit:did")
                return

    async def _objection(self, migration: Migration) -> Problem | None:
        """Why the guest would not go on at its target if that owned it now."""
        target_id = migration.target_node
        heard = membership.takes_machines(self._member(target_id)) and await self._hears(target_id)
        if not membership.takes_machines(self._member(target_id)):
            return self._not_to_target("migration.target_fenced", "was fenced before", migration)
        return None if heard else self._not_to_target("migration.target_silent", "was silent when", migration)

    def _not_to_target(self, code: str, what: str, migration: Migration) -> Problem:
        name = self._records.name(NODES, migration.target_node)
        message = f"node {name} {what} the VM was to be handed to it, so it goes on where it was"
        remedy = f"migrate it again once that node is up: novacron node show {name}"
        return Problem(code=code, message=message, remedy=remedy, at=self._now())

    async def _hears(self, node_id: str) -> bool:
        """Whether there is a line to its agent, or is soon."""
        give_up_s = self._clock.monotonic_s() + BACK_WITHIN_S
        while not self._agents.is_connected(node_id):
            if self._clock.monotonic_s() >= give_up_s:
                return False
            await self._clock.sleep(LOOK_S)
        return True

    async def retake(self, migration_id: str, step: Step) -> None:
        """Give the ownership back to the source: only after the target has said that it never continued."""
        while True:
            migration, vm = self._pair(migration_id)
            if step.name in migration.record.undone or is_final(migration.record):
                return
            now = self._now()
            story = machine.undid(migration.record, step, now)
            held = carried(_owned_by(vm.record, story.source_node, now), story.disks, back=True)
            if await self._both(migration, story, vm, held, swapped):
                return

    async def undid(self, migration_id: str, step: Step, note: str = "") -> None:
        """A step has been taken back."""

        def write(now: Migration) -> Migration | None:
            if step.name in now.undone:
                return None
            explanation = (*now.explanation, note) if note else now.explanation
            return msgspec.structs.replace(machine.undid(now, step, self._now()), explanation=explanation)

        await self._records.change(MIGRATIONS, migration_id, write)

    async def saw(self, migration: Migration, node_id: str, report: MachineReport) -> None:
        """What the owner said of the machine while the migration held it. Judged here: its next report is no news."""

        def write(vm: Vm) -> Vm | None:
            if vm.node_id != node_id or vm.generation != report.generation:
                return None
            return decide.observed(vm, report, self._now())

        await self._records.change(VMS, migration.vm_id, write)

    async def went_wrong(self, migration_id: str, problem: Problem, *, undoing: bool = False) -> None:
        """A step failed for good: roll back, or, where that cannot be, failed, and the VM is let go.

        undoing: what failed was taking a step back. A step that fails after a cancel request changes nothing.
        """
        while True:
            migration, vm = self._pair(migration_id)
            if is_final(migration.record) or undoing != (migration.record.state in UNDOING):
                return
            now = self._now()
            story = machine.went_wrong(migration.record, problem, now)
            held = vm.record
            if is_final(story):
                held = decide.with_problem(
                    _let_go(held, story, now), problem.code, problem.message, f"novacron vm start {held.name}", now
                )
            if await self._both(migration, story, vm, held, alone if is_final(story) else None):
                return

    async def finish(self, migration: Migration, state: MigrationState) -> None:
        """The final state, and the VM is free, in one transaction."""
        while True:
            stored, vm = self._pair(migration.id)
            if is_final(stored.record):
                return
            now = self._now()
            story = machine.finished(stored.record, state, now)
            if await self._both(stored, story, vm, _let_go(vm.record, story, now), alone):
                return

    # -- one transaction over all that changes together ------------------------------------------------------

    async def _both(
        self,
        migration: Stored[Migration],
        story: Migration,
        vm: Stored[Vm],
        held: Vm,
        place: Callable[[Volume], Volume] | None = None,
    ) -> bool:
        """Write both as they were read; False: somebody wrote in between, read again.

        place: what becomes of the volumes that are copied, in the same transaction.
        """
        volumes = [self._records.get(VOLUMES, disk.volume_id) for disk in story.disks if place]
        moved = [update(VOLUMES, one, place(one.record)) for one in volumes if one is not None and place]
        try:
            await self._records.commit(update(MIGRATIONS, migration, story), update(VMS, vm, held), *moved)
        except CompareFailed:
            await self._records.refresh()
            return False
        return True

    async def _forward(self, migration_id: str, write: Callable[[Migration], Migration]) -> None:
        def guarded(now: Migration) -> Migration | None:
            return None if now.state in UNDOING or is_final(now) else write(now)

        await self._records.change(MIGRATIONS, migration_id, guarded)

    def _opened(self, migration: Migration) -> Migration:
        upcoming = next_action(migration)
        return machine.began(migration, upcoming.step, self._now()) if isinstance(upcoming, Do) else migration

    def _pair(self, migration_id: str) -> tuple[Stored[Migration], Stored[Vm]]:
        migration = self._migration(migration_id)
        return migration, self._records.find(VMS, migration.record.vm_id)

    def _migration(self, migration_id: str) -> Stored[Migration]:
        return self._records.find(MIGRATIONS, migration_id)

    def _member(self, node_id: str) -> Membership | None:
        stored = self._records.get(MEMBERS, node_id)
        return stored.record if stored else None

    def _now(self) -> datetime.datetime:
        return self._clock.wall()


def _owned_by(vm: Vm, node_id: str, now: datetime.datetime) -> Vm:
    return msgspec.structs.replace(vm, node_id=node_id, generation=vm.generation + 1, updated_at=now)


def _let_go(vm: Vm, migration: Migration, now: datetime.datetime) -> Vm:
    if vm.migration_id != migration.id:
        return vm
    return msgspec.structs.replace(vm, migration_id="", updated_at=now)
