"""The machines of one node on one QEMU binary: found, made, listed, and asked one verb at a time."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from novacron.agent.drivers.base import Launch, ReportListener
from novacron.agent.drivers.qemu import adopt as adoption
from novacron.agent.drivers.qemu import devices, guarded, outgoing, power, stall
from novacron.agent.drivers.qemu.accelerator import choose
from novacron.agent.drivers.qemu.command import Host, wants_uefi
from novacron.agent.drivers.qemu.features import Probed, fingerprint, hardware, locate, probe
from novacron.agent.drivers.qemu.firmware import find_uefi, has_network_rom
from novacron.agent.drivers.qemu.gate import Gate
from novacron.agent.drivers.qemu.machine import STDERR_FILE, Machine
from novacron.agent.drivers.qemu.postcopy_probe import PostcopyProbe
from novacron.agent.drivers.qemu.record import Record
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import Clock
from novacron.errors import NotFound
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.node import Accelerator

STALL_S = 30.0
TRIM_INTERVAL_S = 10.0
MAX_STDERR_BYTES = 1 << 20  # a guest can make QEMU complain without end

Result = TypeVar("Result")


class Fleet:
    """See QemuDriver for what it is made with. Every method may be called by the driver's verbs alone."""

    def __init__(self, binary: str, cache_dir: Path, clock: Clock, accelerator: str, stall_s: float) -> None:
        self.cache_dir = cache_dir
        self.clock = clock
        self.stall_s = stall_s
        self.listeners: list[ReportListener] = []
        self.machines: dict[str, Machine] = {}
        self._made: weakref.WeakSet[Machine] = weakref.WeakSet()  # also those that are not enlisted yet
        self._binary = binary
        self._wish = accelerator
        self._gates: dict[str, Gate] = {}
        self._known: tuple[Path, Probed, Accelerator, str] | None = None
        self._postcopy = PostcopyProbe(cache_dir, clock)
        self._probing = asyncio.Lock()
        self._trimmer: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Let go of all. Machines run on."""
        if self._trimmer is not None:
            self._trimmer.cancel()
        for machine in self.machines.values():
            await machine.let_go()
        self.machines.clear()

    async def run(self, vm_id: str, verb: str, work: Coroutine[Any, Any, Result], *, pushes: bool = False) -> Result:
        gate = self._gates.setdefault(vm_id, Gate())
        try:
            return await gate.run(verb, work, pushes=pushes)
        finally:
            if gate.idle and vm_id not in self.machines:
                self._gates.pop(vm_id, None)

    async def ask(
        self, vm_id: str, verb: str, work: Callable[[Machine], Coroutine[Any, Any, Result]], *, pushes: bool = False
    ) -> Result:
        async def found() -> Result:
            return await work(self.expect(vm_id))

        return await self.run(vm_id, verb, found(), pushes=pushes)

    def expect(self, vm_id: str) -> Machine:
        machine = self.machines.get(vm_id)
        if machine is None:
            raise NotFound(f"there is no machine {vm_id} here")
        return machine

    async def known_at(self, launch: Launch) -> Machine | None:
        """The machine as known, or as an earlier agent left it: a second process is never started beside it."""
        known = self.machines.get(launch.spec.vm_id)
        return known if known is not None else await self.adopt(launch.run_dir)

    async def adopt(self, path: Path) -> Machine | None:
        known = next((machine for machine in self.machines.values() if machine.run_dir.path == path), None)
        if known is not None:
            return known
        machine = await adoption.adopt(path, self.clock, self.tell)
        if machine is not None:
            machine.after_attach = lambda attached: outgoing.rejoin(attached, self.stall_s)
            outgoing.rejoin(machine, self.stall_s)
            self.enlist(machine)
        return machine

    async def arm(self, deadline_s: float, *, at_most: bool) -> bool:
        """As the contract says; also those that are being started."""
        living = [one for one in {*self.machines.values(), *self._made} if one.record.guarded and not one.ended]
        return all(await asyncio.gather(*(guarded.arm(machine, deadline_s, at_most=at_most) for machine in living)))

    async def make(self, launch: Launch) -> tuple[Machine, Host]:
        """A machine not yet started or listed, in the place of one that has ended."""
        binary, found, accelerator, _ = await self.facts()
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
        before = self.machines.pop(spec.vm_id, None)
        if before is not None:
            await before.let_go()
        machine = Machine(record, RunDir(launch.run_dir), self.clock, self.tell)
        machine.after_attach = lambda attached: outgoing.rejoin(attached, self.stall_s)
        self._made.add(machine)
        return machine, host

    def enlist(self, machine: Machine) -> None:
        self.machines[machine.vm_id] = machine
        self.tell(machine.report())
        if self._trimmer is None:
            self._trimmer = asyncio.create_task(self._trim())

    def tell(self, report: MachineReport) -> None:
        machine = self.machines.get(report.vm_id)
        if machine is not None and machine.full:
            resume = partial(self.ask, report.vm_id, "resume", power.resume)
            machine.later(stall.go_on(lambda: machine.full, resume, self.clock))
        if machine is not None:  # one that never came up is its caller's news alone
            for listener in self.listeners:
                listener(report)

    def absent(self, vm_id: str) -> MachineReport:
        return MachineReport(vm_id=vm_id, generation=0, status=MachineStatus.ABSENT, since=self.clock.wall())

    async def facts(self) -> tuple[Path, Probed, Accelerator, str]:
        async with self._probing:
            if self._known is None:
                binary = locate(self._binary)
                key = await asyncio.to_thread(fingerprint, binary)
                accelerator = await choose(self._wish, binary, self.cache_dir, key, self.clock)
                found = await probe(binary, accelerator.name, self.cache_dir, key, self.clock)
                self._known = binary, found, accelerator, key
            return self._known

    async def arrivals(self) -> tuple[str, ...]:
        """What this node's kernel lets machines arrive by, beside what the QEMU has by itself."""
        binary, _, accelerator, key = await self.facts()
        return await self._postcopy.features(binary, key, accelerator.name)

    async def _trim(self) -> None:
        while True:
            await self.clock.sleep(TRIM_INTERVAL_S)
            for machine in list(self.machines.values()):
                machine.run_dir.cut(STDERR_FILE, MAX_STDERR_BYTES)
