"""A driver in memory that keeps the contract honestly: for simulations, and to show what a driver must do.

    FakeWorld   the network and the shared disks: which copies run, violations seen
    FakeHost    one host: its machines live here and outlive the agent
    FakeDriver  one agent's hands on a FakeHost; make another on the same host and it adopts

Faults: `host.fail("send", error)` makes the next call of that verb raise before doing anything, `after=True` once it
is done; `host.crash(vm_id)`, `host.power_off(vm_id)`, `host.reboot()`; `world.cut(a, b)` breaks the link of two hosts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import defaultdict
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import Arrival, Departure, Launch, ProgressListener, Reception, ReportListener
from novacron.clock import Clock
from novacron.errors import MigrationFailed, MonitorFailed, NotFound, NovaCronError, StateConflict
from novacron.model.machine import ENDED, Endpoint, MachineReport, MachineStatus, StopMode
from novacron.model.migration import Figures, Goals, Progress
from novacron.model.node import Accelerator, DriverFacts

LOCKING = frozenset({MachineStatus.RUNNING, MachineStatus.PAUSED, MachineStatus.STALLED})
"""Those who hold the write lock of their disks."""
MACHINE_TYPES = {"q35": "pc-q35-fake", "microvm": "microvm"}
MIB = 1 << 20


@dataclasses.dataclass
class FakeMachine:
    """One copy of a machine on one host. received: its stream came in whole; moved: it went out whole."""

    launch: Launch
    report: MachineReport
    reception: Reception | None = None
    received: bool = False
    stopped_at_s: float = 0.0
    moved: bool = False
    transfer: asyncio.Task[Departure] | None = None
    ignores_shutdown: bool = False


@dataclasses.dataclass
class Fault:
    error: NovaCronError
    after: bool


class AgentDied(Exception):
    """Raised by all that a killed agent touches, so that what it leaves undone stays undone."""


class Life:
    """Whether one agent process lives."""

    dead = False

    def check(self) -> None:
        if self.dead:
            raise AgentDied


class FakeWorld:
    """What the hosts share. `transfer_s`: how long a migration stream takes on its clock, told in `ticks` reports."""

    def __init__(self, clock: Clock, *, transfer_s: float = 0.0, ticks: int = 4) -> None:
        self.clock = clock
        self.transfer_s = transfer_s
        self.ticks = ticks
        self.hosts: dict[str, FakeHost] = {}
        self.violations: list[str] = []
        self._ports = itertools.count(49152)
        self._cut: set[frozenset[str]] = set()

    def cut(self, one: str, other: str) -> None:
        """No stream passes between two hosts any more; one under way fails."""
        self._cut.add(frozenset({one, other}))

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset({one, other}))

    def is_cut(self, one: str, other: str) -> bool:
        return frozenset({one, other}) in self._cut

    def new_port(self) -> int:
        return next(self._ports)

    def running(self, vm_id: str) -> list[str]:
        """Names of the hosts on which a copy runs. More than one is what must never be."""
        return [
            host.name
            for host in self.hosts.values()
            if (found := host.machines.get(vm_id)) and found.report.status is MachineStatus.RUNNING
        ]

    def lock_disks(self, vm_id: str, host: FakeHost) -> None:
        """What the hypervisor's image lock does. A second RUNNING copy is a violation, recorded for ever.

        :raise MonitorFailed: a copy elsewhere holds the lock.
        """
        for other in self.hosts.values():
            found = other.machines.get(vm_id)
            if other is host or found is None or found.report.status not in LOCKING:
                continue
            if found.report.status is MachineStatus.RUNNING:
                self.violations.append(f"{vm_id} was to run on {host.name} while it runs on {other.name}")
            raise MonitorFailed(f"failed to get the write lock: {vm_id} is {found.report.status} on {other.name}")

    async def close(self) -> None:
        """End all transfers that are under way."""
        transfers = [
            machine.transfer
            for host in self.hosts.values()
            for machine in host.machines.values()
            if machine.transfer is not None
        ]
        for transfer in transfers:
            transfer.cancel()
        await asyncio.gather(*transfers, return_exceptions=True)

    def waiting_at(self, to: Reception) -> tuple[FakeHost, FakeMachine] | None:
        """Who listens there with that key."""
        for host in self.hosts.values():
            for machine in host.machines.values():
                if machine.reception == to and machine.report.status is MachineStatus.INCOMING:
                    return host, machine
        return None


class FakeHost:
    """One host. Its machines outlive the agent; `reboot` ends them all."""

    def __init__(self, world: FakeWorld, name: str) -> None:
        self.world = world
        self.name = name
        self.machines: dict[str, FakeMachine] = {}
        self.boots = 1
        self.listeners: list[ReportListener] = []
        self._faults: defaultdict[str, list[Fault]] = defaultdict(list)
        self._pids = itertools.count(1000)
        world.hosts[name] = self

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    def new_pid(self) -> int:
        return next(self._pids)

    def fail(self, verb: str, error: NovaCronError, *, after: bool = False, times: int = 1) -> None:
        """The next `times` calls of the driver's `verb` raise `error`: before doing anything, or `after` it."""
        self._faults[verb].extend(Fault(error, after) for _ in range(times))

    def raise_fault(self, verb: str, *, after: bool) -> None:
        faults = self._faults[verb]
        if faults and faults[0].after is after:
            raise faults.pop(0).error

    def crash(self, vm_id: str, reason: str = "killed by signal 9") -> None:
        """Its process ends by itself."""
        self.set_status(self.machines[vm_id], MachineStatus.CRASHED, reason)

    def power_off(self, vm_id: str) -> None:
        """Its guest powers itself off."""
        self.set_status(self.machines[vm_id], MachineStatus.STOPPED, "guest_shutdown")

    def reboot(self) -> None:
        """The host loses power and comes back: nothing runs. Nobody is told, for the agent died too."""
        self.boots += 1
        self.listeners.clear()
        for machine in self.machines.values():
            if machine.transfer is not None:
                machine.transfer.cancel()
        self.machines.clear()

    def transfers(self) -> list[str]:
        """Ids of the machines that are being sent from here."""
        return [vm_id for vm_id, machine in self.machines.items() if machine.transfer is not None]

    def set_status(self, machine: FakeMachine, status: MachineStatus, reason: str = "") -> None:
        """Every change goes through here, and is told to the agent, if one lives."""
        before = machine.report
        if before.status is status and before.reason == reason:
            return
        machine.report = msgspec.structs.replace(
            before,
            status=status,
            reason=reason,
            since=self.world.clock.wall(),
            pid=0 if status in ENDED else before.pid,
        )
        for listener in tuple(self.listeners):
            listener(machine.report)


FEATURES = tuple(
    f"migrate.{name}" for name in ("events", "return-path", "pause-before-switchover", "late-block-activate")
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
            self._host.set_status(machine, MachineStatus.RUNNING)
        try:
            self._trouble("start", after=True)
        except NovaCronError:
            self._host.machines.pop(vm_id, None)  # nothing is left running
            raise
        return self._host.machines[vm_id].report

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

    # -- migration -----------------------------------------------------------------------------------------

    async def accept(self, launch: Launch, migration_id: str, host: str) -> Reception:
        self._trouble("accept", after=False)
        vm_id = launch.spec.vm_id
        machine = self._host.machines.get(vm_id)
        if machine is None or machine.report.status in ENDED:
            machine = self._make(launch, MachineStatus.INCOMING, migration_id)
            port = self._world.new_port()
            machine.reception = Reception(host=host, port=port, key_hex=f"{port:032x}")
        elif machine.report.migration_id != migration_id or machine.reception is None:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, sorted(ENDED), "accept")
        self._trouble("accept", after=True)
        return machine.reception

    async def send(
        self, vm_id: str, migration_id: str, to: Reception, goals: Goals, progress: ProgressListener
    ) -> Departure:  # goals bind nothing: the stream takes as long as the world says
        del goals
        self._trouble("send", after=False)
        machine = self._get(vm_id)
        if machine.report.status is not MachineStatus.HANDED_OFF:
            if machine.transfer is None:
                machine.report = msgspec.structs.replace(machine.report, migration_id=migration_id)
                machine.transfer = asyncio.create_task(self._transfer(machine, to, progress))
                machine.transfer.add_done_callback(_look)
            await self._join(machine.transfer)
        self._trouble("send", after=True)
        return Departure(stopped_ago_ms=(self._world.clock.monotonic_s() - machine.stopped_at_s) * 1e3)

    async def _join(self, transfer: asyncio.Task[Departure]) -> None:
        try:
            await asyncio.shield(transfer)
        except asyncio.CancelledError:
            if transfer.cancelled():
                raise MigrationFailed("the transfer was called off; the source runs as before") from None
            raise

    async def _transfer(self, machine: FakeMachine, to: Reception, progress: ProgressListener) -> Departure:
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
            peer.received = True
            machine.moved = True
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

    async def take_over(self, vm_id: str, migration_id: str, generation: int) -> Arrival:
        self._trouble("take_over", after=False)
        machine = self._get(vm_id)
        if machine.report.migration_id != migration_id:
            raise NotFound(f"migration {migration_id} brought no machine {vm_id} here")
        if machine.report.status is MachineStatus.INCOMING:
            if not machine.received:
                raise MonitorFailed(f"machine {vm_id} has not been received whole")
            self._world.lock_disks(vm_id, self._host)
            machine.report = msgspec.structs.replace(machine.report, generation=generation)
            self._host.set_status(machine, MachineStatus.RUNNING)
        self._trouble("take_over", after=True)
        since = self._world.clock.wall() - machine.report.since
        return Arrival(resumed_ago_ms=since.total_seconds() * 1e3, report=machine.report)

    async def verify(self, vm_id: str) -> MachineReport:
        self._trouble("verify", after=False)
        machine = self._get(vm_id)
        if machine.report.status is not MachineStatus.RUNNING:
            raise StateConflict.of(f"machine {vm_id}", machine.report.status, ("running",), "verify")
        self._trouble("verify", after=True)
        return machine.report

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
        if machine.report.status is MachineStatus.HANDED_OFF:
            self._world.lock_disks(vm_id, self._host)
            self._host.set_status(machine, MachineStatus.RUNNING)
        machine.report = msgspec.structs.replace(machine.report, migration_id="")
        machine.moved = False
        self._trouble("reclaim", after=True)
        return machine.report

    async def discard(self, vm_id: str, migration_id: str) -> None:
        self._trouble("discard", after=False)
        machine = self._host.machines.get(vm_id)
        if (
            machine is not None
            and machine.report.status is MachineStatus.INCOMING
            and machine.report.migration_id == migration_id
        ):
            self._host.set_status(machine, MachineStatus.STOPPED, "discarded")
            del self._host.machines[vm_id]
        self._trouble("discard", after=True)

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
        machine = FakeMachine(launch, report)
        self._host.machines[spec.vm_id] = machine
        self._known.add(spec.vm_id)
        for listener in tuple(self._host.listeners):
            listener(report)
        return machine


def _look(transfer: asyncio.Task[Departure]) -> None:
    """A transfer may fail while nobody waits for it; whoever asks next is told anew."""
    if not transfer.cancelled():
        transfer.exception()
