"""The driver contract: what any hypervisor can do with a machine of this node (suite: tests/contract/test_driver.py).

A driver knows processes and monitors, no generations, no storage pools and no cluster: `agent.machines` and
`agent.mover` resolve those first and hand it a Launch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from novacron.agent.drivers.handoff import Arrival, Departure, DiskReception, Fetched, Reception
from novacron.errors import Reason
from novacron.model.blocks import BlockDigests, Sample
from novacron.model.machine import Belonging, DriveBus, MachineReport, MachineSpec, Qos, StopMode
from novacron.model.migration import Figures, Goals, Progress, Tactics
from novacron.model.node import DriverFacts
from novacron.model.prediction import Measurement
from novacron.model.snapshot import Consistency
from novacron.model.verdict import Signs

CONSOLE_FILE = "console.log"
"""Where in its run directory a machine's serial line is written, appending."""


class FileAt(msgspec.Struct, frozen=True, tag="file"):
    """A file or block device of this node."""

    path: Path


class RbdAt(msgspec.Struct, frozen=True, kw_only=True, tag="rbd"):
    """An image of a Ceph cluster. conf: its configuration file, which names the monitors. key_file: holds the user's
    key, read by the hypervisor; None: the configuration names a keyring.
    """

    pool: str
    image: str
    conf: Path
    user: str = "admin"
    namespace: str = ""
    key_file: Path | None = None


class NbdAt(msgspec.Struct, frozen=True, kw_only=True, tag="nbd"):
    """An export of an NBD server: at host and port, or at a unix socket."""

    export: str
    host: str = ""
    port: int = 0
    socket: Path | None = None


class IscsiAt(msgspec.Struct, frozen=True, kw_only=True, tag="iscsi"):
    """A logical unit of an iSCSI target. portal: host:port. password_file: for CHAP, read by the hypervisor."""

    portal: str
    target: str
    lun: int
    user: str = ""
    password_file: Path | None = None
    initiator: str = ""


Source = FileAt | RbdAt | NbdAt | IscsiAt


class Layer(msgspec.Struct, frozen=True):
    """One layer of a disk: where its bytes are, and their format, which is always told and never probed."""

    source: Source
    format: str  # qcow2 | raw


class DiskFile(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as this node opens it. The layers below are told too, nearest first; they are only read."""

    volume_id: str
    source: Source
    format: str  # qcow2 | raw
    backing: tuple[Layer, ...] = ()
    qos: Qos = Qos()
    boot_order: int = 0


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """A CD-ROM drive; path None: nothing is in it."""

    id: str
    path: Path | None = None
    boot_order: int = 0
    bus: DriveBus = DriveBus.SATA


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """now: the spec as the machine runs with it; pending: one reason for each wish that waits for the next start."""

    report: MachineReport
    now: MachineSpec
    pending: tuple[Reason, ...] = ()


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a running machine. stood_still_ms: how long its guest waited for it."""

    consistency: Consistency
    memory_bytes: int = 0
    stood_still_ms: float = 0.0


Beside = Callable[[], Awaitable[None]]
"""What else is to be done while the machine's disks do not change."""


class NicPlug(msgspec.Struct, frozen=True, kw_only=True):
    """How a card is plugged in on this node: a prepared tap, or user-mode forwards with chosen host ports."""

    nic_id: str
    mac: str
    tap: str = ""
    forwards: tuple[tuple[int, int], ...] = ()  # (guest_port, host_port)


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A MachineSpec with everything resolved to this node's paths.

    run_dir: the machine's own directory (exists, mode 0700, owned by uid when given) for sockets, logs and the
    process identity. keep: likewise, beside its volumes, for what outlives this node's boot; None: it has nothing such.
    uid/gid: run as this unprivileged user; None: as the agent itself.
    memory: a file that is to be its memory, shared with it (memory_shared) or copied as it writes. state: what its
    devices were when that memory was parked: it begins there instead of booting.
    """

    spec: MachineSpec
    run_dir: Path
    keep: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    firmware: Path | None = None
    seed: Path | None = None
    disks: tuple[DiskFile, ...] = ()
    nics: tuple[NicPlug, ...] = ()
    media: tuple[Medium, ...] = ()
    memory: Path | None = None
    memory_shared: bool = False
    state: Path | None = None
    uid: int | None = None
    gid: int | None = None


ReportListener = Callable[[MachineReport], None]
ProgressListener = Callable[[Progress], None]


class Driver(Protocol):
    """What a driver does. Every verb is idempotent: asked again, it finds its work done and says so.

    Each raises DriverError's children only: MachineDied (with the process's last words), MonitorFailed,
    Unsupported, and DeadlineExceeded when a monitor does not answer in time.
    """

    name: str

    def subscribe(self, listener: ReportListener) -> None:
        """`listener` is called in the event loop at every change of a machine's status."""
        ...

    async def probe(self) -> DriverFacts:
        """What this driver can do here. Slow the first time; cached per hypervisor binary and host boot."""
        ...

    async def adopt(self, run_dirs: list[Path]) -> list[MachineReport]:
        """Find machines that outlived the agent, by pid + start time + boot id + monitor, never by name."""
        ...

    async def start(self, launch: Launch) -> MachineReport:
        """Boot it, or let it begin as a copy of a parked machine. If this fails nothing of it is left running.

        A copy gets a new identity before it has a card: one for the guest's kernel (VM generation id), and with a
        guest agent also host name, machine id, host keys and clock.
        """
        ...

    async def park(self, vm_id: str, state: Path) -> MachineReport:
        """Write its devices' state to `state` and end it; its memory stays in the file it was started with.

        If this fails it runs (or stands still) as before, and there is no such file.
        """
        ...

    async def stop(self, vm_id: str, mode: StopMode, deadline_s: float) -> MachineReport:
        """End it. Graceful: ask the guest, force at the deadline. Absent: fine."""
        ...

    async def pause(self, vm_id: str) -> MachineReport: ...

    async def resume(self, vm_id: str) -> MachineReport: ...

    async def adjust(self, launch: Launch) -> Adjustment:
        """Make a machine that runs (or stands still) as the launch says: plug, unplug, grow, limit, change media.

        What cannot be done now is a reason in the answer, never an error; `now` says what then runs, truly, and was
        asked of the hypervisor. Cancelled half-way, or asked again: the next asking finds what there is.

        :raise NotFound: it does not know the machine. :raise StateConflict: it has ended, or its state is on the way.
        """
        ...

    def report(self, vm_id: str) -> MachineReport | None:
        """As last seen; None: the driver does not know it."""
        ...

    def reports(self) -> list[MachineReport]: ...

    async def forget(self, vm_id: str) -> None:
        """Drop a machine that has ended. :raise StateConflict: it still runs."""
        ...

    async def close(self) -> None:
        """Let go of monitors. Machines run on."""
        ...

    async def measure(self, vm_id: str) -> Measurement:
        """What it writes within a second, and what it holds of its memory. Changes nothing.

        :raise NotFound: it does not know the machine. :raise StateConflict: it has ended, or its memory is on the way.
        :raise Unsupported: this hypervisor does not measure.
        """
        ...

    # -- migration. Before `take_over` on the other side, `reclaim` makes the source run as before.

    async def accept(
        self,
        launch: Launch,
        migration_id: str,
        host: str,
        receives: tuple[str, ...] = (),
        *,
        proxied: bool = False,
        channels: int = 1,
        paused: bool = False,
    ) -> Reception:
        """(target) Start it paused, waiting for a stream on `host`. Asked again: the same answer.

        receives: volumes that the source fills before. proxied: it waits at a unix socket in its own directory, for
        this node's stream proxy. channels: connections that memory comes over at once; the reception says how many it
        will be. paused: its guest stands still at the source, and `take_over` does not let it run.

        :raise Unsupported: its streams never go through one.
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

    async def look(self, vm_id: str) -> MachineReport:
        """Ask the hypervisor anew what it does. Changes nothing; one that does not answer is `unknown`.

        :raise NotFound: it does not know the machine.
        """
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

    # -- snapshots of a machine whose process lives, in its qcow2 disks. Those of one at rest are its pools' affair.

    async def take_snapshot(
        self, vm_id: str, snapshot_id: str, *, memory: bool = False, quiesce: bool = False, beside: Beside | None = None
    ) -> Taken:
        """Of all its disks at one moment, or of none. It runs on as before, whatever comes of it.

        memory: with all it has in memory. quiesce: its guest freezes its file systems for it, and thaws them in any
        case. beside: what other disks need, done while the guest stands still; when it fails nothing is taken.

        :raise Unsupported: there is no place for its memory, or no guest agent answers.
        """
        ...

    async def delete_snapshot(self, vm_id: str, snapshot_id: str) -> None:
        """Absent: fine. Its disks and the other snapshots keep their content."""
        ...

    async def restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        """Start it with the disks and the memory of a snapshot. If this fails nothing of it is left running.

        :raise StateConflict: it runs.
        """
        ...
