"""The driver contract: what any hypervisor can do with a machine of this node (suite: tests/contract/test_driver.py).

A driver knows processes and monitors, no generations, no storage pools and no cluster: `agent.machines` and
`agent.mover` resolve those first and hand it a Launch. What that is made of stands in launch, the verbs for machines
that move in moves; who needs either takes it from here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from novacron.agent.drivers.launch import (
    DiskFile,
    FileAt,
    IscsiAt,
    Launch,
    Layer,
    Medium,
    NbdAt,
    NicPlug,
    RbdAt,
    Source,
)
from novacron.agent.drivers.moves import Moves, ProgressListener
from novacron.errors import Reason
from novacron.model.machine import MachineReport, MachineSpec, StopMode
from novacron.model.node import DriverFacts
from novacron.model.prediction import Measurement
from novacron.model.snapshot import Consistency

__all__ = [
    "CONSOLE_FILE",
    "Adjustment",
    "Beside",
    "DiskFile",
    "Driver",
    "FileAt",
    "IscsiAt",
    "Launch",
    "Layer",
    "Medium",
    "NbdAt",
    "NicPlug",
    "ProgressListener",
    "RbdAt",
    "ReportListener",
    "Source",
    "Taken",
]

CONSOLE_FILE = "console.log"
"""Where in its run directory a machine's serial line is written, appending."""


class Adjustment(msgspec.Struct, frozen=True, kw_only=True):
    """now: the spec as the machine runs with it; pending: one reason for each wish that waits for the next start."""

    report: MachineReport
    now: MachineSpec
    pending: tuple[Reason, ...] = ()


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a running machine. stood_still_ms: how long its guest waited for it."""

    consistency: Consistency
    memory_bytes: int = 0
    stood_still_ms: float = 0.0


Beside = Callable[[], Awaitable[None]]
"""What else is to be done while the machine's disks do not change."""

ReportListener = Callable[[MachineReport], None]


class Driver(Moves, Protocol):
    """What a driver does with machines, also with those that move (`Moves`).

    Every verb is idempotent: asked again, it finds its work done and says so. Each raises DriverError's children only:
    MachineDied (with the process's last words), MonitorFailed, Unsupported, and DeadlineExceeded when a monitor does
    not answer in time.
    """

    name: str

    def subscribe(self, listener: ReportListener) -> None:
        """`listener` is called in the event loop at every change of a machine's status."""
        ...

    async def probe(self) -> DriverFacts:
        """What this driver can do here. Slow the first time; cached per hypervisor binary and host boot."""
        ...

    async def adopt(self, run_dirs: list[Path]) -> list[MachineReport]:
        """Find machines that outlived the agent, by pid + start time + boot id + monitor, never by name."""
        ...

    async def start(self, launch: Launch) -> MachineReport:
        """Boot it, or let it begin as a copy of a parked machine. If this fails nothing of it is left running.

        A copy gets a new identity before it has a card: one for the guest's kernel (VM generation id), and with a
        guest agent also host name, machine id, host keys and clock.
        """
        ...

    async def park(self, vm_id: str, state: Path) -> MachineReport:
        """Write its devices' state to `state` and end it; its memory stays in the file it was started with.

        If this fails it runs (or stands still) as before, and there is no such file.
        """
        ...

    async def stop(self, vm_id: str, mode: StopMode, deadline_s: float) -> MachineReport:
        """End it. Graceful: ask the guest, force at the deadline. Absent: fine."""
        ...

    async def kill(self, vm_id: str, reason: str) -> None:
        """End its process at once, whatever is going on; it has crashed, for that reason. Ended or absent: fine.

        :raise DriverError: it does not die.
        """
        ...

    def has_guardian(self, vm_id: str) -> bool:
        """Whether it was started with a deadline (Launch.deadline_s), and ends by the kernel's hand when that comes."""
        ...

    def is_watched(self, vm_id: str) -> bool:
        """Whether it has a guardian, and the watchdog's keeper sees whether it lives (agent.keeper)."""
        ...

    async def arm(self, deadline_s: float, *, at_most: bool = False) -> bool:
        """Give every machine with a guardian that deadline, whatever it had; at_most: unless it has an earlier one.

        Whether that is so of every one that lives.
        """
        ...

    async def pause(self, vm_id: str) -> MachineReport: ...

    async def resume(self, vm_id: str) -> MachineReport: ...

    async def adjust(self, launch: Launch) -> Adjustment:
        """Make a machine that runs (or stands still) as the launch says: plug, unplug, grow, limit, change media.

        What cannot be done now is a reason in the answer, never an error; `now` says what then runs, truly, and was
        asked of the hypervisor. Cancelled half-way, or asked again: the next asking finds what there is.

        :raise NotFound: it does not know the machine. :raise StateConflict: it has ended, or its state is on the way.
        """
        ...

    def report(self, vm_id: str) -> MachineReport | None:
        """As last seen; None: the driver does not know it."""
        ...

    def reports(self) -> list[MachineReport]: ...

    async def look(self, vm_id: str) -> MachineReport:
        """Ask the hypervisor anew what it does. Changes nothing; one that does not answer is `unknown`.

        :raise NotFound: it does not know the machine.
        """
        ...

    async def forget(self, vm_id: str) -> None:
        """Drop a machine that has ended. :raise StateConflict: it still runs."""
        ...

    async def close(self) -> None:
        """Let go of monitors. Machines run on."""
        ...

    async def measure(self, vm_id: str) -> Measurement:
        """What it writes within a second, and what it holds of its memory. Changes nothing.

        :raise NotFound: it does not know the machine. :raise StateConflict: it has ended, or its memory is on the way.
        :raise Unsupported: this hypervisor does not measure.
        """
        ...

    # -- snapshots of a machine whose process lives, in its qcow2 disks. Those of one at rest are its pools' affair.

    async def take_snapshot(
        self, vm_id: str, snapshot_id: str, *, memory: bool = False, quiesce: bool = False, beside: Beside | None = None
    ) -> Taken:
        """Of all its disks at one moment, or of none. It runs on as before, whatever comes of it.

        memory: with all it has in memory. quiesce: its guest freezes its file systems for it, and thaws them in any
        case. beside: what other disks need, done while the guest stands still; when it fails nothing is taken.

        :raise Unsupported: there is no place for its memory, or no guest agent answers.
        """
        ...

    async def delete_snapshot(self, vm_id: str, snapshot_id: str) -> None:
        """Absent: fine. Its disks and the other snapshots keep their content."""
        ...

    async def restore(self, launch: Launch, snapshot_id: str) -> MachineReport:
        """Start it with the disks and the memory of a snapshot. If this fails nothing of it is left running.

        :raise StateConflict: it runs.
        """
        ...
