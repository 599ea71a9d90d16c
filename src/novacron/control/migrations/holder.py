"""Has migrations that waited take hold of their VMs once their time has come; one that cannot is put aside for a while.

It holds nothing that the records do not say: whoever follows a server that died tries again what was under way, and a
record that two servers try to take hold of is held once, for each write expects it as it was read.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from novacron.clock import Clock
from novacron.control.errands import Errands
from novacron.control.migrations import waiting
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.service import MigrationService
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, Seen
from novacron.errors import NovaCronError
from novacron.model.migration import Migration, waits
from novacron.model.vm import Vm

LOOK_S = 15.0
"""So long is one put aside that could not begin, unless its VM changes before: what it lacks, no record may tell."""


class Holder:
    """For one conductor, which says when a migration's turn has come.

    trying: those that are taking hold of their VMs just now; open while the conductor runs. What is called off has been
    written, or not; the next one sees which.
    """

    def __init__(
        self,
        records: Records,
        clock: Clock,
        journal: Journal,
        migrations: MigrationService,
        again: Callable[[], None],
    ) -> None:
        """again: called whenever one has taken hold or was put aside, so that the line is looked at anew."""
        self._records = records
        self._clock = clock
        self._journal = journal
        self._migrations = migrations
        self._waiting: dict[str, str] = {}  # by VM, the migration of it that waits
        self.trying = Errands[None]("hold", lambda _: again())
        self._aside: dict[str, datetime.datetime] = {}
        self._log = structlog.get_logger("migrations-holder")

    @property
    def aside(self) -> Mapping[str, datetime.datetime]:
        """Those that could not, and when they are to be let in again."""
        return self._aside

    def take(self, changed: Iterable[Migration]) -> None:
        """These are so now. One that waits for a VM that is gone is ended."""
        for migration in changed:
            if waits(migration):
                self._waiting[migration.vm_id] = migration.id
                if waiting.is_gone(self._vm(migration.vm_id)):
                    self.begin(migration.id)
            elif self._waiting.get(migration.vm_id) == migration.id:
                del self._waiting[migration.vm_id]
                self._aside.pop(migration.id, None)

    def told(self, seen: Sequence[Seen]) -> bool:
        """Of changes: whether one that was put aside may be let in again. What waits for a VM that is gone is ended."""
        found = False
        for change in seen:
            if change.kind is not VMS or not self._waiting:
                continue
            vm: Vm | None = change.now
            vm_id = vm.id if vm is not None else change.before.id if change.before is not None else ""
            migration_id = self._waiting.get(vm_id)
            if migration_id is None:
                continue
            if vm is None or waiting.is_gone(vm):
                self.begin(migration_id)
            elif waiting.came_free(change.before, vm):
                found |= self._aside.pop(migration_id, None) is not None
        return found

    def begin(self, migration_id: str) -> None:
        """Its turn has come: have it take hold of its VM, unless it is doing so."""
        self.trying.begin(migration_id, None, lambda: self._take_hold(migration_id))

    async def _take_hold(self, migration_id: str) -> None:
        """Once. Whatever becomes of it, the task ends well: it holds its VM, has ended, or is put aside."""
        until = self._clock.wall() + datetime.timedelta(seconds=LOOK_S)
        self._aside[migration_id] = until
        try:
            try:
                await self._migrations.take_hold(migration_id)
                self._aside.pop(migration_id, None)
            except NovaCronError as error:
                self._log.info("its time has come, and it cannot begin", migration_id=migration_id, why=error.message)
                await self._journal.put_off(migration_id, error)
        except NovaCronError as passing:
            self._log.info("not written; trying again", migration_id=migration_id, why=passing.message)
        except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave others waiting for ever)
            self._log.exception("taking hold broke; trying again", migration_id=migration_id)

    def _vm(self, vm_id: str) -> Vm | None:
        stored = self._records.get(VMS, vm_id)
        return stored.record if stored else None
