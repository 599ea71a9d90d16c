"""Has done what snapshot records say is under way, and records what came of it.

Verbs are idempotent and everything is in the record, so a restarted server continues where this one died. Work whose
VM has been given another task (a forced stop) is called off.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Sequence

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.errands import Errands
from novacron.control.images.distribution import Distribution
from novacron.control.images.service import ImageService
from novacron.control.link import Agents
from novacron.control.orders import epoch_of
from novacron.control.snapshots import decide, lookup
from novacron.control.snapshots.decide import Action
from novacron.control.store.kinds import IMAGES, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import Records, Seen, Write, remove, update
from novacron.control.store.shelf import Stored
from novacron.errors import PASSING, CompareFailed, NotFound, NovaCronError
from novacron.model.image import DiskFormat, FileRole, ImageFile
from novacron.model.machine import MachineReport
from novacron.model.snapshot import Consistency, Snapshot
from novacron.model.vm import Vm, running_protection
from novacron.wire import snapshot as wire

DISKS_DEADLINE_S = 120.0
MEMORY_DEADLINE_S = 1800.0
EXPORT_DEADLINE_S = 6 * 3600.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0

_Change = Callable[[Snapshot, Vm], tuple[Snapshot, Vm]]


class SnapshotWorker:
    """`run` until cancelled; the work on each snapshot is a task of its own."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        images: ImageService,
        clock: Clock,
        distribution: Distribution | None = None,
    ) -> None:
        self._records = records
        self._agents = agents
        self._images = images
        self._distribution = distribution or Distribution(records, agents)
        self._clock = clock
        self._errands = Errands[None]("snapshot", self._again)
        self._log = structlog.get_logger("snapshots")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            async with self._errands:
                async for stored in breathing(self._records.all(SNAPSHOTS)):
                    self._again(stored.record.id)
                await asyncio.Event().wait()
        finally:
            stop()

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is SNAPSHOTS and change.now is not None:
                self._consider(change.now)
            elif change.kind is VMS and (change.now is None or _task_of(change.now) != _task_of(change.before)):
                for stored in self._records.of_vm(SNAPSHOTS, _id_of(change)):
                    self._consider(stored.record)

    def _consider(self, snapshot: Snapshot) -> None:
        action = self._next(snapshot)
        if action in (Action.GIVE_UP, Action.FORGET):
            self._errands.call_off(snapshot.id)  # its end calls us again
        if action is not None:
            self._errands.begin(snapshot.id, None, lambda: self._work(snapshot.id))

    def _again(self, snapshot_id: str) -> None:
        stored = self._records.get(SNAPSHOTS, snapshot_id)
        if stored is not None:
            self._consider(stored.record)

    def _next(self, snapshot: Snapshot) -> Action | None:
        vm = self._records.get(VMS, snapshot.vm_id)
        return decide.next_action(snapshot, vm.record if vm else None)

    async def _work(self, snapshot_id: str) -> None:
        """Act until nothing is under way with it."""
        retry_s = FIRST_RETRY_S
        while (stored := self._records.get(SNAPSHOTS, snapshot_id)) is not None:
            action = self._next(stored.record)
            if action is None:
                return
            try:
                if action is Action.WAIT:
                    await self._clock.sleep(LAST_RETRY_S)
                else:
                    await self._attempt(stored.record, action)
                retry_s = FIRST_RETRY_S
            except CompareFailed:
                await self._records.refresh()
            except PASSING as passing:
                self._log.info("will try again", snapshot=snapshot_id, action=action.value, why=passing.message)
                await self._clock.sleep(retry_s)
                retry_s = min(retry_s * 2, LAST_RETRY_S)
            except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not hold a VM for ever)
                self._log.exception("work on a snapshot broke; trying again", snapshot=snapshot_id)
                await self._clock.sleep(LAST_RETRY_S)

    async def _attempt(self, snapshot: Snapshot, action: Action) -> None:
        try:
            await self._act(snapshot, action)
        except PASSING:
            raise
        except NovaCronError as error:
            self._log.warning("failed", snapshot=snapshot.id, action=action.value, why=error.message)
            await self._fail(snapshot.id, error)

    async def _act(self, snapshot: Snapshot, action: Action) -> None:
        match action:
            case Action.FORGET:
                await self._records.commit(remove(SNAPSHOTS, self._records.find(SNAPSHOTS, snapshot.id)))
            case Action.GIVE_UP:
                await self._fail(snapshot.id, decide.pushed_aside(snapshot))
            case Action.TAKE:
                await self._take(snapshot)
            case Action.REVERT:
                await self._revert(snapshot)
            case Action.DELETE:
                await self._delete(snapshot)
            case _:
                await self._export(snapshot)

    # -- what is done ----------------------------------------------------------------------------------------

    async def _take(self, snapshot: Snapshot) -> None:
        vm = self._vm(snapshot).record
        memory = snapshot.consistency is Consistency.MEMORY
        verb = wire.SnapshotTake(
            vm_id=vm.id,
            generation=vm.generation,
            spec=lookup.told(self._records, vm, snapshot.spec),
            snapshot_id=snapshot.id,
            memory=memory,
            quiesce=snapshot.consistency is Consistency.QUIESCED,
        )
        deadline_s = MEMORY_DEADLINE_S if memory else DISKS_DEADLINE_S
        try:
            answer = await self._agents.call(vm.node_id, verb, wire.SnapshotTaken, deadline_s=deadline_s)
        except NovaCronError as error:
            if not decide.wants_no_agent(snapshot, error):
                raise
            why = next((reason.message for reason in error.reasons), error.message)
            await self._records.change(SNAPSHOTS, snapshot.id, lambda now: decide.without_quiesce(now, why))
            return
        await self._both(snapshot, lambda one, held: decide.taken(one, held, answer, self._now()))

    async def _revert(self, snapshot: Snapshot) -> None:
        vm = self._vm(snapshot).record
        memory = snapshot.consistency is Consistency.MEMORY
        wished = msgspec.structs.replace(decide.spec_after(vm, snapshot), ha=running_protection(vm))
        spec, epoch = lookup.told(self._records, vm, wished), epoch_of(self._records, vm.node_id)
        if memory:
            await self._distribution.bring_all(vm.node_id, spec)
        verb = wire.SnapshotRevert(
            vm_id=vm.id,
            generation=vm.generation,
            spec=spec,
            snapshot_id=snapshot.id,
            memory=memory,
            task_id=snapshot.task_id,
            epoch=epoch,
        )
        report = await self._agents.call(vm.node_id, verb, MachineReport, deadline_s=MEMORY_DEADLINE_S)
        await self._both(snapshot, lambda one, held: decide.reverted(one, held, report, self._now()), sizes=True)

    async def _delete(self, snapshot: Snapshot) -> None:
        vm = self._vm(snapshot).record
        verb = wire.SnapshotDelete(
            vm_id=vm.id,
            generation=vm.generation,
            spec=lookup.told(self._records, vm, snapshot.spec),
            snapshot_id=snapshot.id,
        )
        await self._agents.call(vm.node_id, verb, type(None), deadline_s=MEMORY_DEADLINE_S)
        stored, held = self._records.find(SNAPSHOTS, snapshot.id), self._vm(snapshot)
        children = [one for one in self._records.of_vm(SNAPSHOTS, vm.id) if one.record.parent_id == snapshot.id]
        adopted, free = decide.gone(stored.record, held.record, [one.record for one in children], self._now())
        writes = [update(SNAPSHOTS, old, new) for old, new in zip(children, adopted, strict=True)]
        await self._records.commit(remove(SNAPSHOTS, stored), update(VMS, held, free), *writes)

    async def _export(self, snapshot: Snapshot) -> None:
        vm, export = self._vm(snapshot).record, snapshot.export
        if export is None or self._records.get(IMAGES, export.image_id) is None:
            raise NotFound("the image it was to become was deleted")
        verb = wire.SnapshotExport(
            vm_id=vm.id,
            generation=vm.generation,
            spec=lookup.told(self._records, vm, snapshot.spec),
            snapshot_id=snapshot.id,
            volume_id=export.volume_id,
        )
        made = await self._agents.call(vm.node_id, verb, wire.SnapshotExported, deadline_s=EXPORT_DEADLINE_S)
        file = ImageFile(
            role=FileRole.DISK,
            digest=made.digest,
            size_bytes=made.size_bytes,
            format=DiskFormat.QCOW2,
            virtual_size_bytes=made.virtual_size_bytes,
        )
        await self._images.complete(export.image_id, file)
        await self._records.change(SNAPSHOTS, snapshot.id, lambda now: decide.exported(now, self._now()))

    async def _fail(self, snapshot_id: str, error: NovaCronError) -> None:
        """Record why it came to nothing, let the VM go, and forget an image that gets no file."""
        stored = self._records.find(SNAPSHOTS, snapshot_id)
        vm = self._records.get(VMS, stored.record.vm_id)
        snapshot, held = decide.failed(stored.record, vm.record if vm else None, error, self._now())
        writes = [update(SNAPSHOTS, stored, snapshot)]
        if vm is not None and held is not None and held != vm.record:
            writes.append(update(VMS, vm, held))
        image = self._records.get(IMAGES, stored.record.export.image_id) if stored.record.export else None
        if image is not None and not image.record.files:
            writes.append(remove(IMAGES, image))
        await self._records.commit(*writes)

    # -- parts -----------------------------------------------------------------------------------------------

    async def _both(self, snapshot: Snapshot, change: _Change, *, sizes: bool = False) -> None:
        """Write the snapshot and its VM in one transaction. :raise CompareFailed: look again, the work is done."""
        stored, vm = self._records.find(SNAPSHOTS, snapshot.id), self._vm(snapshot)
        if vm.record.task is None or vm.record.task.id != snapshot.task_id:
            return  # other work has been forced upon the VM meanwhile: that is looked at next
        new, held = change(stored.record, vm.record)
        volumes = self._resized(held) if sizes else []
        await self._records.commit(update(SNAPSHOTS, stored, new), update(VMS, vm, held), *volumes)

    def _resized(self, vm: Vm) -> list[Write]:
        """Volumes that are as large again as they were."""
        writes = []
        for disk in vm.spec.disks:
            stored = self._records.get(VOLUMES, disk.volume_id)
            if stored is not None and stored.record.size_bytes != disk.size_bytes:
                new = msgspec.structs.replace(stored.record, size_bytes=disk.size_bytes, updated_at=self._now())
                writes.append(update(VOLUMES, stored, new))
        return writes

    def _vm(self, snapshot: Snapshot) -> Stored[Vm]:
        return self._records.find(VMS, snapshot.vm_id)

    def _now(self) -> datetime.datetime:
        return self._clock.wall()


def _id_of(change: Seen) -> str:
    vm: Vm = change.before if change.now is None else change.now  # type: ignore[assignment]
    return vm.id


def _task_of(vm: Vm | None) -> str:
    return vm.task.id if vm is not None and vm.task is not None else ""
