"""A driver in memory that keeps the contract honestly: for simulations, and to show what a driver must do.

    FakeWorld   the network and the shared disks: which copies run, violations seen
    FakeHost    one host: its machines live here and outlive the agent
    FakeDriver  one agent's hands on a FakeHost; make another on the same host and it adopts

Faults: `host.fail("send", error)` makes the next call of that verb raise before doing anything, `after=True` once it
is done; `host.crash(vm_id)`, `host.power_off(vm_id)`, `host.reboot()`; `world.cut(a, b)` breaks the link of two hosts.
"""

from __future__ import annotations

from pathlib import Path

from novacron.agent.drivers.base import Adjustment, Beside, Launch, ReportListener, Taken
from novacron.errors import NovaCronError, StateConflict
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.node import Accelerator, DriverFacts
from novacron.model.prediction import Measurement
from novacron.testing import fake_adjust, fake_snapshots
from novacron.testing.fake_hands import MACHINE_TYPES
from novacron.testing.fake_moves import FakeMoves
from novacron.testing.fake_world import LOCKING, AgentDied, FakeHost, FakeMachine, FakeWorld, Life

__all__ = ["AgentDied", "FakeDriver", "FakeHost", "FakeMachine", "FakeWorld", "Life"]

FEATURES = (
    *(f"migrate.{name}" for name in ("events", "return-path", "pause-before-switchover", "late-block-activate")),
    "postcopy",
)
"""What a real driver would have found in its hypervisor."""


class FakeDriver(FakeMoves):
    """Implements drivers.base.Driver on a FakeHost; `FakeMoves` does what machines that move need."""

    name = "fake"

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

    async def kill(self, vm_id: str, reason: str) -> None:
        self._trouble("kill", after=False)
        machine = self._host.machines.get(vm_id)
        if machine is not None and machine.report.status not in ENDED:
            self._host.set_status(machine, MachineStatus.CRASHED, reason)
        self._trouble("kill", after=True)

    def has_guardian(self, vm_id: str) -> bool:
        machine = self._host.machines.get(vm_id)
        return machine is not None and machine.timer is not None

    def is_watched(self, vm_id: str) -> bool:
        return self.has_guardian(vm_id)

    async def arm(self, deadline_s: float, *, at_most: bool = False) -> bool:
        self._life.check()
        for machine in self._host.machines.values():
            if machine.timer is not None and machine.report.status not in ENDED:
                self._host.arm(machine, min(deadline_s, machine.deadline_s) if at_most else deadline_s)
        return True

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

    async def look(self, vm_id: str) -> MachineReport:
        self._trouble("look", after=False)
        return self._get(vm_id).report

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
        memory = machine.launch.spec.memory_mib << 20
        return Measurement(
            at=self._world.clock.wall(),
            interval_s=1.0,
            dirtied_bytes=0,
            memory_used_bytes=memory,
            memory_bytes=memory,
        )

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
