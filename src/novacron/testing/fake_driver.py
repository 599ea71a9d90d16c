"""A driver in memory that keeps the contract honestly: for simulations, and to show what a driver must do.

    FakeWorld   the network and the shared disks: which copies run, violations seen
    FakeHost    one host: its machines live here and outlive the agent
    FakeDriver  one agent's hands on a FakeHost; make another on the same host and it adopts

Faults: `host.fail("send", error)` makes the next call of that verb raise before doing anything, `after=True` once it
is done; `host.crash(vm_id)`, `host.power_off(vm_id)`, `host.reboot()`; `world.cut(a, b)` breaks the link of two hosts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Adjustment, Beside, DiskFile, Launch, ProgressListener, ReportListener, Taken
from novacron.agent.drivers.handoff import Arrival, Departure, DiskReception, Fetched, Reception
from novacron.errors import MigrationFailed, MonitorFailed, NotFound, NovaCronError, StateConflict, Unsupported
from novacron.model.blocks import BlockDigests, Sample
from novacron.model.machine import ENDED, Belonging, Endpoint, MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Figures, Goals, Progress, Strategy, Tactics
from novacron.model.node import Accelerator, DriverFacts
from novacron.model.prediction import Measurement
from novacron.model.verdict import Signs
from novacron.testing import fake_adjust, fake_blocks, fake_disks, fake_keep, fake_postcopy, fake_snapshots, fake_vitals
from novacron.testing.fake_world import LOCKING, AgentDied, FakeHost, FakeMachine, FakeWorld, Life

__all__ = ["AgentDied", "FakeDriver", "FakeHost", "FakeMachine", "FakeWorld", "Life"]

MACHINE_TYPES = {"q35": "pc-q35-fake", "microvm": "microvm"}
MIB = 1 << 20

FEATURES = (
    *(f"migrate.{name}" for name in ("events", "return-path", "pause-before-switchover", "late-block-activate")),
    "postcopy",
)
"""What a real driver would have found in its hypervisor."""


class FakeDriver:
    """Implements drivers.base.Driver on a FakeHost."""

    name = "fake"

    def __init__(self, host: FakeHost, life: Life | None = None) -> None:
        self._life = life or Life()
        self._host = host
        self._world = host.world
        self._known: set[str] = set()
        self._listeners: list[ReportListener] = []
        host.listeners.append(self._tell)

    def _tell(self, report: MachineReport) -> None:
        if report.vm_id in self._known and not self._life.dead:
            for listener in self._listeners:
                listener(report)

    # -- machines ------------------------------------------------------------------------------------------

    def subscribe(self, listener: ReportListener) -> None:
        self._listeners.append(listener)

    async def probe(self) -> DriverFacts:
        return DriverFacts(
            name=self.name,
            version="1",
            features=FEATURES,
            machine_types=tuple(MACHINE_TYPES.values()),
            default_machine_types=MACHINE_TYPES,
            cpu_models=("fake64",),
            accelerator=Accelerator(name="tcg", reason="in memory"),
        )

    async def adopt(self, run_dirs: list[Path]) -> list[MachineReport]:
        """A machine that ended while no agent looked left nothing to adopt."""
        self._life.check()
        names = {run_dir.name for run_dir in run_dirs}
        for vm_id, machine in tuple(self._host.machines.items()):
            if machine.report.status in ENDED:
                del self._host.machines[vm_id]
            elif vm_id in names:
                self._known.add(vm_id)
        return self.reports()

    async def start(self, launch: Launch) -> MachineReport:
        self._trouble("start", after=False)
        vm_id = launch.spec.vm_id
        found = self._host.machines.get(vm_id)
        if found is None or found.report.status in ENDED:
            self._world.lock_disks(vm_id, self._host)
            machine = self._make(launch, MachineStatus.PAUSED)
            if launch.state is not None:
                machine.memory = launch.state.read_text()
            self._host.set_status(machine, MachineStatus.RUNNING)
        try:
            self._trouble("start", after=True)
        except NovaCronError:
            self._host.machines.pop(vm_id, None)  # nothing is left running
            raise
        return self._host.machines[vm_id].report

    async def park(self, vm_id: str, state: Path) -> MachineReport:
        self._trouble("park", after=False)
        machine = self._get(vm_id)
        if machine.report.status not in LOCKING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running", "paused"), "park")
        state.write_text(machine.memory)  # noqa: ASYNC240 (tiny)
        self._host.set_status(machine, MachineStatus.PARKED)
        self._trouble("park", after=True)
        return machine.report

    async def stop(self, vm_id: str, mode: StopMode, deadline_s: float) -> MachineReport:
        self._trouble("stop", after=False)
        machine = self._host.machines.get(vm_id)
        if machine is None:
            return MachineReport(vm_id=vm_id, generation=0, status=MachineStatus.ABSENT, since=self._world.clock.wall())
        if mode is StopMode.GRACEFUL and machine.ignores_shutdown and machine.report.status not in ENDED:
            await self._world.clock.sleep(deadline_s)
        if machine.report.status not in ENDED:
            self._host.set_status(machine, MachineStatus.STOPPED, "told to stop")
        self._trouble("stop", after=True)
        return machine.report

    async def pause(self, vm_id: str) -> MachineReport:
        return await self._flip("pause", vm_id, MachineStatus.PAUSED)

    async def resume(self, vm_id: str) -> MachineReport:
        return await self._flip("resume", vm_id, MachineStatus.RUNNING)

    async def _flip(self, verb: str, vm_id: str, status: MachineStatus) -> MachineReport:
        self._trouble(verb, after=False)
        machine = self._get(vm_id)
        if machine.report.status not in LOCKING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running", "paused"), verb)
        self._host.set_status(machine, status)
        self._trouble(verb, after=True)
        return machine.report

    async def adjust(self, launch: Launch) -> Adjustment:
        self._trouble("adjust", after=False)
        vm_id = launch.spec.vm_id
        machine = self._get(vm_id)
        if machine.report.status not in LOCKING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running", "paused"), "adjust")
        if machine.guest_takes_s:
            await self._world.clock.sleep(machine.guest_takes_s)
            self._life.check()
        pending = fake_adjust.adjust(machine, launch)
        self._trouble("adjust", after=True)
        return Adjustment(report=machine.report, now=machine.launch.spec, pending=pending)

    def report(self, vm_id: str) -> MachineReport | None:
        machine = self._host.machines.get(vm_id)
        return machine.report if machine and vm_id in self._known else None

    def reports(self) -> list[MachineReport]:
        return [machine.report for vm_id, machine in self._host.machines.items() if vm_id in self._known]

    async def forget(self, vm_id: str) -> None:
        self._life.check()
        machine = self._host.machines.get(vm_id)
        if machine is not None and machine.report.status not in ENDED:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, sorted(ENDED), "forget")
        self._host.machines.pop(vm_id, None)
        self._known.discard(vm_id)

    async def close(self) -> None:
        if self._tell in self._host.listeners:
            self._host.listeners.remove(self._tell)

    async def measure(self, vm_id: str) -> Measurement:
        self._trouble("measure", after=False)
        machine = self._get(vm_id)
        if machine.transfer is not None or machine.report.status not in LOCKING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running", "paused"), "measure")
        memory = machine.launch.spec.memory_mib * MIB
        return Measurement(
            at=self._world.clock.wall(),
            interval_s=1.0,
            dirtied_bytes=0,
            memory_used_bytes=memory,
            memory_bytes=memory,
        )

    # -- migration -----------------------------------------------------------------------------------------

    async def accept(
        self,
        launch: Launch,
        migration_id: str,
        host: str,
        receives: tuple[str, ...] = (),
        *,
        proxied: bool = False,
        channels: int = 1,  # noqa: ARG002  (its streams are in memory)
        paused: bool = False,
    ) -> Reception:
        self._trouble("accept", after=False)
        if proxied:
            raise Unsupported("its streams are in memory: there is nothing to give a proxy")
        vm_id = launch.spec.vm_id
        machine = self._host.machines.get(vm_id)
        if machine is None or machine.report.status in ENDED:
            machine = self._make(launch, MachineStatus.INCOMING, migration_id)
            port = self._world.new_port()
            resumable = receives if self._world.resumes else ()
            told = DiskReception(host=host, port=port, key_hex=f"{port:032x}", resumable=resumable)
            disks = told if receives else None
            machine.reception = Reception(host=host, port=port, key_hex=f"{port:032x}", disks=disks)
            machine.receives, machine.stays_paused = receives, paused
        elif machine.report.migration_id != migration_id or machine.reception is None:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, sorted(ENDED), "accept")
        self._trouble("accept", after=True)
        return machine.reception

    async def open_disks(self, launch: Launch, migration_id: str) -> MachineReport:
        self._trouble("open_disks", after=False)
        vm_id = launch.spec.vm_id
        machine = self._host.machines.get(vm_id)
        if machine is None or (machine.report.status in ENDED and machine.copied != migration_id):
            self._world.lock_disks(vm_id, self._host)
            machine = self._make(launch, MachineStatus.PAUSED)
        self._trouble("open_disks", after=True)
        return machine.report

    async def copy_disks(
        self,
        vm_id: str,
        migration_id: str,
        to: DiskReception,
        volume_ids: tuple[str, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        del goals, progress
        self._trouble("copy_disks", after=False)
        machine = self._get(vm_id)
        machine.copied = ""
        copied = await fake_disks.copied(self._world, self._host, machine, migration_id, to, volume_ids)
        self._life.check()
        machine.report = msgspec.structs.replace(machine.report, migration_id=migration_id)
        self._trouble("copy_disks", after=True)
        return copied

    async def copy_here(
        self,
        vm_id: str,
        migration_id: str,
        files: tuple[DiskFile, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        del goals, progress, migration_id
        self._trouble("copy_here", after=False)
        machine = self._get(vm_id)
        machine.copied = ""
        copied = await fake_disks.copied_here(self._world, machine, files)
        self._life.check()
        self._trouble("copy_here", after=True)
        return copied

    async def copy_out(
        self,
        vm_id: str,
        rehearsal_id: str,
        to: DiskReception,
        exports: Mapping[str, str],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        del goals, progress
        self._trouble("copy_out", after=False)
        machine = self._get(vm_id)
        machine.copying_out = rehearsal_id
        copied = await fake_disks.copied_out(self._world, self._host, machine, to, exports)
        self._life.check()
        if machine.copying_out != rehearsal_id:
            raise MigrationFailed("the copying of its disks was called off")
        self._trouble("copy_out", after=True)
        return copied

    async def drop_copy(self, vm_id: str, rehearsal_id: str) -> None:
        self._trouble("drop_copy", after=False)
        machine = self._host.machines.get(vm_id)
        if machine is not None and machine.copying_out == rehearsal_id:
            machine.copying_out = ""
        self._trouble("drop_copy", after=True)

    async def pivot(self, vm_id: str, migration_id: str, wanted: MachineSpec) -> MachineReport:
        self._trouble("pivot", after=False)
        machine = self._get(vm_id)
        fake_disks.pivoted(machine, migration_id, wanted)
        self._trouble("pivot", after=True)
        return machine.report

    async def set_bandwidth(self, vm_id: str, migration_id: str, bytes_per_s: int) -> None:
        """It binds nothing, as goals do not; `paces` has what was asked."""
        self._trouble("set_bandwidth", after=False)
        machine = self._get(vm_id)
        streams = machine.transfer is not None and not machine.transfer.done()
        if machine.report.migration_id != migration_id or not streams:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("being sent",), "pace")
        machine.paces.append(bytes_per_s)
        self._trouble("set_bandwidth", after=True)

    async def halt(
        self, vm_id: str, migration_id: str, volume_ids: tuple[str, ...], deadline_s: float
    ) -> MachineReport:
        self._trouble("halt", after=False)
        machine = self._host.machines.get(vm_id)
        if machine is not None and machine.report.status not in ENDED:
            if machine.ignores_shutdown:
                await self._world.clock.sleep(deadline_s)
                self._life.check()
            fake_disks.finished(self._world, machine, migration_id, volume_ids)
        if volume_ids and (machine is None or machine.copied != migration_id):
            raise MigrationFailed(f"machine {vm_id} ended before all of its disks had been copied")
        report = await self.stop(vm_id, StopMode.FORCED, 0.0)
        self._trouble("halt", after=True)
        return report

    async def settle(self, vm_id: str, migration_id: str) -> bool:
        self._trouble("settle", after=False)
        machine = self._host.machines.get(vm_id)
        if machine is not None and machine.report.status is not MachineStatus.INCOMING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("incoming",), "settle")
        await self._end_incoming(vm_id, migration_id, "its disks have come")
        self._trouble("settle", after=True)
        return machine is not None

    async def send(
        self,
        vm_id: str,
        migration_id: str,
        to: Reception,
        goals: Goals,
        progress: ProgressListener,
        tactics: Tactics = Tactics(),  # noqa: B008 (frozen)
        volume_ids: tuple[str, ...] = (),
    ) -> Departure:  # goals bind nothing: the stream takes as long as the world says
        del goals
        self._trouble("send", after=False)
        machine = self._get(vm_id)
        if tactics.stands_still and machine.report.status is MachineStatus.RUNNING:
            machine.stopped_at_s = self._world.clock.monotonic_s()
            machine.paused_for = migration_id
            self._host.set_status(machine, MachineStatus.PAUSED, "its state is being transferred")
        if machine.report.status is not MachineStatus.HANDED_OFF and set(volume_ids) != set(machine.mirrors):
            raise MigrationFailed("its disks are not alike on both sides")
        machine.whole_first = tactics.strategy is Strategy.PRECOPY or self._world.converges
        machine.to = to
        if machine.report.status is not MachineStatus.HANDED_OFF:
            if machine.transfer is None:
                machine.report = msgspec.structs.replace(machine.report, migration_id=migration_id)
                machine.was_paused = machine.report.status is MachineStatus.PAUSED and not machine.paused_for
                machine.transfer = asyncio.create_task(self._transfer(machine, to, progress, volume_ids))
                machine.transfer.add_done_callback(_look)
            await self._join(machine.transfer)
        self._trouble("send", after=True)
        stopped_ago_ms = (self._world.clock.monotonic_s() - machine.stopped_at_s) * 1e3
        return Departure(stopped_ago_ms=stopped_ago_ms, whole=machine.whole_first)

    async def open_postcopy(self, vm_id: str, migration_id: str) -> None:
        self._trouble("open_postcopy", after=False)
        fake_postcopy.opened(self._world, self._host, self._leaving(vm_id, migration_id))
        self._trouble("open_postcopy", after=True)

    async def fetch_rest(
        self, vm_id: str, migration_id: str, progress: ProgressListener, to: Reception | None = None
    ) -> Fetched:
        del progress
        self._trouble("fetch_rest", after=False)
        fetched = await fake_postcopy.fetched(self._world, self._host, self._leaving(vm_id, migration_id), to)
        self._life.check()
        self._trouble("fetch_rest", after=True)
        return fetched

    async def reopen(self, vm_id: str, migration_id: str, host: str) -> Reception:
        self._trouble("reopen", after=False)
        machine = self._get(vm_id)
        if machine.report.migration_id != migration_id or not machine.missing_from:
            raise StateConflict.of(f"machine {vm_id}", "whole", ("in post-copy",), "reopen")
        port = self._world.new_port()
        machine.reception = Reception(host=host, port=port, key_hex=f"{port:032x}")
        self._trouble("reopen", after=True)
        return machine.reception

    def _leaving(self, vm_id: str, migration_id: str) -> FakeMachine:
        machine = self._get(vm_id)
        if machine.report.migration_id != migration_id or machine.report.status is not MachineStatus.HANDED_OFF:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("handed_off",), "post-copy")
        return machine

    async def _join(self, transfer: asyncio.Task[Departure]) -> None:
        try:
            await asyncio.shield(transfer)
        except asyncio.CancelledError:
            if transfer.cancelled():
                raise MigrationFailed("the transfer was called off; the source runs as before") from None
            raise

    async def _transfer(
        self, machine: FakeMachine, to: Reception, progress: ProgressListener, volume_ids: tuple[str, ...]
    ) -> Departure:
        """The hypervisor's own work: nobody's cancellation but `reclaim`'s ends it."""
        total = machine.launch.spec.memory_mib * MIB
        try:
            for tick in range(1, self._world.ticks + 1):
                await self._world.clock.sleep(self._world.transfer_s / self._world.ticks)
                self._peer(machine, to)
                sent = total * tick // self._world.ticks
                progress(
                    Progress(
                        at=self._world.clock.wall(),
                        total_bytes=total,
                        transferred_bytes=sent,
                        remaining_bytes=total - sent,
                        iteration=1,
                    )
                )
            peer = self._peer(machine, to)
            fake_disks.finished(self._world, machine, machine.report.migration_id, volume_ids)
            peer.received, peer.kept = machine.whole_first, machine.kept
            machine.moved = True
            if not machine.paused_for:
                machine.stopped_at_s = self._world.clock.monotonic_s()
            self._host.set_status(machine, MachineStatus.HANDED_OFF)
            return Departure(stopped_ago_ms=0.0)
        finally:
            machine.transfer = None

    def _peer(self, machine: FakeMachine, to: Reception) -> FakeMachine:
        found = self._world.waiting_at(to)
        if found is None or self._world.is_cut(found[0].name, self._host.name):
            raise MigrationFailed(f"the stream to {to.host}:{to.port} broke; the source runs as before")
        if machine.report.status in ENDED:
            raise MigrationFailed("the source ended during the transfer")
        return found[1]

    async def take_over(self, vm_id: str, migration_id: str, generation: int, watch: tuple[str, ...] = ()) -> Arrival:
        self._trouble("take_over", after=False)
        machine = self._get(vm_id)
        if machine.report.migration_id != migration_id:
            raise NotFound(f"migration {migration_id} brought no machine {vm_id} here")
        if machine.report.status is MachineStatus.INCOMING:
            if not machine.received:
                raise MonitorFailed(f"machine {vm_id} has not been received whole")
            self._world.lock_disks(vm_id, self._host)
            machine.report = msgspec.structs.replace(machine.report, generation=generation)
            fake_blocks.watch(machine, watch)
            if machine.stays_paused:
                self._host.set_status(machine, MachineStatus.PAUSED)
            else:
                fake_keep.resumed(machine)
                self._host.set_status(machine, MachineStatus.RUNNING)
        self._trouble("take_over", after=True)
        since = self._world.clock.wall() - machine.report.since
        return Arrival(resumed_ago_ms=since.total_seconds() * 1e3, report=machine.report)

    async def verify(self, vm_id: str) -> MachineReport:
        self._trouble("verify", after=False)
        machine = self._get(vm_id)
        to_be = MachineStatus.PAUSED if machine.stays_paused else MachineStatus.RUNNING
        if machine.report.status is not to_be:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, (to_be,), "verify")
        self._trouble("verify", after=True)
        return machine.report

    async def look(self, vm_id: str) -> MachineReport:
        self._trouble("look", after=False)
        return self._get(vm_id).report

    async def examine(self, vm_id: str) -> Signs:
        self._trouble("examine", after=False)
        return fake_vitals.examined(self._get(vm_id))

    async def sample_blocks(self, vm_id: str, volume_id: str, wanted: Sample) -> BlockDigests:
        del wanted
        self._trouble("sample_blocks", after=False)
        return fake_blocks.digests(self._get(vm_id), volume_id, (0,), written=False)

    async def digest_blocks(
        self, vm_id: str, volume_id: str, numbers: tuple[int, ...], *, written: bool = False
    ) -> BlockDigests:
        self._trouble("digest_blocks", after=False)
        return fake_blocks.digests(self._get(vm_id), volume_id, numbers, written=written)

    async def unwatch(self, vm_id: str, volume_id: str) -> None:
        self._trouble("unwatch", after=False)
        self._get(vm_id).watched.pop(volume_id, None)

    async def release(self, vm_id: str, migration_id: str) -> Figures:
        self._trouble("release", after=False)
        machine = self._host.machines.get(vm_id)
        figures = Figures()
        if machine is not None:
            size = machine.launch.spec.memory_mib * MIB
            if machine.moved:
                figures = Figures(bytes_transferred=size, memory_bytes=size, iterations=1, downtime_qemu_ms=0.0)
            self._host.set_status(machine, MachineStatus.STOPPED, f"released by migration {migration_id}")
            del self._host.machines[vm_id]
        self._trouble("release", after=True)
        return figures

    async def reclaim(self, vm_id: str, migration_id: str) -> MachineReport:
        self._trouble("reclaim", after=False)
        machine = self._get(vm_id)
        leaves = machine.transfer is not None or machine.report.status is MachineStatus.HANDED_OFF
        if leaves and machine.report.migration_id != migration_id:
            raise StateConflict.of(f"machine {vm_id}", "leaving by another migration", ("here",), "reclaim")
        if machine.transfer is not None:
            machine.transfer.cancel()
            await asyncio.gather(machine.transfer, return_exceptions=True)
            self._life.check()  # an agent that was killed meanwhile does nothing to what the next one has begun
        stands = machine.report.status is MachineStatus.HANDED_OFF or machine.paused_for == migration_id
        if stands and machine.report.status in (MachineStatus.HANDED_OFF, MachineStatus.PAUSED):
            self._world.lock_disks(vm_id, self._host)
            before = MachineStatus.PAUSED if machine.was_paused else MachineStatus.RUNNING
            self._host.set_status(machine, before)
        machine.report = msgspec.structs.replace(machine.report, migration_id="")
        machine.moved = machine.opened = False
        machine.paused_for = machine.copied = ""
        machine.mirrors, machine.new_files = {}, {}
        self._trouble("reclaim", after=True)
        return machine.report

    async def discard(self, vm_id: str, migration_id: str) -> None:
        self._trouble("discard", after=False)
        await self._end_incoming(vm_id, migration_id, "discarded")
        self._trouble("discard", after=True)

    async def _end_incoming(self, vm_id: str, migration_id: str, why: str) -> None:
        machine = self._host.machines.get(vm_id)
        if (
            machine is not None
            and machine.report.status is MachineStatus.INCOMING
            and machine.report.migration_id == migration_id
        ):
            self._host.set_status(machine, MachineStatus.STOPPED, why)
            del self._host.machines[vm_id]

    async def pack(self, keep: Path, *, with_tpm: bool) -> tuple[Belonging, ...]:
        del with_tpm
        self._trouble("pack", after=False)
        return fake_keep.packed(keep)

    async def unpack(self, keep: Path, files: tuple[Belonging, ...], uid: int | None) -> None:
        del uid
        self._trouble("unpack", after=False)
        fake_keep.unpacked(keep, files)
        self._trouble("unpack", after=True)

    # -- snapshots -----------------------------------------------------------------------------------------

    async def take_snapshot(
        self, vm_id: str, snapshot_id: str, *, memory: bool = False, quiesce: bool = False, beside: Beside | None = None
    ) -> Taken:
        self._trouble("take_snapshot", after=False)
        machine = self._get(vm_id)
        if machine.report.status not in LOCKING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running", "paused"), "snapshot")
        taken = await fake_snapshots.taken(machine, snapshot_id, memory=memory, quiesce=quiesce, beside=beside)
        self._trouble("take_snapshot", after=True)
        return taken

    async def delete_snapshot(self, vm_id: str, snapshot_id: str) -> None:
        self._trouble("delete_snapshot", after=False)
        fake_snapshots.deleted(self._get(vm_id), snapshot_id)
        self._trouble("delete_snapshot", after=True)

    async def restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        self._trouble("restore", after=False)
        known = self._host.machines.get(launch.spec.vm_id)
        if known is not None and known.report.status not in ENDED:
            raise StateConflict.of(f"machine {launch.spec.vm_id}", known.report.status, sorted(ENDED), "revert")
        memory = fake_snapshots.memory_of(launch, snapshot_id)
        fake_snapshots.reverted(launch, snapshot_id)
        await self.start(launch)
        machine = self._get(launch.spec.vm_id)
        machine.memory = memory
        self._trouble("restore", after=True)
        return machine.report

    # -- inside --------------------------------------------------------------------------------------------

    def _trouble(self, verb: str, *, after: bool) -> None:
        self._life.check()
        self._host.raise_fault(verb, after=after)

    def _get(self, vm_id: str) -> FakeMachine:
        machine = self._host.machines.get(vm_id)
        if machine is None:
            raise NotFound(f"no machine {vm_id} on {self._host.name}")
        return machine

    def _make(self, launch: Launch, status: MachineStatus, migration_id: str = "") -> FakeMachine:
        spec = launch.spec
        endpoints = tuple(
            Endpoint(nic_id=plug.nic_id, guest_port=guest_port, host="127.0.0.1", host_port=host_port)
            for plug in launch.nics
            for guest_port, host_port in plug.forwards
        )
        report = MachineReport(
            vm_id=spec.vm_id,
            generation=spec.generation,
            status=status,
            since=self._world.clock.wall(),
            pid=self._host.new_pid(),
            machine_type=spec.machine_type or MACHINE_TYPES[spec.machine],
            cpu_model=spec.cpu_model or "fake64",
            accelerator="tcg",
            endpoints=endpoints,
            migration_id=migration_id,
        )
        machine = FakeMachine(launch, report, kept=fake_keep.made(launch, self._host.name))
        self._host.machines[spec.vm_id] = machine
        self._known.add(spec.vm_id)
        for listener in tuple(self._host.listeners):
            listener(report)
        return machine


def _look(transfer: asyncio.Task[Departure]) -> None:
    """A transfer may fail while nobody waits for it; whoever asks next is told anew."""
    if not transfer.cancelled():
        transfer.exception()
