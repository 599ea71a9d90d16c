"""Find machines that outlived the agent: by pid, start time and boot of the record, and by what QEMU itself says."""

from __future__ import annotations

from pathlib import Path

from novacron.agent.drivers.base import ReportListener
from novacron.agent.drivers.qemu import guarded, process, record, snapshot
from novacron.agent.drivers.qemu.machine import HANG_UP_DEADLINE_S, Machine
from novacron.agent.drivers.qemu.process import find_in
from novacron.agent.drivers.qemu.record import Ending
from novacron.agent.drivers.qemu.rundir import RunDir
from novacron.clock import Clock
from novacron.errors import DeadlineExceeded, MonitorFailed
from novacron.model.machine import MachineStatus

ATTACH_DEADLINE_S = 2.0


async def adopt(path: Path, clock: Clock, listener: ReportListener) -> Machine | None:
    """The machine of that run directory, its process held and its status asked for; None: there is no record.

    A process whose monitor does not answer is held all the same, and its monitor is opened as soon as it does. One
    that is gone is stopped if that was noted before, else crashed.
    """
    run_dir = RunDir(path)
    noted = record.load(run_dir)
    if noted is None:
        return None
    machine = Machine(noted, run_dir, clock, listener)
    if noted.identity is None:  # the agent died between starting it and noting its pid
        noted.identity = find_in(path, noted.vm_id)
        if noted.identity is not None:
            machine.save()
    held = process.find(noted.identity) if noted.identity else None
    if held is None:
        _ended(machine)
        return machine
    machine.hold(held)
    if noted.guarded:
        guarded.meet(machine)
    snapshot.thaw_later(machine)
    try:
        await machine.attach(ATTACH_DEADLINE_S)
    except (MonitorFailed, DeadlineExceeded) as wrong:
        if not await held.wait(HANG_UP_DEADLINE_S):  # it may be ending this very moment
            machine.unheard(wrong.message)
            machine.reattach_later()
        return machine
    if noted.copying and noted.ending is None:  # it is still somebody else inside
        noted.ending = Ending(MachineStatus.ABSENT, "its beginning was cut off")
    if noted.ending is not None:
        await machine.end(noted.ending)  # an earlier agent had begun to
    else:
        await machine.refresh()
    return machine


def _ended(machine: Machine) -> None:
    ending = machine.record.ending
    if ending is not None:
        machine.become(ending.status, ending.reason)
        return
    words = machine.last_words()
    reason = "it ended while no agent watched"
    machine.become(MachineStatus.CRASHED, f"{reason}; {words}" if words else reason)
