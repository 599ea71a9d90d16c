"""Decides what requests about volumes mean and records it; the worker then has it done."""

from __future__ import annotations

from typing import Any

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.once import Change, Once, Outcome
from novacron.control.pools import quota
from novacron.control.pools.reach import free_unit
from novacron.control.room import Room
from novacron.control.store.kinds import NODES, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import WRITE_TRIES, Records, Write, create, update
from novacron.control.store.shelf import Stored
from novacron.control.vms.asked import Ask
from novacron.control.vms.disks import reshaped
from novacron.control.volumes.origin import Origin, Origins
from novacron.errors import CompareFailed, Conflict, InvalidInput, NotFound, Reason
from novacron.model.machine import Qos
from novacron.model.volume import Volume, VolumeTask
from novacron.wire.rest.volumes import VolumeCreate, VolumeUpdate

MAX_NAMED = 10  # users named in a refusal


class VolumeService:
    """Requests about volumes, answered from the records alone."""

    def __init__(self, records: Records, room: Room, clock: Clock, default_pool_id: str) -> None:
        self._records = records
        self._room = room
        self._clock = clock
        self._origins = Origins(records, default_pool_id)

    async def create(self, asked: VolumeCreate, once: Once) -> Outcome:
        """Record a volume; it is being made then (202).

        :raise InvalidInput: it names what is not there, or is smaller than what it is made from.
        :raise StateConflict, Conflict: what it is made from cannot be copied now. :raise NameTaken
        :raise NoRoom: no node reaches its pool, with a reason for each; or a quota does not allow it.
        """
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()  # its pool, image and source cannot go meanwhile
                volume = self._newborn(asked, self._origins.of(asked))
                quota.check(self._records, [volume])
                try:
                    revision = await self._records.commit(create(VOLUMES, volume), ticket, *once.note(volume, 202))
                except CompareFailed as lost:
                    if await once.is_used():
                        raise
                    await self._records.refuse_taken_name(VOLUMES, None, volume, lost)
                    await self._records.refresh()
                    continue
                return Outcome(Stored(volume, revision), 202)
        raise CompareFailed("others kept changing the pools: try again")

    async def update(self, ref: str, asked: VolumeUpdate, by: str, held: frozenset[str] | None) -> Outcome:
        """Change what was named; size and limits also of the machine that runs with it (202).

        The size asked for again, after growing failed, has it tried again.

        :raise InvalidInput: it would become smaller. :raise NotFound, NameTaken, PreconditionFailed
        :raise StateConflict, Busy: it, or the VM it is attached to, cannot be changed now.
        :raise NoRoom: it would grow, and a quota does not allow it.
        """
        ask = Ask(task_id=self._records.new_id(), by=by, now=self._clock.wall())
        if asked.size_bytes is None:
            return await self._update(ref, asked, ask, held)
        async with self._room.turn():  # what it grows by is promised to no other meanwhile
            return await self._update(ref, asked, ask, held)

    async def _update(self, ref: str, asked: VolumeUpdate, ask: Ask, held: frozenset[str] | None) -> Outcome:
        for _ in range(WRITE_TRIES):
            ticket = [await self._room.ticket()] if asked.size_bytes is not None else []
            stored = self._records.find(VOLUMES, ref)
            check_match(held, stored)
            new = changed(stored.record, asked)
            if new == stored.record:
                return Outcome(stored, 200)
            new = msgspec.structs.replace(new, updated_at=ask.now)
            quota.check(self._records, [new])
            beside = self._beside(stored.record, new, ask)
            try:
                revision = await self._records.commit(update(VOLUMES, stored, new), *beside, *ticket)
            except CompareFailed as lost:
                await self._records.refuse_taken_name(VOLUMES, stored.record, new, lost)
                await self._records.refresh()
                continue
            return Outcome(Stored(new, revision), 202 if new.task or beside else 200)
        raise CompareFailed(f"volume {ref!r} is being changed by others: try again")

    async def delete(self, ref: str, held: frozenset[str] | None) -> Outcome:
        """Have it deleted, then its record. What is still being made of it is left off.

        :raise Conflict: a VM, a snapshot or a clone under way needs it; a reason for each.
        :raise NotFound, PreconditionFailed
        """

        def change(volume: Volume) -> Volume | None:
            if volume.task is VolumeTask.DELETE:
                return None
            self._check_unneeded(volume)
            now = self._clock.wall()
            return msgspec.structs.replace(volume, task=VolumeTask.DELETE, problem=None, updated_at=now)

        async with self._room.turn():  # nothing is being made from it meanwhile
            written = Change(self._records, VOLUMES, ref, held, None, self._room.ticket)
            return await written.write(change, under_way=lambda volume: volume.task is not None)

    # -- parts ---------------------------------------------------------------------------------------------

    def _newborn(self, asked: VolumeCreate, origin: Origin) -> Volume:
        now, volume_id = self._clock.wall(), self._records.new_id()
        return Volume(
            id=volume_id,
            name=asked.name,
            description=asked.description,
            labels=asked.labels,
            pool_id=origin.pool.id,
            unit=free_unit(self._records, origin.pool, volume_id),
            node_id=self._node_for(asked, origin),
            size_bytes=origin.size_bytes,
            backing_digest=origin.backing_digest,
            source_volume_id=origin.volume_id,
            source_snapshot_id=origin.snapshot_id,
            qos=Qos(**asked.qos.model_dump()),
            task=VolumeTask.CLONE if origin.volume_id else VolumeTask.CREATE,
            created_at=now,
            updated_at=now,
        )

    def _node_for(self, asked: VolumeCreate, origin: Origin) -> str:
        if asked.node is None:
            return self._origins.node_for(origin)
        try:
            node = self._records.find(NODES, asked.node).record
        except NotFound as missing:
            raise InvalidInput.field("node", missing.message, "novacron node list shows what there is") from missing
        return self._origins.node_for(origin, node)

    def _beside(self, old: Volume, new: Volume, ask: Ask) -> tuple[Write, ...]:
        """What the change means for the VM it is attached to."""
        stored = self._records.get(VMS, old.vm_id) if old.vm_id else None
        if stored is None or (old.size_bytes, old.qos, old.task) == (new.size_bytes, new.qos, new.task):
            return ()
        vm = reshaped(stored.record, new, ask)
        return (update(VMS, stored, vm),) if vm != stored.record else ()

    def _check_unneeded(self, volume: Volume) -> None:
        if volume.vm_id:
            name = self._records.name(VMS, volume.vm_id)
            reason = Reason(
                "volume.attached", "it belongs to a VM", name, f"novacron volume detach {volume.name}, or delete the VM"
            )
            raise Conflict(f"cannot delete volume {volume.name}: it belongs to VM {name}", [reason])
        self._refuse(
            volume,
            [
                Reason("volume.cloning", "a clone is being made of it", one.name, "wait until the clone is available")
                for one in _all(self._records, VOLUMES)
                if one.source_volume_id == volume.id and one.task is VolumeTask.CLONE
            ]
            + [
                Reason("volume.in_snapshot", "a snapshot holds it", one.name, "delete the snapshot first")
                for one in _all(self._records, SNAPSHOTS)
                if volume.id in one.volumes
            ],
        )

    def _refuse(self, volume: Volume, reasons: list[Reason]) -> None:
        if reasons:
            raise Conflict(f"cannot delete volume {volume.name}: {reasons[0].message}", reasons[:MAX_NAMED])


def changed(volume: Volume, asked: VolumeUpdate) -> Volume:
    """The volume as asked for; the same when nothing changes.

    :raise InvalidInput: it would become smaller. :raise Conflict: it is being deleted, or is not there yet.
    """
    if volume.task is VolumeTask.DELETE:
        reason = Reason("state.conflict", "it is being deleted", volume.name)
        raise Conflict(f"cannot change volume {volume.name}: it is being deleted", [reason])
    named: dict[str, Any] = asked.model_dump(exclude_none=True, exclude={"qos", "size_bytes"})
    if asked.qos is not None:
        named["qos"] = Qos(**asked.qos.model_dump())
    size = asked.size_bytes
    if size is not None and size < volume.size_bytes:
        raise InvalidInput.field(
            "size_bytes", f"is less than it has, {volume.size_bytes} bytes", "volumes only grow: make a new one"
        )
    if size is not None and (size > volume.size_bytes or volume.problem is not None):
        if volume.task in (VolumeTask.CREATE, VolumeTask.CLONE):
            reason = Reason("volume.not_ready", "it is being made", volume.name, "wait until it is available")
            raise Conflict(f"cannot grow volume {volume.name}: it is being made", [reason])
        named |= {"size_bytes": size, "task": VolumeTask.GROW, "problem": None}
    return msgspec.structs.replace(volume, **named)


def _all(records: Records, kind: Any) -> list[Any]:
    return [stored.record for stored in records.all(kind)]
