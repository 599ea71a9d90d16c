"""The simulated hosts and their network: streams take as long as what they carry and who else uses the link."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from novacron.clock import Clock
from novacron.model.machine import MachineStatus
from novacron.model.prediction import Measurement
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.fake_world import FakeHost, FakeMachine, FakeWorld

TICKS = 8

Watcher = Callable[[str, str, MachineStatus], None]
"""Told of each change of a copy: host, VM id, status."""


class PacedWorld(FakeWorld):
    """dirtied_bytes_per_s: by VM id; of the others nothing changes as they move."""

    def __init__(self, clock: Clock, link_bytes_per_s: float, watcher: Watcher) -> None:
        super().__init__(clock, ticks=TICKS)
        self._link_bytes_per_s = link_bytes_per_s
        self._watcher = watcher
        self.dirtied_bytes_per_s: dict[str, float] = {}

    def changed(self, host: str, vm_id: str, status: MachineStatus) -> None:
        self._watcher(host, vm_id, status)

    def stream_bytes(self, machine: FakeMachine) -> int:
        """Its memory, and what is dirtied while that is sent, and while that is sent, and so on."""
        share = self.dirtied_bytes_per_s.get(machine.launch.spec.vm_id, 0.0) / self._link_bytes_per_s
        return int((machine.launch.spec.memory_mib << 20) / (1 - share))

    def tick_s(self, machine: FakeMachine, source: FakeHost, target: FakeHost) -> float:
        streams = max(self._streams(source), self._streams(target), 1)
        return self.stream_bytes(machine) / self.ticks / (self._link_bytes_per_s / streams)

    def _streams(self, host: FakeHost) -> int:
        """How many go out from there, and come in."""
        coming = sum(one.report.status is MachineStatus.INCOMING for one in host.machines.values())
        return coming + len(host.transfers())


class PacedDriver(FakeDriver):
    """The driver VMs are placed by; it measures what the world says their guests dirty."""

    name = "qemu"

    async def measure(self, vm_id: str) -> Measurement:
        plain = await super().measure(vm_id)
        dirtied = self._world.dirtied_bytes_per_s.get(vm_id, 0.0) if isinstance(self._world, PacedWorld) else 0.0
        return msgspec.structs.replace(plain, dirtied_bytes=int(dirtied * plain.interval_s))
