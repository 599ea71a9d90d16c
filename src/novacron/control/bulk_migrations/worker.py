"""Has the moves of bulk migrations begun, a turn at a time: takes in what ended, plans anew what must be, begins.

It knows nothing but the records, and a move is begun in the same transaction that notes it in its entry; so a worker
that died anywhere is followed by the next one, and no VM is moved twice.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import Bell
from novacron.control.bulk_migrations import decide
from novacron.control.bulk_migrations.admission import shares
from novacron.control.bulk_migrations.outlook import Surveyor, planned
from novacron.control.migrations.decide import is_at_rest
from novacron.control.migrations.service import MigrationService
from novacron.control.once import Once
from novacron.control.room import Room
from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import Records, Seen, Write, update
from novacron.errors import PASSING, NovaCronError, Reason, StateConflict
from novacron.model import bulk_migration as model
from novacron.model.bulk_migration import BulkMigration, BulkState, Entry, EntryState, blocked, is_bulk_final
from novacron.model.migration import Migration, is_final, paced
from novacron.model.migration_steps import may_cancel, may_stream
from novacron.model.vm import Vm

LOOK_S = 2.0
"""How often it is looked again while something waits for what no record tells: a time, or a node's patience."""
REFUSED_S = 5.0
SHARER = "its bulk migration"
"""Who changes the bandwidth of a move when the budget is shared anew."""
BULK_LABEL = "novacron.io/bulk-migration"
"""On each migration that a bulk migration began: whose it is."""


class BulkWorker:
    """`run` until cancelled."""

    def __init__(
        self, records: Records, room: Room, migrations: MigrationService, surveyor: Surveyor, clock: Clock
    ) -> None:
        self._records = records
        self._room = room
        self._migrations = migrations
        self._surveyor = surveyor
        self._clock = clock
        self._bell = Bell()
        self._log = structlog.get_logger("bulk-migrations")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            while True:
                for bulk_id in self._open():
                    await self._guarded(bulk_id)
                await self._bell.rest(self._clock, LOOK_S if self._open() else None)
        finally:
            stop()

    def _open(self) -> list[str]:
        return [one.record.id for one in self._records.all(BULK_MIGRATIONS) if not is_bulk_final(one.record)]

    def _notice(self, seen: Sequence[Seen]) -> None:
        if any(change.kind in (BULK_MIGRATIONS, NODES) or _is_news(change) for change in seen):
            self._bell.ring()

    async def _guarded(self, bulk_id: str) -> None:
        """A turn; what goes wrong in one must not end the others, and is tried again."""
        try:
            await self._turn(bulk_id)
        except PASSING as passing:
            self._log.info("not now", bulk_id=bulk_id, why=passing.message)
        except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave a node half emptied)
            self._log.exception("a bulk migration broke; trying again", bulk_id=bulk_id)

    async def _turn(self, bulk_id: str) -> None:
        await self._records.change(BULK_MIGRATIONS, bulk_id, self._taken_in)
        bulk = self._bulk(bulk_id)
        if bulk.state is BulkState.CANCELLING:
            await self._take_back(bulk)
        if not model.may_begin(bulk):
            await self._share_anew(bulk)
            return
        found = self._look(bulk)
        if found.replan:
            fresh = planned(bulk, await self._surveyor.outlook(bulk))
            await self._records.change(BULK_MIGRATIONS, bulk_id, lambda now: decide.replanned(now, fresh, self._now()))
            bulk = self._bulk(bulk_id)
            found = self._look(bulk)
        held = found.held
        await self._records.change(
            BULK_MIGRATIONS, bulk_id, lambda now: model.with_entries(now, _waiting(now, held), self._now())
        )
        await self._begin(bulk, found)

    def _taken_in(self, bulk: BulkMigration) -> BulkMigration:
        return decide.taken_in(bulk, self._vms(bulk), self._known(bulk), self._now())

    # -- beginning -----------------------------------------------------------------------------------------

    def _look(self, bulk: BulkMigration) -> decide.Turn:
        vms = self._vms(bulk)
        under_way = {one.id: one for one in self._migrating()}
        return decide.turn(
            bulk,
            vms,
            {vm_id: self._surveyor.need(vm) for vm_id, vm in vms.items()},
            self._room.candidates(),
            self._room.limits,
            decide.carried_of(bulk, under_way),
            frozenset(vm_id for vm_id, vm in vms.items() if is_at_rest(vm)),
            self._closed(bulk, vms),
            self._now(),
        )

    def _closed(self, bulk: BulkMigration, vms: Mapping[str, Vm]) -> dict[str, datetime.datetime]:
        """By VM id, when the windows open that waiting VMs wait for."""
        waiting = [one.vm_id for one in bulk.entries if one.state is EntryState.WAITING and one.vm_id in vms]
        found = ((vm_id, self._surveyor.opens_at(bulk, vms[vm_id], self._now())) for vm_id in waiting)
        return {vm_id: at for vm_id, at in found if at is not None}

    async def _begin(self, bulk: BulkMigration, found: decide.Turn) -> None:
        """Begin these moves, each with its part of the budget; those under way have made room for them before."""
        vms = self._vms(bulk)
        streaming = [vm_id for vm_id, _ in found.begin if not is_at_rest(vms[vm_id])]  # at rest nothing streams
        parts = await self._share_anew(bulk, streaming)
        begun = [
            self._begin_one(bulk, vm_id, target_id, parts.get(vm_id, 0))
            for vm_id, target_id in found.begin
            if not bulk.limits.bandwidth_bytes_per_s or vm_id in parts or vm_id not in streaming
        ]
        await asyncio.gather(*begun)

    async def _share_anew(self, bulk: BulkMigration, joining: Sequence[str] = ()) -> dict[str, int]:
        """Share the budget among what is under way and the VMs that are to join; by VM id, what each gets.

        Who is to have less is told first. A move that a person has paced keeps what it has, as does one that has sent
        everything, until it has ended.
        """
        budget = bulk.limits.bandwidth_bytes_per_s
        if not budget:
            return {}
        known, vms = self._known(bulk), self._vms(bulk)
        moving = [known[one] for one in _moving(bulk) if one in known]
        under_way = [one for one in moving if one.holds and not one.at_rest and not is_final(one)]
        ours = {one.vm_id: one for one in under_way if may_stream(one) and one.paced_by in ("", SHARER)}
        held = sum(one.goals.bandwidth_bytes_per_s for one in under_way if one.vm_id not in ours)
        sharing = [vms[vm_id] for vm_id in (*ours, *joining) if vm_id in vms]
        parts = shares(
            budget, {vm.id: self._surveyor.cap(self._surveyor.body(bulk, vm, "", 0), vm) for vm in sharing}, held
        )
        changes = [(parts[key] - one.goals.bandwidth_bytes_per_s, one) for key, one in ours.items() if key in parts]
        for by, migration in sorted(changes, key=lambda one: one[0]):
            if by:
                await self._pace(migration.id, parts[migration.vm_id])
        return parts

    async def _pace(self, migration_id: str, bytes_per_s: int) -> None:
        def change(now: Migration) -> Migration | None:
            return paced(now, bytes_per_s, SHARER, self._now()) if may_stream(now) else None

        await self._records.change(MIGRATIONS, migration_id, change)

    async def _begin_one(self, bulk: BulkMigration, vm_id: str, target_id: str, part: int) -> None:
        stored = self._records.get(VMS, vm_id)
        if stored is None:
            return
        body = self._surveyor.body(bulk, stored.record, target_id, part)
        body = body.model_copy(update={"labels": {BULK_LABEL: bulk.id}})
        try:
            await self._migrations.create(body, bulk.requested_by, _Noting(self._records, bulk.id, self._clock))
        except PASSING as passing:
            self._log.info("not begun; trying again", vm_id=vm_id, why=passing.message)
        except NovaCronError as refused:
            await self._refused(bulk.id, vm_id, refused)

    async def _refused(self, bulk_id: str, vm_id: str, refused: NovaCronError) -> None:
        """It could not begin: a target is chosen anew after a while; for how long, its entry knows."""
        reasons = refused.reasons or (Reason(refused.code, refused.message, vm_id),)
        self._log.info("not begun", bulk_id=bulk_id, vm_id=vm_id, why=refused.message)

        def change(bulk: BulkMigration) -> BulkMigration | None:
            entry = model.entry_of(bulk, vm_id)
            if not model.may_begin(bulk) or entry is None or entry.state is not EntryState.WAITING:
                return None  # it was paused or cancelled, or another server began it: no fault of the VM's
            now = self._now()
            waits = blocked(entry, reasons, now)
            if waits.state is EntryState.WAITING:
                again = now + datetime.timedelta(seconds=REFUSED_S)
                waits = msgspec.structs.replace(waits, target_node="", retry_at=again)
            sentence = f"{entry.vm_name} could not begin: {refused.message}"
            return model.noted(model.with_entries(bulk, {vm_id: waits}, now), sentence)

        await self._records.change(BULK_MIGRATIONS, bulk_id, change)

    # -- taking back ---------------------------------------------------------------------------------------

    async def _take_back(self, bulk: BulkMigration) -> None:
        known = self._known(bulk)
        for entry in bulk.entries:
            migration = known.get(entry.migration_ids[-1]) if entry.migration_ids else None
            if entry.state is EntryState.MOVING and migration is not None and may_cancel(migration):
                try:
                    await self._migrations.cancel(migration.id, None, Once(self._records.store, "", "", self._now()))
                except StateConflict as late:
                    self._log.info("past its commit", migration_id=migration.id, why=late.message)

    # -- what is known -------------------------------------------------------------------------------------

    def _bulk(self, bulk_id: str) -> BulkMigration:
        return self._records.find(BULK_MIGRATIONS, bulk_id).record

    def _vms(self, bulk: BulkMigration) -> dict[str, Vm]:
        found = ((entry.vm_id, self._records.get(VMS, entry.vm_id)) for entry in bulk.entries)
        return {vm_id: stored.record for vm_id, stored in found if stored is not None}

    def _known(self, bulk: BulkMigration) -> dict[str, Migration]:
        """By id: the last migration of each entry, and those that hold its VMs."""
        ids = [entry.migration_ids[-1] for entry in bulk.entries if entry.migration_ids]
        ids += [vm.migration_id for vm in self._vms(bulk).values() if vm.migration_id]
        found = (self._records.get(MIGRATIONS, one) for one in ids)
        return {stored.record.id: stored.record for stored in found if stored is not None}

    def _migrating(self) -> list[Migration]:
        """Those that have not ended, whoever began them: each holds its VM."""
        held = (stored.record.migration_id for stored in self._records.all(VMS))
        found = (self._records.get(MIGRATIONS, one) for one in held if one)
        return [stored.record for stored in found if stored is not None and not is_final(stored.record)]

    def _now(self) -> datetime.datetime:
        return self._clock.wall()


class _Noting:
    """Writes a move into its bulk migration's entry in the transaction that records the move."""

    def __init__(self, records: Records, bulk_id: str, clock: Clock) -> None:
        self._records = records
        self._bulk_id = bulk_id
        self._clock = clock

    def note(self, record: Migration, status: int, revision: int = 0) -> tuple[Write, ...]:  # noqa: ARG002 (Beside)
        """:raise StateConflict: it was paused or cancelled meanwhile, or the VM moves already."""
        stored = self._records.find(BULK_MIGRATIONS, self._bulk_id)
        new = model.began(stored.record, record.vm_id, record.id, record.target_node, self._clock.wall())
        return (update(BULK_MIGRATIONS, stored, new),)

    async def is_used(self) -> bool:
        return False


def _is_news(change: Seen) -> bool:
    """Whether a VM came free, or a migration began or ended; not each figure of its progress."""
    if change.kind is MIGRATIONS:
        return change.now is None or change.before is None or is_final(change.now)
    if change.kind is not VMS or change.now is None or change.before is None:
        return change.kind is VMS
    old, new = change.before, change.now
    return bool(old.migration_id != new.migration_id or old.task != new.task or old.node_id != new.node_id)


def _moving(bulk: BulkMigration) -> list[str]:
    """The migrations of its entries that are under way."""
    return [one.migration_ids[-1] for one in bulk.entries if one.state is EntryState.MOVING]


def _waiting(bulk: BulkMigration, held: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those of the held entries that still wait as they did."""
    waits = {entry.vm_id for entry in bulk.entries if entry.state is EntryState.WAITING}
    return {vm_id: entry for vm_id, entry in held.items() if vm_id in waits}
