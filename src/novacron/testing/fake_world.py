"""What FakeDrivers work on: the network and the shared disks, the hosts, and the machines on them, in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import defaultdict
from pathlib import Path

import msgspec

from novacron.agent.drivers.base import DiskFile, Launch, ReportListener
from novacron.agent.drivers.handoff import Departure, DiskReception, Reception
from novacron.clock import Clock
from novacron.errors import MonitorFailed, NovaCronError
from novacron.model.machine import ENDED, MachineReport, MachineStatus

LOCKING = frozenset({MachineStatus.RUNNING, MachineStatus.PAUSED, MachineStatus.STALLED})
"""Those who hold the write lock of their disks."""


@dataclasses.dataclass
class FakeMachine:
    """One copy of a machine on one host. received: enough of its stream came in for it to run; moved: it went out.

    missing_from: (target in post-copy) the host that has the rest of its memory. opened: (source) that is this one.
    receives: (target) volumes it has filled; new_files: by volume, what takes its disks' place on this node; mirrors:
    (source) where each volume's copy is, that is kept alike; copied: the migration for which they were, to the last
    write; trail: the migration since which it is known what its guest wrote.
    """

    launch: Launch
    report: MachineReport
    reception: Reception | None = None
    received: bool = False
    stopped_at_s: float = 0.0
    moved: bool = False
    to: Reception | None = None
    whole_first: bool = True
    paused_for: str = ""  # the migration that its guest was paused for before anything was sent
    opened: bool = False
    missing_from: str = ""
    transfer: asyncio.Task[Departure] | None = None
    timer: asyncio.Task[None] | None = None  # its guardian's
    deadline_s: float = 0.0  # for which it is set
    paces: list[int] = dataclasses.field(default_factory=list)  # the bandwidths it was told as it was sent
    receives: tuple[str, ...] = ()
    mirrored_to: DiskReception | None = None
    new_files: dict[str, DiskFile] = dataclasses.field(default_factory=dict)
    mirrors: dict[str, Path] = dataclasses.field(default_factory=dict)
    copied: str = ""
    copying_out: str = ""  # the rehearsal that reads its disks
    trail: str = ""
    ignores_shutdown: bool = False
    keeps: tuple[str, ...] = ()  # ids of devices its guest does not let go of
    memory: str = ""  # what its guest remembers
    guest_takes_s: float = 0.0  # how long it lets an adjustment wait
    watched: dict[str, str] = dataclasses.field(default_factory=dict)  # what its disks held when it took over
    stays_paused: bool = False  # (target) its guest stands still at its source
    was_paused: bool = False  # (source) likewise
    kept: str = ""  # what its file beside its volumes holds, as its memory has it
    clock_off_ms: float = 0.0  # how far its guest's clock is ahead of its host's
    is_dumb: bool = False  # nobody in its guest answers, and its clock cannot be told

    def listens_at(self, to: Reception) -> bool:
        """Whether that is where it was told to await its memory. Its disks come by themselves."""
        return self.reception is not None and msgspec.structs.replace(self.reception, disks=None) == to


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
    """What the hosts share. `transfer_s`: how long a migration stream takes on its clock, told in `ticks` reports.

    converges: whether pre-copy comes to an end by itself; where post-copy may follow, it does when it does not.
    resumes: whether a copy of disks that broke off can be gone on with.
    """

    def __init__(self, clock: Clock, *, transfer_s: float = 0.0, ticks: int = 4) -> None:
        self.clock = clock
        self.transfer_s = transfer_s
        self.ticks = ticks
        self.converges = True
        self.resumes = False
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

    def changed(self, host: str, vm_id: str, status: MachineStatus) -> None:
        """A copy on that host is in that status from now on; for worlds that count."""

    def stream_bytes(self, machine: FakeMachine) -> int:
        """How much goes over the network for its memory to come over."""
        return machine.launch.spec.memory_mib << 20

    def tick_s(self, machine: FakeMachine, source: FakeHost, target: FakeHost) -> float:  # noqa: ARG002
        """How long the next of the `ticks` parts of its stream takes."""
        return self.transfer_s / self.ticks

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
        """End all transfers that are under way, and all timers."""
        transfers = [
            machine.transfer
            for host in self.hosts.values()
            for machine in host.machines.values()
            if machine.transfer is not None
        ]
        for transfer in transfers:
            transfer.cancel()
        timers = [one.timer for host in self.hosts.values() for one in host.machines.values() if one.timer is not None]
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*transfers, *timers, return_exceptions=True)

    def listening_at(self, to: Reception) -> tuple[FakeHost, FakeMachine] | None:
        """Who was given that reception last, whatever it does by now."""
        for host in self.hosts.values():
            for machine in host.machines.values():
                if machine.listens_at(to) and machine.report.status not in ENDED:
                    return host, machine
        return None

    def waiting_at(self, to: Reception) -> tuple[FakeHost, FakeMachine] | None:
        """Who listens there with that key."""
        for host in self.hosts.values():
            for machine in host.machines.values():
                if machine.listens_at(to) and machine.report.status is MachineStatus.INCOMING:
                    return host, machine
        return None

    def filled_at(self, to: DiskReception) -> tuple[FakeHost, FakeMachine] | None:
        """Who takes in disks there with that key."""
        for host in self.hosts.values():
            for machine in host.machines.values():
                given = machine.reception.disks if machine.reception else None
                ours = given is not None and (given.port, given.key_hex) == (to.port, to.key_hex)
                if ours and machine.report.status is MachineStatus.INCOMING:
                    return host, machine
        return None


TIMED_OUT = "ended by its guardian's timer"


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

    def arm(self, machine: FakeMachine, deadline_s: float) -> None:
        """Have the kernel end it at that time, whatever agent lives then."""
        if machine.timer is not None:
            machine.timer.cancel()
        machine.deadline_s = deadline_s
        machine.timer = asyncio.create_task(self._fire(machine, deadline_s), name=f"timer {self.name}")

    async def _fire(self, machine: FakeMachine, deadline_s: float) -> None:
        await self.world.clock.sleep(deadline_s - self.world.clock.monotonic_s())
        if machine.report.status not in ENDED:
            self.set_status(machine, MachineStatus.CRASHED, TIMED_OUT)

    def power_off(self, vm_id: str) -> None:
        """Its guest powers itself off."""
        self.set_status(self.machines[vm_id], MachineStatus.STOPPED, "guest_shutdown")

    def reboot(self) -> None:
        """The host loses power and comes back: nothing runs. Nobody is told, for the agent died too."""
        self.boots += 1
        self.listeners.clear()
        for machine in self.machines.values():
            for task in (machine.transfer, machine.timer):
                if task is not None:
                    task.cancel()
        gone = tuple(self.machines)
        self.machines.clear()
        for vm_id in gone:
            self.world.changed(self.name, vm_id, MachineStatus.ABSENT)

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
        self.world.changed(self.name, before.vm_id, status)
        for listener in tuple(self.listeners):
            listener(machine.report)
