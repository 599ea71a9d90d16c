"""Works off schedules: looks at the clock now and then, and asks for the snapshots and deletions that are due."""

from __future__ import annotations

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.snapshots import timing
from novacron.control.snapshots.service import SnapshotService
from novacron.control.store.kinds import SCHEDULES, SNAPSHOTS, VMS
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.machine import ENDED, MachineStatus
from novacron.model.snapshot import Schedule
from novacron.model.vm import Vm, running_spec, status_of
from novacron.wire.rest.snapshots import SnapshotCreate

LOOK_S = 10.0
NO_AGENT = "crash-consistent: the VM has no guest agent"


class Keeper:
    """`run` until cancelled. A VM that is busy, or a node away, is asked again at the next look."""

    def __init__(self, records: Records, snapshots: SnapshotService, clock: Clock) -> None:
        self._records = records
        self._snapshots = snapshots
        self._clock = clock
        self._told: dict[tuple[str, str], str] = {}  # (schedule, what) → the refusal that was logged last
        self._log = structlog.get_logger("schedules")

    async def run(self) -> None:
        while True:
            for stored in self._records.all(SCHEDULES):
                try:
                    await self._work_off(stored.record)
                except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not end the other schedules)
                    self._log.exception("a schedule broke; trying again", schedule=stored.record.name)
            await self._clock.sleep(LOOK_S)

    async def _work_off(self, schedule: Schedule) -> None:
        now = self._clock.wall()
        vms = [stored.record for stored in self._records.all(VMS)]
        snapshots = [stored.record for stored in self._records.all(SNAPSHOTS)]
        due = timing.due(schedule, vms, snapshots, now)
        began = False
        for vm_id in due.take:
            began |= await self._take(schedule, vm_id)
        for snapshot_id in due.delete:
            await self._delete(schedule, snapshot_id)
        if began:

            def note(record: Schedule) -> Schedule:
                return msgspec.structs.replace(record, last_at=now)

            await self._records.change(SCHEDULES, schedule.id, note)

    async def _take(self, schedule: Schedule, vm_id: str) -> bool:
        stored = self._records.get(VMS, vm_id)
        if stored is None:
            return False
        asked, by = _asked(schedule, stored.record), f"schedule {schedule.name}"
        try:
            await self._snapshots.create(vm_id, asked, by, schedule_id=schedule.id)
        except NovaCronError as refused:
            self._tell(schedule, vm_id, refused)
            return False
        self._told.pop((schedule.id, vm_id), None)
        return True

    async def _delete(self, schedule: Schedule, snapshot_id: str) -> None:
        try:
            await self._snapshots.delete(snapshot_id, f"schedule {schedule.name}", None)
        except NovaCronError as refused:
            self._tell(schedule, snapshot_id, refused)
        else:
            self._told.pop((schedule.id, snapshot_id), None)

    def _tell(self, schedule: Schedule, what: str, refused: NovaCronError) -> None:
        """Once for each new reason: it is asked again at every look."""
        if self._told.get((schedule.id, what)) != refused.code:
            self._told[schedule.id, what] = refused.code
            self._log.info("not now", schedule=schedule.name, subject=what, why=refused.message)


def _asked(schedule: Schedule, vm: Vm) -> SnapshotCreate:
    """As far as this VM can be kept so now."""
    runs = status_of(vm) not in ENDED
    memory = schedule.memory and runs
    wants_quiet = schedule.quiesce and not memory and status_of(vm) is MachineStatus.RUNNING
    quiesce = wants_quiet and running_spec(vm).guest_agent
    return SnapshotCreate(
        memory=memory,
        quiesce=quiesce,
        description=NO_AGENT if wants_quiet and not quiesce else "",
        labels={"schedule": schedule.name},
    )
