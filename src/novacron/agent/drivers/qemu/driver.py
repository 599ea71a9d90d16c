"""QemuDriver: the driver contract on QEMU processes. The verbs; how each is done stands in the files beside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from novacron.agent.drivers.base import (
    Adjustment,
    Arrival,
    Beside,
    Departure,
    Fetched,
    Launch,
    ProgressListener,
    Reception,
    ReportListener,
    Taken,
)
from novacron.agent.drivers.qemu import adjust as adjusting
from novacron.agent.drivers.qemu import adopt as adoption
from novacron.agent.drivers.qemu import devices, incoming, launcher, outgoing, parking, power, snapshot, stall, tpm
from novacron.agent.drivers.qemu import measure as measuring
from novacron.agent.drivers.qemu.accelerator import choose
from novacron.agent.drivers.qemu.command import Host, wants_uefi
from novacron.agent.drivers.qemu.features import Probed, fingerprint, hardware, locate, probe
from novacron.agent.drivers.qemu.firmware import NETWORK_BOOT, find_uefi, has_network_rom
from novacron.agent.drivers.qemu.gate import Gate
from novacron.agent.drivers.qemu.machine import STDERR_FILE, Machine
from novacron.agent.drivers.qemu.migration import PROXIED
from novacron.agent.drivers.qemu.postcopy import fetched, open_, relink, reopen
from novacron.agent.drivers.qemu.postcopy_probe import PostcopyProbe
from novacron.agent.drivers.qemu.record import Record, Role
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import Clock
from novacron.errors import NotFound, StateConflict
from novacron.model.machine import MachineReport, MachineStatus, StopMode
from novacron.model.migration import Figures, Goals, Tactics
from novacron.model.node import Accelerator, DriverFacts
from novacron.model.prediction import Measurement

STALL_S = 30.0
TRIM_INTERVAL_S = 10.0
MAX_STDERR_BYTES = 1 << 20  # a guest can make QEMU complain without end

Result = TypeVar("Result")


class QemuDriver:
    """Machines of one node on one QEMU binary.

    cache_dir: where probes are kept (made when missing). accelerator: auto, kvm or tcg.
    stall_s: a transfer that moves nothing for so long is given up.
    """

    name = "qemu"

    def __init__(
        self, binary: str, cache_dir: Path, clock: Clock, accelerator: str = "auto", stall_s: float = STALL_S
    ) -> None:
        self._binary = binary
        self._cache_dir = cache_dir
        self._clock = clock
        self._wish = accelerator
        self._stall_s = stall_s
        self._listeners: list[ReportListener] = []
        self._machines: dict[str, Machine] = {}
        self._gates: dict[str, Gate] = {}
        self._known: tuple[Path, Probed, Accelerator, str] | None = None
        self._postcopy = PostcopyProbe(cache_dir, clock)
        self._probing = asyncio.Lock()
        self._trimmer: asyncio.Task[None] | None = None

    # -- what it knows ---------------------------------------------------------------------------------------

    def subscribe(self, listener: ReportListener) -> None:
        self._listeners.append(listener)

    async def probe(self) -> DriverFacts:
        binary, found, accelerator, key = await self._facts()
        arrivals = await self._postcopy.features(binary, key, accelerator.name)
        return DriverFacts(
            name=self.name,
            version=found.version,
            features=(*found.features, *self._extras(binary), *arrivals),
            machine_types=found.machine_types,
            default_machine_types=found.default_machine_types,
            cpu_models=found.cpu_models,
            accelerator=accelerator,
        )

    def _extras(self, binary: Path) -> tuple[str, ...]:
        """What is not QEMU's own: other packages bring it, or the agent."""
        has = {
            tpm.FEATURE: tpm.is_installed(),
            "secure-boot": find_uefi(secure=True) is not None,
            NETWORK_BOOT: has_network_rom(binary),
            PROXIED: True,
        }
        return tuple(name for name, there in has.items() if there)

    def report(self, vm_id: str) -> MachineReport | None:
        machine = self._machines.get(vm_id)
        return machine.report() if machine else None

    def reports(self) -> list[MachineReport]:
        return [machine.report() for machine in self._machines.values()]

    async def adopt(self, run_dirs: list[Path]) -> list[MachineReport]:
        """As the contract says; transfers under way are followed again."""
        found = await asyncio.gather(*(self._adopt(path) for path in run_dirs))
        return [machine.report() for machine in found if machine is not None]

    async def forget(self, vm_id: str) -> None:
        await self._run(vm_id, "forget", self._forget(vm_id))

    async def close(self) -> None:
        if self._trimmer is not None:
            self._trimmer.cancel()
        for machine in self._machines.values():
            await machine.let_go()
        self._machines.clear()

    # -- a machine's life ------------------------------------------------------------------------------------

    async def start(self, launch: Launch) -> MachineReport:
        return await self._run(launch.spec.vm_id, "start", self._start(launch))

    async def stop(self, vm_id: str, mode: StopMode, deadline_s: float) -> MachineReport:
        forced = mode is StopMode.FORCED
        return await self._run(vm_id, "stop", self._stop(vm_id, 0.0 if forced else deadline_s), pushes=forced)

    async def pause(self, vm_id: str) -> MachineReport:
        return await self._with(vm_id, "pause", power.pause)

    async def resume(self, vm_id: str) -> MachineReport:
        return await self._with(vm_id, "resume", power.resume)

    async def adjust(self, launch: Launch) -> Adjustment:
        return await self._with(launch.spec.vm_id, "adjust", lambda machine: adjusting.adjust(machine, launch))

    async def _start(self, launch: Launch) -> MachineReport:
        known = await self._known_at(launch)
        if known is not None and not known.ended:
            return await power.begin(known)
        machine, host = await self._make(launch)
        machine.record.copying = launch.state is not None
        await launcher.launch(machine, launch, host, incoming=launch.state is not None)
        try:
            await adjusting.limit(machine, launch)
            await (parking.begin_from(machine, launch.spec, launch.state) if launch.state else power.begin(machine))
        except BaseException:
            await launcher.abandon(machine)
            raise
        self._enlist(machine)
        return machine.report()

    async def park(self, vm_id: str, state: Path) -> MachineReport:
        return await self._with(vm_id, "park", lambda machine: parking.park(machine, state))

    async def _stop(self, vm_id: str, patience_s: float) -> MachineReport:
        machine = self._machines.get(vm_id)
        if machine is None:
            return self._absent(vm_id)
        return await power.stop(machine, patience_s)

    async def _forget(self, vm_id: str) -> None:
        machine = self._machines.get(vm_id)
        if machine is None:
            return
        if not machine.ended:
            raise StateConflict.of(f"machine {vm_id}", machine.status.value, ("stopped", "crashed"), "forget")
        del self._machines[vm_id]
        await machine.let_go()
        launcher.clear(machine.run_dir)

    async def measure(self, vm_id: str) -> Measurement:
        _, found, *_ = await self._facts()
        return await measuring.measured(self._expect(vm_id), found.features)

    # -- migration -------------------------------------------------------------------------------------------

    async def accept(self, launch: Launch, migration_id: str, host: str, *, proxied: bool = False) -> Reception:
        at = "" if proxied else host
        return await self._run(launch.spec.vm_id, "accept", self._accept(launch, migration_id, at))

    async def send(
        self,
        vm_id: str,
        migration_id: str,
        to: Reception,
        goals: Goals,
        progress: ProgressListener,
        tactics: Tactics = Tactics(),  # noqa: B008 (frozen)
    ) -> Departure:
        """As the contract says. A caller that leaves does not end the transfer: `reclaim` does."""
        machine = self._expect(vm_id)
        machine.progress = progress
        _, found, *_ = await self._facts()
        order = outgoing.Order(migration_id, to, goals, tactics, found.features, self._stall_s)
        await self._run(vm_id, "send", outgoing.begin(machine, order))
        return await outgoing.departed(machine)

    async def open_postcopy(self, vm_id: str, migration_id: str) -> None:
        await self._with(vm_id, "open_postcopy", lambda machine: open_(machine, migration_id, self._stall_s))

    async def fetch_rest(
        self, vm_id: str, migration_id: str, progress: ProgressListener, to: Reception | None = None
    ) -> Fetched:
        machine = self._expect(vm_id)
        machine.progress = progress
        why = await self._run(vm_id, "fetch_rest", relink(machine, migration_id, to))
        return await fetched(machine, self._stall_s, why)

    async def reopen(self, vm_id: str, migration_id: str, host: str, *, proxied: bool = False) -> Reception:
        return await self._with(vm_id, "reopen", lambda machine: reopen(machine, migration_id, host, proxied=proxied))

    async def take_over(self, vm_id: str, migration_id: str, generation: int) -> Arrival:
        return await self._with(
            vm_id, "take_over", lambda machine: incoming.take_over(machine, migration_id, generation)
        )

    async def verify(self, vm_id: str) -> MachineReport:
        return await self._with(vm_id, "verify", incoming.verify)

    async def release(self, vm_id: str, migration_id: str) -> Figures:
        if vm_id not in self._machines:
            return Figures()
        return await self._with(vm_id, "release", lambda machine: outgoing.release(machine, migration_id))

    async def reclaim(self, vm_id: str, migration_id: str) -> MachineReport:
        if vm_id not in self._machines:
            return self._absent(vm_id)
        return await self._with(
            vm_id, "reclaim", lambda machine: outgoing.reclaim(machine, migration_id, self._stall_s), pushes=True
        )

    async def discard(self, vm_id: str, migration_id: str) -> None:
        await self._run(vm_id, "discard", self._discard(vm_id, migration_id), pushes=True)

    async def _accept(self, launch: Launch, migration_id: str, host: str) -> Reception:
        known = await self._known_at(launch)
        if known is not None and not known.ended:
            given = incoming.reception(known, migration_id)
            if given is not None:
                return given
            unfinished = known.transfer(migration_id, Role.TARGET)
            if unfinished is None or not await self._discard(known.vm_id, migration_id):
                raise StateConflict.of(f"machine {known.vm_id}", known.status.value, ("absent",), "accept")
        binary, found, accelerator, key = await self._facts()
        features = (*found.features, *await self._postcopy.features(binary, key, accelerator.name))
        machine, chosen = await self._make(launch)
        given = await incoming.accept(machine, launch, chosen, features, migration_id, host)
        self._enlist(machine)
        return given

    async def _discard(self, vm_id: str, migration_id: str) -> bool:
        machine = self._machines.get(vm_id)
        if machine is None or not await incoming.discard(machine, migration_id):
            return False
        self._tell(self._absent(vm_id))
        del self._machines[vm_id]
        return True

    # -- snapshots -------------------------------------------------------------------------------------------

    async def take_snapshot(
        self, vm_id: str, snapshot_id: str, *, memory: bool = False, quiesce: bool = False, beside: Beside | None = None
    ) -> Taken:
        return await self._with(
            vm_id,
            "snapshot",
            lambda machine: snapshot.take(machine, snapshot_id, memory=memory, quiesce=quiesce, beside=beside),
        )

    async def delete_snapshot(self, vm_id: str, snapshot_id: str) -> None:
        await self._with(vm_id, "delete a snapshot", lambda machine: snapshot.delete(machine, snapshot_id))

    async def restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        return await self._run(launch.spec.vm_id, "revert", self._restore(launch, snapshot_id))

    async def _restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        known = await self._known_at(launch)
        if known is not None and not known.ended:
            raise StateConflict.of(f"machine {known.vm_id}", known.status.value, ("stopped",), "revert")
        machine, host = await self._make(launch)
        await launcher.launch(machine, launch, host, incoming=False)
        try:
            await snapshot.begin_from(machine, snapshot_id)
        except BaseException:
            await launcher.abandon(machine)
            raise
        self._enlist(machine)
        return machine.report()

    # -- parts -----------------------------------------------------------------------------------------------

    async def _run(self, vm_id: str, verb: str, work: Coroutine[Any, Any, Result], *, pushes: bool = False) -> Result:
        gate = self._gates.setdefault(vm_id, Gate())
        try:
            return await gate.run(verb, work, pushes=pushes)
        finally:
            if gate.idle and vm_id not in self._machines:
                self._gates.pop(vm_id, None)

    async def _with(
        self, vm_id: str, verb: str, work: Callable[[Machine], Coroutine[Any, Any, Result]], *, pushes: bool = False
    ) -> Result:
        async def found() -> Result:
            return await work(self._expect(vm_id))

        return await self._run(vm_id, verb, found(), pushes=pushes)

    def _expect(self, vm_id: str) -> Machine:
        machine = self._machines.get(vm_id)
        if machine is None:
            raise NotFound(f"there is no machine {vm_id} here")
        return machine

    async def _known_at(self, launch: Launch) -> Machine | None:
        """The machine as known, or as an earlier agent left it: a second process is never started beside it."""
        known = self._machines.get(launch.spec.vm_id)
        return known if known is not None else await self._adopt(launch.run_dir)

    async def _adopt(self, path: Path) -> Machine | None:
        known = next((machine for machine in self._machines.values() if machine.run_dir.path == path), None)
        if known is not None:
            return known
        machine = await adoption.adopt(path, self._clock, self._tell)
        if machine is not None:
            machine.after_attach = lambda attached: outgoing.rejoin(attached, self._stall_s)
            outgoing.rejoin(machine, self._stall_s)
            self._enlist(machine)
        return machine

    async def _make(self, launch: Launch) -> tuple[Machine, Host]:
        """A machine not yet started or listed, in the place of one that has ended."""
        binary, found, accelerator, _ = await self._facts()
        spec = launch.spec
        machine_type, cpu_model = hardware(spec, found, accelerator.name)
        host = Host(
            binary=str(binary),
            accelerator=accelerator.name,
            machine_type=machine_type,
            cpu_model=cpu_model,
            uefi=find_uefi(secure=spec.secure_boot) if wants_uefi(launch) else None,
            network_rom=has_network_rom(binary),
        )
        record = Record(
            vm_id=spec.vm_id,
            generation=spec.generation,
            machine_type=machine_type,
            cpu_model=cpu_model,
            accelerator=accelerator.name,
            uid=launch.uid,
            gid=launch.gid,
            guest_agent=spec.guest_agent,
            spec=spec,
            endpoints=devices.endpoints(launch, spec),
        )
        before = self._machines.pop(spec.vm_id, None)
        if before is not None:
            await before.let_go()
        machine = Machine(record, RunDir(launch.run_dir), self._clock, self._tell)
        machine.after_attach = lambda attached: outgoing.rejoin(attached, self._stall_s)
        return machine, host

    def _enlist(self, machine: Machine) -> None:
        self._machines[machine.vm_id] = machine
        self._tell(machine.report())
        if self._trimmer is None:
            self._trimmer = asyncio.create_task(self._trim())

    def _tell(self, report: MachineReport) -> None:
        machine = self._machines.get(report.vm_id)
        if machine is not None and machine.full:
            resume = partial(self._with, report.vm_id, "resume", power.resume)
            machine.later(stall.go_on(lambda: machine.full, resume, self._clock))
        if machine is not None:  # one that never came up is its caller's news alone
            for listener in self._listeners:
                listener(report)

    def _absent(self, vm_id: str) -> MachineReport:
        return MachineReport(vm_id=vm_id, generation=0, status=MachineStatus.ABSENT, since=self._clock.wall())

    async def _facts(self) -> tuple[Path, Probed, Accelerator, str]:
        async with self._probing:
            if self._known is None:
                binary = locate(self._binary)
                key = await asyncio.to_thread(fingerprint, binary)
                accelerator = await choose(self._wish, binary, self._cache_dir, key, self._clock)
                found = await probe(binary, accelerator.name, self._cache_dir, key, self._clock)
                self._known = binary, found, accelerator, key
            return self._known

    async def _trim(self) -> None:
        while True:
            await self._clock.sleep(TRIM_INTERVAL_S)
            for machine in list(self._machines.values()):
                machine.run_dir.cut(STDERR_FILE, MAX_STDERR_BYTES)
