"""QemuDriver: the driver contract on QEMU processes. The verbs; how each is done stands in the files beside."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from novacron.agent.drivers.base import Adjustment, Beside, DiskFile, Launch, ProgressListener, ReportListener, Taken
from novacron.agent.drivers.handoff import Arrival, Awaited, Departure, DiskReception, Fetched, Reception
from novacron.agent.drivers.qemu import adjust as adjusting
from novacron.agent.drivers.qemu import (
    bandwidth,
    blocks,
    disks,
    incoming,
    keeping,
    lifecycle,
    mirror,
    outgoing,
    parking,
    power,
    snapshot,
    tpm,
    vitals,
)
from novacron.agent.drivers.qemu import measure as measuring
from novacron.agent.drivers.qemu.firmware import NETWORK_BOOT, find_uefi, has_network_rom
from novacron.agent.drivers.qemu.fleet import STALL_S, Fleet
from novacron.agent.drivers.qemu.migration import CHANNELS, PROXIED, sends_parallel
from novacron.agent.drivers.qemu.postcopy import fetched, open_, relink, reopen
from novacron.clock import Clock
from novacron.model.blocks import BlockDigests, Sample
from novacron.model.machine import Belonging, MachineReport, MachineSpec, StopMode
from novacron.model.migration import Figures, Goals, Tactics
from novacron.model.node import DriverFacts
from novacron.model.prediction import Measurement
from novacron.model.verdict import Signs


class QemuDriver:
    """Machines of one node on one QEMU binary.

    cache_dir: where probes are kept (made when missing). accelerator: auto, kvm or tcg.
    stall_s: a transfer that moves nothing for so long is given up.
    """

    name = "qemu"

    def __init__(
        self, binary: str, cache_dir: Path, clock: Clock, accelerator: str = "auto", stall_s: float = STALL_S
    ) -> None:
        self._fleet = Fleet(binary, cache_dir, clock, accelerator, stall_s)

    # -- what it knows ---------------------------------------------------------------------------------------

    def subscribe(self, listener: ReportListener) -> None:
        self._fleet.listeners.append(listener)

    async def probe(self) -> DriverFacts:
        binary, found, accelerator, _ = await self._fleet.facts()
        return DriverFacts(
            name=self.name,
            version=found.version,
            features=(*found.features, *self._extras(binary, found.features), *await self._fleet.arrivals()),
            machine_types=found.machine_types,
            default_machine_types=found.default_machine_types,
            cpu_models=found.cpu_models,
            accelerator=accelerator,
        )

    def _extras(self, binary: Path, features: tuple[str, ...]) -> tuple[str, ...]:
        """What is not QEMU's own: other packages bring it, or the agent."""
        has = {
            tpm.FEATURE: tpm.is_installed(),
            "secure-boot": find_uefi(secure=True) is not None,
            NETWORK_BOOT: has_network_rom(binary),
            PROXIED: True,
            CHANNELS: sends_parallel(features),
        }
        return tuple(name for name, there in has.items() if there)

    def report(self, vm_id: str) -> MachineReport | None:
        machine = self._fleet.machines.get(vm_id)
        return machine.report() if machine else None

    def reports(self) -> list[MachineReport]:
        return [machine.report() for machine in self._fleet.machines.values()]

    async def adopt(self, run_dirs: list[Path]) -> list[MachineReport]:
        """As the contract says; transfers under way are followed again."""
        found = await asyncio.gather(*(self._fleet.adopt(path) for path in run_dirs))
        return [machine.report() for machine in found if machine is not None]

    async def forget(self, vm_id: str) -> None:
        await self._fleet.run(vm_id, "forget", lifecycle.forget(self._fleet, vm_id))

    async def close(self) -> None:
        await self._fleet.close()

    # -- a machine's life ------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> MachineReport:
        return await self._fleet.run(launch.spec.vm_id, "start", lifecycle.start(self._fleet, launch))

    async def stop(self, vm_id: str, mode: StopMode, deadline_s: float) -> MachineReport:
        forced = mode is StopMode.FORCED
        work = lifecycle.stop(self._fleet, vm_id, 0.0 if forced else deadline_s)
        return await self._fleet.run(vm_id, "stop", work, pushes=forced)

    async def kill(self, vm_id: str, reason: str) -> None:
        if (machine := self._fleet.machines.get(vm_id)) is not None:
            await power.kill(machine, reason)

    def has_guardian(self, vm_id: str) -> bool:
        machine = self._fleet.machines.get(vm_id)
        return machine is not None and machine.record.guarded

    def is_watched(self, vm_id: str) -> bool:
        machine = self._fleet.machines.get(vm_id)
        return machine is not None and machine.record.watched

    async def arm(self, deadline_s: float, *, at_most: bool = False) -> bool:
        return await self._fleet.arm(deadline_s, at_most=at_most)

    async def pause(self, vm_id: str) -> MachineReport:
        return await self._fleet.ask(vm_id, "pause", power.pause)

    async def resume(self, vm_id: str) -> MachineReport:
        return await self._fleet.ask(vm_id, "resume", power.resume)

    async def adjust(self, launch: Launch) -> Adjustment:
        return await self._fleet.ask(launch.spec.vm_id, "adjust", lambda machine: adjusting.adjust(machine, launch))

    async def park(self, vm_id: str, state: Path) -> MachineReport:
        return await self._fleet.ask(vm_id, "park", lambda machine: parking.park(machine, state))

    async def measure(self, vm_id: str) -> Measurement:
        _, found, *_ = await self._fleet.facts()
        return await measuring.measured(self._fleet.expect(vm_id), found.features)

    # -- migration -------------------------------------------------------------------------------------------

    async def accept(self, launch: Launch, awaited: Awaited) -> Reception:
        work = lifecycle.accept(self._fleet, launch, awaited)
        return await self._fleet.run(launch.spec.vm_id, "accept", work)

    async def open_disks(self, launch: Launch, migration_id: str) -> MachineReport:
        work = lifecycle.open_disks(self._fleet, launch, migration_id)
        return await self._fleet.run(launch.spec.vm_id, "open disks", work)

    async def copy_disks(
        self,
        vm_id: str,
        migration_id: str,
        to: DiskReception,
        volume_ids: tuple[str, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """As the contract says. A caller that leaves does not end the copy: `reclaim` does."""
        machine = self._fleet.expect(vm_id)
        _, found, *_ = await self._fleet.facts()
        speed = goals.bandwidth_bytes_per_s
        order = mirror.Order(
            migration_id=migration_id, to=to, volume_ids=volume_ids, features=found.features, bytes_per_s=speed
        )
        await self._fleet.run(vm_id, "copy_disks", disks.begin(machine, order))
        return await disks.copied(machine, volume_ids, found.features, progress, self._fleet.stall_s, speed)

    async def copy_here(
        self,
        vm_id: str,
        migration_id: str,  # noqa: ARG002  (one copy at a time: the ledger says whose)
        files: tuple[DiskFile, ...],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """As the contract says. A caller that leaves does not end the copy: `reclaim` does."""
        machine = self._fleet.expect(vm_id)
        _, found, *_ = await self._fleet.facts()
        await self._fleet.run(vm_id, "copy_here", disks.begin_here(machine, files, goals, found.features))
        volume_ids = [file.volume_id for file in files]
        return await disks.copied(machine, volume_ids, found.features, progress, self._fleet.stall_s)

    async def copy_out(
        self,
        vm_id: str,
        rehearsal_id: str,
        to: DiskReception,
        exports: Mapping[str, str],
        goals: Goals,
        progress: ProgressListener,
    ) -> int:
        """As the contract says. A caller that leaves does not end the copy: `drop_copy` does."""
        machine = self._fleet.expect(vm_id)
        _, found, *_ = await self._fleet.facts()
        volume_ids = tuple(exports)
        order = mirror.Order(
            migration_id=rehearsal_id,
            to=to,
            volume_ids=volume_ids,
            features=found.features,
            bytes_per_s=goals.bandwidth_bytes_per_s,
            exports=exports,
        )
        await self._fleet.run(vm_id, "copy_out", disks.begin_copy(machine, order))
        later = found.features if len(volume_ids) > 1 else ()  # writes to a single disk wait for nothing at no time
        copied = await disks.copied(machine, volume_ids, later, progress, self._fleet.stall_s)
        await self._fleet.run(vm_id, "copy_out", disks.end_copy(machine, volume_ids))
        return copied

    async def drop_copy(self, vm_id: str, rehearsal_id: str) -> None:  # noqa: ARG002  (the VM's task says whose)
        if vm_id in self._fleet.machines:
            await self._fleet.ask(vm_id, "drop_copy", disks.drop_copy, pushes=True)

    async def pivot(self, vm_id: str, migration_id: str, wanted: MachineSpec) -> MachineReport:
        return await self._fleet.ask(vm_id, "pivot", lambda machine: disks.pivot(machine, migration_id, wanted))

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
        """As the contract says. A caller that leaves does not end the transfer: `reclaim` does."""
        machine = self._fleet.expect(vm_id)
        machine.progress = progress
        _, found, *_ = await self._fleet.facts()
        order = outgoing.Order(migration_id, to, goals, tactics, found.features, self._fleet.stall_s, volume_ids)
        await self._fleet.run(vm_id, "send", outgoing.begin(machine, order))
        return await outgoing.departed(machine)

    async def set_bandwidth(self, vm_id: str, migration_id: str, bytes_per_s: int) -> None:
        await self._fleet.ask(vm_id, "pace", lambda machine: bandwidth.change(machine, migration_id, bytes_per_s))

    async def halt(
        self, vm_id: str, migration_id: str, volume_ids: tuple[str, ...], deadline_s: float
    ) -> MachineReport:
        return await self._fleet.ask(
            vm_id, "halt", lambda machine: disks.halt(machine, migration_id, volume_ids, deadline_s)
        )

    async def settle(self, vm_id: str, migration_id: str) -> bool:
        if vm_id not in self._fleet.machines:
            return False
        left = await self._fleet.ask(vm_id, "settle", lambda machine: incoming.settle(machine, migration_id))
        await self.forget(vm_id)
        return left

    async def open_postcopy(self, vm_id: str, migration_id: str) -> None:
        await self._fleet.ask(vm_id, "open_postcopy", lambda machine: open_(machine, migration_id, self._fleet.stall_s))

    async def fetch_rest(
        self, vm_id: str, migration_id: str, progress: ProgressListener, to: Reception | None = None
    ) -> Fetched:
        machine = self._fleet.expect(vm_id)
        machine.progress = progress
        why = await self._fleet.run(vm_id, "fetch_rest", relink(machine, migration_id, to))
        return await fetched(machine, self._fleet.stall_s, why)

    async def reopen(self, vm_id: str, migration_id: str, host: str) -> Reception:
        return await self._fleet.ask(vm_id, "reopen", lambda machine: reopen(machine, migration_id, host))

    async def take_over(self, vm_id: str, migration_id: str, generation: int, watch: tuple[str, ...] = ()) -> Arrival:
        return await self._fleet.ask(
            vm_id, "take_over", lambda machine: incoming.take_over(machine, migration_id, generation, watch)
        )

    async def verify(self, vm_id: str) -> MachineReport:
        return await self._fleet.ask(vm_id, "verify", incoming.verify)

    async def look(self, vm_id: str) -> MachineReport:
        return await self._fleet.ask(vm_id, "look", lambda machine: machine.refresh())

    async def examine(self, vm_id: str) -> Signs:
        return await self._fleet.ask(vm_id, "examine", vitals.examine)

    async def sample_blocks(self, vm_id: str, volume_id: str, wanted: Sample) -> BlockDigests:
        return await self._fleet.ask(vm_id, "sample", lambda machine: blocks.sample(machine, volume_id, wanted))

    async def digest_blocks(
        self, vm_id: str, volume_id: str, numbers: tuple[int, ...], *, written: bool = False
    ) -> BlockDigests:
        return await self._fleet.ask(
            vm_id, "digest", lambda machine: blocks.digests(machine, volume_id, numbers, written=written)
        )

    async def unwatch(self, vm_id: str, volume_id: str) -> None:
        await self._fleet.ask(vm_id, "unwatch", lambda machine: blocks.unwatch(machine, volume_id))

    async def release(self, vm_id: str, migration_id: str) -> Figures:
        if vm_id not in self._fleet.machines:
            return Figures()
        return await self._fleet.ask(vm_id, "release", lambda machine: outgoing.release(machine, migration_id))

    async def reclaim(self, vm_id: str, migration_id: str) -> MachineReport:
        if vm_id not in self._fleet.machines:
            return self._fleet.absent(vm_id)
        return await self._fleet.ask(
            vm_id, "reclaim", lambda machine: outgoing.reclaim(machine, migration_id, self._fleet.stall_s), pushes=True
        )

    async def discard(self, vm_id: str, migration_id: str) -> None:
        await self._fleet.run(vm_id, "discard", lifecycle.discard(self._fleet, vm_id, migration_id), pushes=True)

    async def pack(self, keep: Path, *, with_tpm: bool) -> tuple[Belonging, ...]:
        return await asyncio.to_thread(keeping.pack, keep, with_tpm=with_tpm)

    async def unpack(self, keep: Path, files: tuple[Belonging, ...], uid: int | None) -> None:
        await asyncio.to_thread(keeping.unpack, keep, files, uid, uid)

    # -- snapshots -------------------------------------------------------------------------------------------

    async def take_snapshot(
        self, vm_id: str, snapshot_id: str, *, memory: bool = False, quiesce: bool = False, beside: Beside | None = None
    ) -> Taken:
        return await self._fleet.ask(
            vm_id,
            "snapshot",
            lambda machine: snapshot.take(machine, snapshot_id, memory=memory, quiesce=quiesce, beside=beside),
        )

    async def delete_snapshot(self, vm_id: str, snapshot_id: str) -> None:
        await self._fleet.ask(vm_id, "delete a snapshot", lambda machine: snapshot.delete(machine, snapshot_id))

    async def restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        return await self._fleet.run(launch.spec.vm_id, "revert", lifecycle.restore(self._fleet, launch, snapshot_id))
