"""The moving half of the driver contract: what a machine's source and its target do, verb by verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from novacron.agent.drivers.handoff import Arrival, Awaited, Departure, DiskReception, Fetched, Reception
from novacron.agent.drivers.launch import DiskFile, Launch
from novacron.model.blocks import BlockDigests, Sample
from novacron.model.machine import Belonging, MachineReport, MachineSpec
from novacron.model.migration import Figures, Goals, Progress, Tactics
from novacron.model.verdict import Signs

ProgressListener = Callable[[Progress], None]


class Moves(Protocol):
    """What a driver does with a machine that moves, as `Driver` says of all its verbs.

    Before `take_over` on the other side, `reclaim` makes the source run as before.
    """

    async def accept(self, launch: Launch, awaited: Awaited) -> Reception:
        """(target) Start it paused, waiting for what is awaited. Asked again under the same migration: the same answer.

        :raise Unsupported: its streams never go through a proxy.
        """
        ...

    async def open_disks(self, launch: Launch, migration_id: str) -> MachineReport:
        """(source) Have the disks of a machine at rest open, so that they can be copied; its guest does not begin.

        `halt` ends that, as does `reclaim`. Asked again: as it is.
        """
        ...

    async def copy_disks(
        self,
        vm_id: str,
        migration_id: str,
        to: DiskReception,
        volume_ids: tuple[str, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """(source) Make the target's disks like its own; from then on each write is in both. Joins a copy under way.

        Until `send` or `halt` ends it, or `reclaim` takes it back. The bytes that were copied.

        :raise MigrationFailed: a disk could not be copied; the machine runs on.
        """
        ...

    async def copy_here(
        self,
        vm_id: str,
        migration_id: str,
        files: tuple[DiskFile, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """Make these files, on this node, like the disks of the same volumes; from then on each write is in both.

        Until `pivot` or `halt` ends it, or `reclaim` takes it back. Joins a copy under way. The bytes that were copied.

        :raise MigrationFailed: a disk could not be copied; the machine runs on with those it has.
        """
        ...

    async def copy_out(
        self,
        vm_id: str,
        rehearsal_id: str,
        to: DiskReception,
        exports: Mapping[str, str],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """(source) Copy its disks for another machine, which waits with disks to be filled; it runs on all the while.

        exports: by volume, what the copy is called there. One disk is copied when this returns, as it was at that
        moment; several are alike, and stay so until the target takes over, which makes them copies of one moment.
        `drop_copy` ends it at whatever moment. Joins a copy under way. The bytes that were copied.

        :raise MigrationFailed: a disk could not be copied; the machine runs on.
        """
        ...

    async def drop_copy(self, vm_id: str, rehearsal_id: str) -> None:
        """(source) Nothing of `copy_out` is left. None, or ended: fine."""
        ...

    async def pivot(self, vm_id: str, migration_id: str, wanted: MachineSpec) -> MachineReport:
        """Have it work with the files of `copy_here` alone; wanted: what it runs with then. All of them, or none.

        :raise MigrationFailed: none; they may not be alike.
        """
        ...

    async def send(
        self,
        vm_id: str,
        migration_id: str,
        to: Reception,
        goals: Goals,
        progress: ProgressListener,
        tactics: Tactics = Tactics(),  # noqa: B008 (frozen)
        volume_ids: tuple[str, ...] = (),
    ) -> Departure:
        """(source) Move its state; returns when both sides stand still. Joins a transfer that is under way.

        volume_ids: disks that `copy_disks` has made alike: they are alike to the last write when this returns.
        With a strategy that ends in post-copy it may return before the stream is whole.

        :raise MigrationFailed: the source runs as before. :raise StateConflict: it cannot be sent as it stands (a
            report that says `resume_first` tells so in advance): nothing has begun.
        """
        ...

    async def set_bandwidth(self, vm_id: str, migration_id: str, bytes_per_s: int) -> None:
        """(source) Have what is on its way of it, memory and disks, go no faster from now on; 0: as it goes.

        :raise NotFound: it does not know the machine. :raise StateConflict: nothing of it is on its way.
        """
        ...

    async def halt(
        self, vm_id: str, migration_id: str, volume_ids: tuple[str, ...], deadline_s: float
    ) -> MachineReport:
        """(source) End it as a graceful `stop` does, with those disks alike on both sides to the last write.

        :raise MigrationFailed: it has ended and they may differ: the source's are the good ones.
        """
        ...

    async def settle(self, vm_id: str, migration_id: str) -> bool:
        """(target) End what `accept` started once its disks are whole: no memory comes. Absent: fine.

        Whether it ended now, and by itself: then what had come of its disks is on their storage for sure.

        :raise StateConflict: it was taken over.
        """
        ...

    async def open_postcopy(self, vm_id: str, migration_id: str) -> None:
        """(source) Have the target know what it needs to run; the rest of memory follows as it is asked for.

        Only after the ownership has moved. From here on the source alone is not the machine. Whole already: fine.

        :raise MigrationFailed: the target cannot have begun to run; the source stands still.
        """
        ...

    async def fetch_rest(
        self, vm_id: str, migration_id: str, progress: ProgressListener, to: Reception | None = None
    ) -> Fetched:
        """(source) Wait until the target has all memory. to: where the target listens anew, after the link broke.

        :raise MigrationFailed: it can come to no end. A machine whose other half is gone is lost.
        """
        ...

    async def reopen(self, vm_id: str, migration_id: str, host: str) -> Reception:
        """(target) Listen anew for the rest of its memory, after the link broke. Asked again: at another port.

        proxied: as it was accepted.

        :raise StateConflict: nothing of its memory is missing.
        """
        ...

    async def take_over(self, vm_id: str, migration_id: str, generation: int, watch: tuple[str, ...] = ()) -> Arrival:
        """(target) Continue, or, accepted as `paused`, be this node's own and stand. Only after the ownership has
        moved.

        watch: disks that came with it, of which `digest_blocks` is to know what was written since.

        If this fails, a report of INCOMING means that it certainly never continued; any other, that it may have.
        """
        ...

    async def verify(self, vm_id: str) -> MachineReport:
        """(target) Ask the hypervisor whether it really runs, or stands as it is to; announce it to the network."""
        ...

    async def examine(self, vm_id: str) -> Signs:
        """(target) Its guest's heartbeat, and its clock, put right when it is off. Within ten seconds."""
        ...

    async def sample_blocks(self, vm_id: str, volume_id: str, wanted: Sample) -> BlockDigests:
        """(source) Blocks of a disk drawn by a seed, most of them where it has data. It has left, and was not released.

        :raise StateConflict: its process has ended.
        """
        ...

    async def digest_blocks(
        self, vm_id: str, volume_id: str, numbers: tuple[int, ...], *, written: bool = False
    ) -> BlockDigests:
        """(either side) What is in these blocks; written: (target) and which of them were written since it came.

        The digests are from before that was looked up; a write under way meanwhile may be missed: ask again.
        """
        ...

    async def unwatch(self, vm_id: str, volume_id: str) -> None:
        """(target) Note no more what is written. Not noted: fine."""
        ...

    async def release(self, vm_id: str, migration_id: str) -> Figures:
        """(source) Read the figures, end the process. Absent: empty figures."""
        ...

    async def reclaim(self, vm_id: str, migration_id: str) -> MachineReport:
        """(source) Cancel the transfer at whatever moment and make it run as before; one that stood still stands, and
        may have to run before it is sent again (`resume_first` of its report).
        """
        ...

    async def discard(self, vm_id: str, migration_id: str) -> None:
        """(target) End what `accept` started, whatever its moment. Never touches a machine that took over."""
        ...

    # -- what belongs to a machine beside its volumes, in the directory of Launch.keep

    async def pack(self, keep: Path, *, with_tpm: bool) -> tuple[Belonging, ...]:
        """(source) The files there are, of a machine that stands still. with_tpm: it has ended; else memory brings
        that.

        :raise Unsupported: one is too large to travel so.
        """
        ...

    async def unpack(self, keep: Path, files: tuple[Belonging, ...], uid: int | None) -> None:
        """(target) Have them there, on the disk, before the machine begins, or while `accept` has it wait."""
        ...
