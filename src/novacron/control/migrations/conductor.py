"""Conducts migrations: asks `model.migration_steps.next_action`, has it done, writes it down, asks again.

It only loops; what comes next is decided in the model, how it is done by agents. One write sits inside the guest's
stop: `_commit`, which moves the ownership and opens the next step in the same transaction. A conductor that died
anywhere is continued by the next one from the record, because every verb is idempotent.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence

import structlog

from novacron.clock import Clock
from novacron.control.errands import Errands
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.migrations.holder import Holder
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.performer import Performer
from novacron.control.migrations.queue import USUAL, Slots, admitted, is_fresh
from novacron.control.migrations.service import MigrationService
from novacron.control.store.kinds import MIGRATIONS, NODES
from novacron.control.store.records import Records, Seen
from novacron.errors import PASSING, CompareFailed, DeadlineExceeded, NovaCronError, Unavailable
from novacron.model.migration import UNDOING, Migration, MigrationState, is_final, waits
from novacron.model.migration_steps import Do, Finish, Step, Undo, is_past_return, next_action
from novacron.model.vm import Problem

FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0
LINE_LOOK_S = 60.0
"""The line is looked at so often while somebody waits for a time: the wall's clock may be set."""
PATIENCE_S = 15.0
"""How long a node may stay silent before the commit until the migration is rolled back."""


class Conductor:
    """`run` until cancelled; each migration is a task of its own."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        clock: Clock,
        migrations: MigrationService,
        distribution: Distribution | None = None,
        slots: Slots = USUAL,
    ) -> None:
        """slots: how many migrations run at once; the others wait in line."""
        self._records = records
        self._clock = clock
        self._journal = Journal(records, agents, clock)
        self._performer = Performer(records, agents, clock, self._journal, distribution)
        self._slots = slots
        self._holder = Holder(records, clock, self._journal, migrations, self._let_in)
        self._unfinished: dict[str, Migration] = {}
        self._alarm: asyncio.Task[None] | None = None  # rings when the next one's time has come
        self._driving = Errands[None]("migrate")
        self._performing: dict[str, asyncio.Task[None]] = {}  # what a cancel request interrupts
        self._log = structlog.get_logger("conductor")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            async with self._holder.trying, self._driving:
                self._take([stored.record for stored in self._records.all(MIGRATIONS)])
                await asyncio.Event().wait()
        finally:
            stop()
            if self._alarm is not None:
                self._alarm.cancel()
                await asyncio.gather(self._alarm, return_exceptions=True)
            await self._performer.close()

    def _notice(self, seen: Sequence[Seen]) -> None:
        self._take([change.now for change in seen if change.kind is MIGRATIONS and change.now is not None])
        if self._holder.told(seen):
            self._let_in()

    def _take(self, changed: Sequence[Migration]) -> None:
        """Go on with these; those that have not begun take their place in line."""
        moved_up = False
        self._holder.take(changed)
        for migration in changed:
            moved_up |= is_final(migration) or is_fresh(migration)
            if is_final(migration):
                self._unfinished.pop(migration.id, None)
            else:
                self._unfinished[migration.id] = migration
            if not is_fresh(migration):
                self._consider(migration)
        if moved_up:
            self._let_in()

    def _let_in(self) -> None:
        """Begin those that may begin now, and look again when the next one's time has come."""
        if not self._driving.is_open:
            return
        now = self._clock.wall()
        inside = {*self._driving, *self._holder.trying}
        found = admitted(self._unfinished.values(), inside, now, self._slots, self._holder.aside)
        for migration_id in found.ids:
            migration = self._unfinished[migration_id]
            if waits(migration):
                self._holder.begin(migration_id)
            else:
                self._consider(migration)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if found.next_at is not None:
            after_s = min((found.next_at - now).total_seconds(), LINE_LOOK_S)
            self._alarm = asyncio.create_task(self._ring(after_s), name="migrations-line")

    async def _ring(self, after_s: float) -> None:
        await self._clock.sleep(after_s)
        self._alarm = None
        self._let_in()

    def _consider(self, migration: Migration) -> None:
        performing = self._performing.get(migration.id)
        if performing is not None and migration.state is MigrationState.CANCELLING:
            performing.cancel()
        if not is_final(migration):
            self._driving.begin(migration.id, None, lambda: self._drive(migration.id))

    async def _drive(self, migration_id: str) -> None:
        """From whatever the record says to a final state."""
        give_up_s = self._clock.monotonic_s() + self._migration(migration_id).goals.finish_within_s
        silent_since_s: float | None = None
        retry_s = FIRST_RETRY_S
        while not is_final(migration := self._migration(migration_id)):
            try:
                await self._one_action(migration, give_up_s)
                silent_since_s, retry_s = None, FIRST_RETRY_S
            except CompareFailed:
                await self._records.refresh()
            except (Unavailable, DeadlineExceeded) as passing:
                now_s = self._clock.monotonic_s()
                silent_since_s = now_s if silent_since_s is None else silent_since_s
                if now_s - silent_since_s > PATIENCE_S and await self._lost_patience(migration_id, passing):
                    silent_since_s = None
                    continue
                await self._clock.sleep(retry_s)
                retry_s = min(retry_s * 2, LAST_RETRY_S)
            except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave a VM held for ever)
                self._log.exception("conducting broke; trying again", migration_id=migration_id)
                await self._clock.sleep(LAST_RETRY_S)

    async def _one_action(self, migration: Migration, give_up_s: float) -> None:
        """Do what comes next. A failure for good is written down; one that may pass is raised.

        :raise CompareFailed: somebody (a cancel request) wrote first: look again.
        :raise Unavailable, DeadlineExceeded: try again.
        """
        match next_action(migration):
            case Finish(state):
                await self._journal.finish(migration, state)
            case Undo(step):
                try:
                    await self._performer.undo(migration, step)
                except PASSING:
                    raise
                except NovaCronError as error:
                    await self._journal.went_wrong(migration.id, self._problem(migration, error), undoing=True)
            case Do(step):
                await self._perform(migration, step, give_up_s)
            case None:
                return

    async def _perform(self, migration: Migration, step: Step, give_up_s: float) -> None:
        """Do the step. Before the commit a cancel request or the migration's own time limit ends it early."""
        work = asyncio.create_task(self._performer.do(migration, step))
        limit = asyncio.create_task(self._clock.sleep(give_up_s - self._clock.monotonic_s()))
        race = {work} if is_past_return(migration) or step.name == "pivot" else {work, limit}
        self._performing[migration.id] = work
        try:
            await asyncio.wait(race, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._performing.pop(migration.id, None)
            in_time = work.done()
            limit.cancel()
            work.cancel()
            await asyncio.wait({work, limit})
        failure = None if work.cancelled() else work.exception()
        if not in_time:
            await self._journal.went_wrong(migration.id, self._too_long(migration))
        elif isinstance(failure, NovaCronError) and not isinstance(failure, PASSING):
            await self._journal.went_wrong(migration.id, self._problem(migration, failure))
        elif failure is not None:
            raise failure

    async def _lost_patience(self, migration_id: str, error: NovaCronError) -> bool:
        """Roll back what still can be; whether that changed anything. After the commit nobody gives up."""
        migration = self._migration(migration_id)
        if is_past_return(migration):
            return await self._performer.do_without_source(migration)
        if migration.state in UNDOING:
            return await self._performer.undo_without_target(migration)
        await self._journal.went_wrong(migration_id, self._problem(migration, error))
        return True

    def _migration(self, migration_id: str) -> Migration:
        return self._records.find(MIGRATIONS, migration_id).record

    def _problem(self, migration: Migration, error: NovaCronError) -> Problem:
        details = "".join(f"; {reason.message}" for reason in error.reasons)
        target = self._records.name(NODES, migration.target_node)
        remedy = f"mend what it says, then: novacron vm migrate {migration.vm_name} --to {target}"
        return Problem(code=error.code, message=f"{error.message}{details}", at=self._now(), remedy=remedy)

    def _too_long(self, migration: Migration) -> Problem:
        limit_s = migration.goals.finish_within_s
        return Problem(
            code="migration.too_long",
            message=f"not finished within {limit_s:g} s",
            at=self._now(),
            remedy="allow more time or downtime, or lower the guest's write rate",
        )

    def _now(self) -> datetime.datetime:
        return self._clock.wall()
