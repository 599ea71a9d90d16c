"""The moving half of the fake driver: what a machine's source and its target do, in memory.

Its disks are in fake_disks, its stream in fake_stream, post-copy in fake_postcopy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, Launch, ProgressListener
from novacron.agent.drivers.handoff import Arrival, Awaited, Departure, DiskReception, Fetched, Reception
from novacron.errors import MigrationFailed, MonitorFailed, NotFound, StateConflict, Unsupported
from novacron.model.blocks import BlockDigests, Sample
from novacron.model.machine import ENDED, Belonging, MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Figures, Goals, Strategy, Tactics
from novacron.model.verdict import Signs
from novacron.testing import fake_blocks, fake_disks, fake_keep, fake_postcopy, fake_stream, fake_vitals
from novacron.testing.fake_hands import FakeHands
from novacron.testing.fake_world import FakeMachine


class FakeMoves(FakeHands):
    """Implements drivers.moves.Moves."""

    async def accept(self, launch: Launch, awaited: Awaited) -> Reception:
        self._trouble("accept", after=False)
        if awaited.proxied:
            raise Unsupported("its streams are in memory: there is nothing to give a proxy")
        vm_id, migration_id = launch.spec.vm_id, awaited.migration_id
        machine = self._host.machines.get(vm_id)
        if machine is None or machine.report.status in ENDED:
            machine = self._make(launch, MachineStatus.INCOMING, migration_id)
            machine.reception = self._reception(awaited)
            machine.receives, machine.stays_paused = awaited.receives, awaited.paused
        elif machine.report.migration_id != migration_id or machine.reception is None:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, sorted(ENDED), "accept")
        self._trouble("accept", after=True)
        return machine.reception

    def _reception(self, awaited: Awaited) -> Reception:
        host, port = awaited.host, self._world.new_port()
        key_hex = f"{port:032x}"
        resumable = awaited.receives if self._world.resumes else ()
        told = DiskReception(host=host, port=port, key_hex=key_hex, resumable=resumable)
        return Reception(host=host, port=port, key_hex=key_hex, disks=told if awaited.receives else None)

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
                machine.transfer = asyncio.create_task(
                    fake_stream.transferred(self._world, self._host, machine, to, progress, volume_ids)
                )
                machine.transfer.add_done_callback(fake_stream.looked_at)
            await fake_stream.joined(machine.transfer)
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
            size = machine.launch.spec.memory_mib << 20
            if machine.moved:
                sent = self._world.stream_bytes(machine)
                figures = Figures(bytes_transferred=sent, memory_bytes=size, iterations=1, downtime_qemu_ms=0.0)
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
