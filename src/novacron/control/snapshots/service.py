"""Decides what requests about snapshots mean and records it; the worker then has it done.

Each begins in one transaction with the VM's task, which holds the VM: no migration, no adjustment and no other
snapshot meets it, and work that is forced upon the VM pushes it aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Once, Outcome
from novacron.control.pools import quota
from novacron.control.promises import holds_room
from novacron.control.room import Room
from novacron.control.scheduler.filters import roomy
from novacron.control.snapshots import decide
from novacron.control.store.kinds import IMAGES, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import WRITE_TRIES, Records, Write, create, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.control.vms import birth
from novacron.control.vms.asked import Ask
from novacron.errors import Busy, CompareFailed, InvalidInput, NoRoom, Reason, StateConflict
from novacron.model.image import Image, ImageState
from novacron.model.machine import Disk
from novacron.model.snapshot import Consistency, Export, Snapshot, SnapshotState
from novacron.model.vm import TaskKind, Vm, running_spec
from novacron.model.volume import Volume, VolumeTask
from novacron.wire.rest.snapshots import ExportRequest, SnapshotCreate, SnapshotUpdate

Held = frozenset[str] | None
Plan = tuple[Stored[Snapshot], list[Write]]


class SnapshotService:
    """Requests about snapshots, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._naming = asyncio.Lock()

    async def create(
        self,
        vm_ref: str,
        asked: SnapshotCreate,
        by: str,
        held: Held = None,
        once: Once | None = None,
        schedule_id: str = "",
    ) -> Outcome:
        """Record it and hold the VM; it is then being taken (202). held: revisions of the VM.

        :raise NotFound: no such VM. :raise PreconditionFailed
        :raise Conflict: the VM has one of that name, or too many.
        :raise StateConflict, Busy: not now. :raise Unsupported, InvalidInput: this VM cannot be kept so.
        """
        for _ in range(WRITE_TRIES):
            stored = self._records.find(VMS, vm_ref)
            check_match(held, stored)
            vm, ask = stored.record, self._ask(by)
            decide.check_free(vm, "take a snapshot of")
            siblings = [one.record for one in self._records.of_vm(SNAPSHOTS, vm.id)]
            name = asked.name or _name_at(ask, siblings)
            decide.check_new(vm, name, siblings)
            spec = running_spec(vm)
            snapshot = Snapshot(
                id=self._records.new_id(),
                name=name,
                vm_id=vm.id,
                state=SnapshotState.CREATING,
                consistency=decide.wish(vm, memory=asked.memory, quiesce=asked.quiesce),
                spec=spec,
                volumes=tuple(disk.volume_id for disk in spec.disks),
                created_at=ask.now,
                updated_at=ask.now,
                parent_id=vm.snapshot_id,
                description=asked.description,
                labels=asked.labels,
                schedule_id=schedule_id,
                task_id=ask.task_id,
            )
            busy = update(VMS, stored, decide.held(vm, TaskKind.SNAPSHOT, ask))
            note = once.note(snapshot, 202) if once else ()
            revision = await self._try([create(SNAPSHOTS, snapshot), busy, *note], once)
            if revision:
                return Outcome(Stored(snapshot, revision), 202)
        raise _contended(vm_ref)

    async def revert(self, ref: str, by: str, held: Held, once: Once, *, start: bool) -> Outcome:
        """Have the VM go back to it (202): it is ended, and runs on from a snapshot with memory, or is left stopped.

        :raise Conflict: its disks or cards are others now; a reason for each. :raise NoRoom: it is to run, and its
        node has too little left, or its disks were larger then and a quota does not allow it.
        :raise NotFound, StateConflict, Busy, PreconditionFailed
        """

        def plan(stored: Stored[Snapshot], vm: Stored[Vm]) -> tuple[Snapshot, Vm]:
            snapshot, ask = stored.record, self._ask(by)
            decide.check_state(snapshot, "go back to", SnapshotState.READY)
            decide.check_free(vm.record, "revert")
            disks = decide.spec_after(vm.record, snapshot).disks
            quota.check(self._records, self._as_large_as(disks))
            if start or snapshot.consistency is Consistency.MEMORY:
                self._check_room(vm.record, snapshot)
            back = msgspec.structs.replace(
                snapshot,
                state=SnapshotState.REVERTING,
                task_id=ask.task_id,
                start=start,
                problem=None,
                updated_at=ask.now,
            )
            return back, decide.held(vm.record, TaskKind.REVERT, ask)

        async with self._room.turn():
            return await self._begin(ref, held, once, plan)

    async def delete(self, ref: str, by: str, held: Held, once: Once | None = None) -> Outcome:
        """Have it deleted (202), also while its VM runs. What was taken after it becomes its parent's.

        :raise NotFound, StateConflict, Busy, PreconditionFailed
        """

        def plan(stored: Stored[Snapshot], vm: Stored[Vm]) -> tuple[Snapshot, Vm]:
            snapshot, ask = stored.record, self._ask(by)
            decide.check_state(snapshot, "delete", SnapshotState.READY, SnapshotState.ERROR)
            decide.check_free(vm.record, "delete a snapshot of")
            self._check_volumes(vm.record, snapshot)
            self._check_clones(snapshot)
            gone = msgspec.structs.replace(
                snapshot, state=SnapshotState.DELETING, task_id=ask.task_id, problem=None, updated_at=ask.now
            )
            return gone, decide.held(vm.record, TaskKind.SNAPSHOT, ask)

        return await self._begin(ref, held, once, plan)

    async def export(self, ref: str, asked: ExportRequest, held: Held, once: Once) -> Outcome:
        """Make an image of one of its volumes: recorded now (202), ready when its file is there.

        :raise NameTaken: an image has that name. :raise InvalidInput: it has several volumes, or not that one.
        :raise NotFound, StateConflict, Busy, PreconditionFailed
        """
        for _ in range(WRITE_TRIES):
            stored = self._records.find(SNAPSHOTS, ref)
            check_match(held, stored)
            snapshot, now = stored.record, self._clock.wall()
            decide.check_state(snapshot, "export", SnapshotState.READY)
            volume_id = _one_volume(snapshot, asked.volume_id)
            image = Image(
                id=self._records.new_id(),
                name=asked.image,
                state=ImageState.PENDING,
                created_at=now,
                updated_at=now,
                labels=asked.labels,
                description=asked.description or f"snapshot {snapshot.name} of volume {volume_id}",
            )
            export = Export(image_id=image.id, volume_id=volume_id)
            busy = msgspec.structs.replace(
                snapshot, state=SnapshotState.EXPORTING, export=export, problem=None, updated_at=now
            )
            writes = [create(IMAGES, image), update(SNAPSHOTS, stored, busy), *once.note(image, 202)]
            try:
                revision = await self._try(writes, once)
            except CompareFailed as lost:
                await self._records.refuse_taken_name(IMAGES, None, image, lost)
                raise
            if revision:
                return Outcome(Stored(image, revision), 202)
            await self._records.refuse_taken_name(IMAGES, None, image, CompareFailed("others wrote first"))
        raise _contended(ref)

    async def update(self, ref: str, asked: SnapshotUpdate, held: Held) -> Outcome:
        """Change its words. :raise NotFound, PreconditionFailed :raise Conflict: its VM has one of that name."""
        named = asked.model_dump(exclude_none=True)
        async with self._naming:
            for _ in range(WRITE_TRIES):
                stored = self._records.find(SNAPSHOTS, ref)
                check_match(held, stored)
                new = msgspec.structs.replace(stored.record, **named)
                if new == stored.record:
                    return Outcome(stored, 200)
                new = msgspec.structs.replace(new, updated_at=self._clock.wall())
                vm = self._records.find(VMS, new.vm_id)
                siblings = [one.record for one in self._records.of_vm(SNAPSHOTS, new.vm_id) if one.record.id != new.id]
                if new.name != stored.record.name:
                    decide.check_new(vm.record, new.name, siblings)
                revision = await self._try([update(SNAPSHOTS, stored, new), unchanged(VMS, vm)], None)
                if revision:
                    return Outcome(Stored(new, revision), 200)
        raise _contended(ref)

    # -- parts -----------------------------------------------------------------------------------------------

    async def _begin(
        self,
        ref: str,
        held: Held,
        once: Once | None,
        plan: Callable[[Stored[Snapshot], Stored[Vm]], tuple[Snapshot, Vm]],
    ) -> Outcome:
        for _ in range(WRITE_TRIES):
            ticket = await self._room.ticket()
            stored = self._records.find(SNAPSHOTS, ref)
            check_match(held, stored)
            vm = self._records.find(VMS, stored.record.vm_id)
            snapshot, busy = plan(stored, vm)
            note = once.note(snapshot, 202) if once else ()
            writes = [update(SNAPSHOTS, stored, snapshot), update(VMS, vm, busy), ticket, *note]
            revision = await self._try(writes, once)
            if revision:
                return Outcome(Stored(snapshot, revision), 202)
        raise _contended(ref)

    async def _try(self, writes: list[Write], once: Once | None) -> int:
        """The revision; 0: somebody wrote first, look again. :raise CompareFailed: the key was used meanwhile."""
        try:
            return await self._records.commit(*writes)
        except CompareFailed:
            if once and await once.is_used():
                raise
            await self._records.refresh()
            return 0

    def _ask(self, by: str) -> Ask:
        return Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall())

    def _check_room(self, vm: Vm, snapshot: Snapshot) -> None:
        """Whether its node has what the VM will take then. :raise NoRoom"""
        need = birth.need_of(snapshot.spec, "")
        if holds_room(vm):
            runs = running_spec(vm)
            memory_mib, vcpus = max(runs.memory_mib, vm.spec.memory_mib), max(runs.vcpus, vm.spec.vcpus)
            need = msgspec.structs.replace(
                need, memory_mib=max(0, need.memory_mib - memory_mib), vcpus=max(0, need.vcpus - vcpus)
            )
        mine = next((one for one in self._room.candidates() if one.node.id == vm.node_id), None)
        reason = roomy(need, mine, self._room.limits) if mine and (need.memory_mib or need.vcpus) else None
        if reason is not None:
            raise NoRoom(f"{vm.name} cannot run from snapshot {snapshot.name}: {reason.message}", [reason])

    def _as_large_as(self, disks: Iterable[Disk]) -> list[Volume]:
        """The volumes of the disks, of the disks' size."""
        found = ((self._records.get(VOLUMES, disk.volume_id), disk.size_bytes) for disk in disks)
        return [msgspec.structs.replace(one.record, size_bytes=size_bytes) for one, size_bytes in found if one]

    def _check_volumes(self, vm: Vm, snapshot: Snapshot) -> None:
        """:raise StateConflict: one of its volumes is another VM's now, whose machine may have it open."""
        for stored in self._records.all(VMS):
            other = stored.record
            spec = running_spec(other)
            taken = [disk.volume_id for disk in spec.disks if disk.volume_id in snapshot.volumes]
            if other.id != vm.id and taken:
                raise StateConflict.of(f"volume {taken[0]}", f"attached to {other.name}", ("detached",), "clear")

    def _check_clones(self, snapshot: Snapshot) -> None:
        """:raise Busy: a volume is being cloned from it."""
        for stored in self._records.all(VOLUMES):
            volume = stored.record
            if volume.task is VolumeTask.CLONE and volume.source_snapshot_id == snapshot.id:
                reason = Reason(
                    "snapshot.being_cloned", "a volume is made from it", volume.name, "wait until it is there"
                )
                raise Busy(f"cannot delete snapshot {snapshot.name}: volume {volume.name} is made from it", [reason])


def _one_volume(snapshot: Snapshot, wanted: str | None) -> str:
    if wanted is None and len(snapshot.volumes) == 1:
        return snapshot.volumes[0]
    if wanted is None or wanted not in snapshot.volumes:
        raise InvalidInput.field(
            "volume_id", "must name one volume of the snapshot", f"give one of {', '.join(snapshot.volumes)}"
        )
    return wanted


def _name_at(ask: Ask, siblings: list[Snapshot]) -> str:
    """A name from the time, that no sibling has."""
    taken = {one.name for one in siblings}
    name = f"{ask.now:%Y%m%d-%H%M%S}"
    return next(one for one in (name, *(f"{name}-{number}" for number in range(2, 1000))) if one not in taken)


def _contended(ref: str) -> CompareFailed:
    return CompareFailed(f"{ref!r} is being changed by others: try again")
