"""The verbs about snapshots: of a machine that runs its driver is asked, of one at rest the pools of its volumes.

taken       in all volumes or in none; what lies in pools without qcow2 is taken while the guest stands still
reverted    the machine is ended first; `restored` in its holding says which asking is done, so that a repeated
            one does not throw away what the machine did since
exported    to a file of its own, which is kept among the default pool's images under its digest
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Driver, Launch
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.provisioner import Provisioner
from novacron.agent.storage.depot import Depot
from novacron.agent.undo import Step, Undo
from novacron.errors import Busy, InvalidInput, NotFound, Reason, StateConflict
from novacron.model.identity import is_id
from novacron.model.machine import ENDED, Disk, MachineReport, MachineSpec, StopMode
from novacron.model.snapshot import Consistency
from novacron.wire import agent, snapshot

PIECE_BYTES = 1 << 20
STOP_DEADLINE_S = 10.0


class Snapshots:
    """Verbs take their wire struct and answer its result. `exports`: a directory for files on their way."""

    def __init__(
        self, ledger: Ledger, provisioner: Provisioner, depot: Depot, driver: Driver, machines: Machines, exports: Path
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._depot = depot
        self._driver = driver
        self._machines = machines
        self._exports = exports

    async def take(self, args: snapshot.SnapshotTake) -> snapshot.SnapshotTaken:
        """Asked again: the same snapshot, made whole if it was not.

        :raise StateConflict: memory of a machine that does not run. :raise Unsupported: its disks, or its guest,
        cannot do what is asked. After a failure there is no snapshot; after a cancellation there may be parts, which
        asking again makes whole and `delete` takes away.
        """
        spec = args.spec
        _check(args.snapshot_id)
        async with self._ledger.turn(spec.vm_id):
            await self._own(spec, args.generation, "take a snapshot of")
            if self._lives(spec.vm_id):
                return await self._of_running(args)
            if args.memory or args.quiesce:
                raise StateConflict.of(f"machine {spec.vm_id}", "stopped", ("running",), "take such a snapshot of")
            async with Undo() as undo:
                for disk in spec.disks:
                    pool = self._depot.pool_of(spec, disk)
                    await self._provisioner.volume(spec, disk)
                    undo.add(f"the snapshot of {disk.volume_id}", self._forgetting(spec, disk, args.snapshot_id))
                    await pool.take_snapshot(disk.volume_id, args.snapshot_id)
                undo.success()
        return snapshot.SnapshotTaken(consistency=Consistency.STOPPED)

    async def revert(self, args: snapshot.SnapshotRevert) -> MachineReport:
        """End the machine and make its disks as they were; with memory it runs on from that moment.

        :raise NotFound: a volume has no such snapshot. :raise Unsupported: it holds no memory.
        After a failure the machine does not run; some disks may be reverted: ask again.
        """
        spec = args.spec
        _check(args.snapshot_id)
        self._machines.check(spec.vm_id, args.generation, args.epoch, args.generation)
        if not self._is_done(spec.vm_id, args.task_id):
            ending = agent.Stop(
                vm_id=spec.vm_id, generation=args.generation, mode=StopMode.FORCED, deadline_s=STOP_DEADLINE_S
            )
            await self._machines.stop(ending)
        async with self._ledger.turn(spec.vm_id):
            holding = await self._own(spec, args.generation, "revert")
            if not self._is_done(spec.vm_id, args.task_id):
                if self._lives(spec.vm_id):
                    raise StateConflict.of(f"machine {spec.vm_id}", "running", ("stopped",), "revert")
                await self._go_back(args)
                holding = self._ledger.get(spec.vm_id) or holding
                await self._ledger.put(msgspec.structs.replace(holding, restored=args.task_id))
        return self._machines.report_or_absent(spec.vm_id, args.generation)

    async def delete(self, args: snapshot.SnapshotDelete) -> None:
        """Absent, or a volume gone: fine. The disks and the other snapshots keep their content."""
        spec = args.spec
        _check(args.snapshot_id)
        async with self._ledger.turn(spec.vm_id):
            holding = await self._own(spec, args.generation, "delete a snapshot of")
            left = spec
            if self._lives(spec.vm_id):
                await self._driver.delete_snapshot(spec.vm_id, args.snapshot_id)
                left = await self._left_by_driver(holding.spec or spec, spec)
            for disk in left.disks:
                await self._forgetting(left, disk, args.snapshot_id)()

    async def export(self, args: snapshot.SnapshotExport) -> snapshot.SnapshotExported:
        """:raise NotFound: no such volume, or it has no such snapshot. After a failure there is no file."""
        disk = next((one for one in args.spec.disks if one.volume_id == args.volume_id), None)
        if disk is None:
            raise InvalidInput.field("volume_id", "the snapshot has no such volume", "name one of its volumes")
        pool = self._depot.pool_of(args.spec, disk)
        await asyncio.to_thread(self._exports.mkdir, mode=0o700, parents=True, exist_ok=True)
        file = self._exports / f"{_check(args.snapshot_id)}.{uuid.uuid4()}"
        try:
            await pool.export_snapshot(disk.volume_id, args.snapshot_id, file)
            digest, size_bytes = await asyncio.to_thread(_digest_of, file)
            await self._depot.own.keep_image(digest, file)
        finally:
            await asyncio.to_thread(file.unlink, missing_ok=True)
        return snapshot.SnapshotExported(digest=digest, size_bytes=size_bytes, virtual_size_bytes=disk.size_bytes)

    async def sweep(self) -> None:
        """Once, at the agent's start: what an export left that was cut off."""

        def clear() -> None:
            for left in self._exports.iterdir() if self._exports.exists() else ():
                left.unlink(missing_ok=True)

        await asyncio.to_thread(clear)

    # -- parts -----------------------------------------------------------------------------------------------

    async def _of_running(self, args: snapshot.SnapshotTake) -> snapshot.SnapshotTaken:
        spec = args.spec
        others = await self._not_qcow2(spec)
        async with Undo() as undo:

            async def beside() -> None:
                for disk in others:
                    undo.add(f"the snapshot of {disk.volume_id}", self._forgetting(spec, disk, args.snapshot_id))
                    await self._depot.pool_of(spec, disk).take_snapshot(disk.volume_id, args.snapshot_id)

            try:
                taken = await self._driver.take_snapshot(
                    spec.vm_id,
                    args.snapshot_id,
                    memory=args.memory,
                    quiesce=args.quiesce,
                    beside=beside if others else None,
                )
            except asyncio.CancelledError:
                undo.success()  # what the hypervisor writes cannot be called back; who asked knows what to do
                raise
            undo.success()
        return snapshot.SnapshotTaken(
            consistency=taken.consistency, memory_bytes=taken.memory_bytes, stood_still_ms=taken.stood_still_ms
        )

    async def _not_qcow2(self, spec: MachineSpec) -> list[Disk]:
        """Disks whose snapshots are their pool's affair also while the machine runs."""
        return [disk for disk in spec.disks if (await self._provisioner.volume(spec, disk)).format != "qcow2"]

    async def _left_by_driver(self, runs: MachineSpec, spec: MachineSpec) -> MachineSpec:
        """The spec with those disks alone that the driver knows nothing of: not of what runs, or not qcow2."""
        its_own = {disk.volume_id for disk in runs.disks}
        both = msgspec.structs.replace(spec, disks=tuple(one for one in spec.disks if one.volume_id in its_own))
        detached = tuple(disk for disk in spec.disks if disk.volume_id not in its_own)
        return msgspec.structs.replace(spec, disks=(*detached, *await self._not_qcow2(both)))

    async def _go_back(self, args: snapshot.SnapshotRevert) -> None:
        spec = args.spec
        if not args.memory:
            for disk in spec.disks:
                await self._depot.pool_of(spec, disk).revert_snapshot(disk.volume_id, args.snapshot_id)
            return

        async def restore(launch: Launch) -> MachineReport:
            self._machines.check(spec.vm_id, args.generation, args.epoch, args.generation)
            return await self._driver.restore(launch, args.snapshot_id)

        await self._machines.boot(spec, restore)

    def _forgetting(self, spec: MachineSpec, disk: Disk, snapshot_id: str) -> Step:
        async def forget() -> None:
            try:
                await self._depot.pool_of(spec, disk).delete_snapshot(disk.volume_id, snapshot_id)
            except NotFound:
                return  # the volume is gone, and its snapshots with it

        return forget

    async def _own(self, spec: MachineSpec, generation: int, verb: str) -> Holding:
        """:raise Busy: a migration has it. :raise StaleGeneration"""
        holding = await self._ledger.admit(spec.vm_id, generation)
        if holding.role in (Role.LEAVING, Role.INCOMING):
            reason = Reason("vm.migrating", "a migration has it", holding.migration_id, "wait until it has ended")
            raise Busy(f"cannot {verb} machine {spec.vm_id}: a migration has it", [reason])
        return holding

    def _lives(self, vm_id: str) -> bool:
        seen = self._driver.report(vm_id)
        return seen is not None and seen.status not in ENDED

    def _is_done(self, vm_id: str, task_id: str) -> bool:
        holding = self._ledger.get(vm_id)
        return holding is not None and bool(task_id) and holding.restored == task_id


def _check(snapshot_id: str) -> str:
    if not is_id(snapshot_id):
        raise InvalidInput.field("snapshot_id", "is not an id", "give the snapshot's UUID")
    return snapshot_id


def _digest_of(file: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as opened:
        while piece := opened.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size
