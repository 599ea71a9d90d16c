"""The verbs of a machine that stays: begin, pause, resume, and stop, asked politely first."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Callable

from novacron.agent.drivers.qemu import guest_agent, status
from novacron.agent.drivers.qemu.machine import GUEST_AGENT_SOCKET, KILL_DEADLINE_S, Machine
from novacron.agent.drivers.qemu.record import Ending
from novacron.errors import DeadlineExceeded, MonitorFailed, StateConflict
from novacron.model.machine import MachineReport, MachineStatus

GUEST_AGENT_DEADLINE_S = 2.0
_LIVE = (MachineStatus.RUNNING, MachineStatus.PAUSED, MachineStatus.STALLED)


async def begin(machine: Machine) -> MachineReport:
    """Let a machine that has just been made run. One that has begun before is left as it is."""
    report = await machine.refresh()
    if report.status is MachineStatus.PAUSED and report.reason == status.NOT_BEGUN:
        await machine.door().execute("cont")
        return await machine.refresh()
    if report.status in (MachineStatus.INCOMING, MachineStatus.HANDED_OFF):
        raise StateConflict.of(f"machine {machine.vm_id}", report.status.value, ("absent", "stopped"), "start")
    return report


async def pause(machine: Machine) -> MachineReport:
    """Stand still. So already: fine. :raise StateConflict: it is on its way elsewhere, or has ended."""
    demand(machine, "pause")
    if machine.status is not MachineStatus.PAUSED:
        await machine.door().execute("stop")
    report = await machine.refresh()
    machine.full = ()  # one that stands still for want of room now does so because it was told to
    return report


async def resume(machine: Machine) -> MachineReport:
    """Go on, also after a disk error. So already: fine.

    :raise StateConflict: it is on its way elsewhere (whoever owns it decides where it runs), or has ended.
    """
    demand(machine, "resume")
    if machine.status is not MachineStatus.RUNNING:
        await machine.door().execute("cont")
    return await machine.refresh()


async def stop(machine: Machine, patience_s: float) -> MachineReport:
    """End it: ask the guest and wait so long for it, then end the process. patience_s 0: at once.

    :raise DriverError: the process cannot be killed.
    """
    reason = "it was stopped"
    if patience_s > 0 and machine.status in _LIVE and not machine.leaving and not machine.ended:
        if await ask_guest(machine, patience_s, lambda: machine.ended):
            return machine.report()
        reason = f"it was ended by force: the guest did not shut down within {patience_s:g} s"
    if machine.work is not None:
        machine.work.cancel()
    if machine.ended:
        if machine.status is MachineStatus.CRASHED:  # told to be gone, it is as it should be
            machine.record.ending = Ending(MachineStatus.STOPPED, reason)
            machine.save()
            machine.become(MachineStatus.STOPPED, reason)
        return machine.report()
    await machine.end(Ending(MachineStatus.STOPPED, reason))
    return machine.report()


async def kill(machine: Machine, reason: str) -> None:
    """SIGKILL, with the reason noted first. :raise DriverError: it does not die."""
    if machine.ended:
        return
    machine.record.ending = Ending(MachineStatus.CRASHED, reason)
    machine.save()
    await machine.kill()
    await machine.until(lambda: machine.ended, KILL_DEADLINE_S, "end")


async def ask_guest(machine: Machine, patience_s: float, over: Callable[[], bool]) -> bool:
    """Have the guest shut down; whether it has, and it is `over`, in time."""
    try:
        if machine.status is not MachineStatus.RUNNING:
            await machine.door().execute("cont")  # a guest that stands still cannot shut down
        if not (machine.record.guest_agent and await _by_agent(machine)):
            await machine.door().execute("system_powerdown")
        await machine.until(over, patience_s, "shut down")
    except (DeadlineExceeded, MonitorFailed):
        return over()
    return True


async def _by_agent(machine: Machine) -> bool:
    connection: socket.socket | None = None
    with contextlib.suppress(OSError):
        connection = machine.run_dir.connect(GUEST_AGENT_SOCKET)
    if connection is None:
        return False
    return await guest_agent.shut_down(connection, secrets.randbits(31), GUEST_AGENT_DEADLINE_S)


def demand(machine: Machine, verb: str) -> None:
    """:raise MachineDied: it has ended. :raise StateConflict: it is on its way elsewhere."""
    if machine.ended:
        raise machine.died()
    if machine.leaving or machine.status not in _LIVE:
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, tuple(state.value for state in _LIVE), verb)
