"""What both halves of the fake driver lay hands on: machines of its host, made, found and ended, and faults."""

from __future__ import annotations

from novacron.agent.drivers.base import Launch, ReportListener
from novacron.errors import NotFound
from novacron.model.machine import ENDED, Endpoint, MachineReport, MachineStatus, StopMode
from novacron.testing import fake_keep
from novacron.testing.fake_world import FakeHost, FakeMachine, Life

MACHINE_TYPES = {"q35": "pc-q35-fake", "microvm": "microvm"}


class FakeHands:
    """One agent's, on a FakeHost."""

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
        if launch.deadline_s is not None:
            self._host.arm(machine, launch.deadline_s)
        self._known.add(spec.vm_id)
        for listener in tuple(self._host.listeners):
            listener(report)
        return machine
