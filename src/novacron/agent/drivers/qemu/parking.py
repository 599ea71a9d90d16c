"""Parking a machine, whose memory is a file already: its devices' state goes into another; copies begin from both."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from novacron.agent.drivers.qemu import identity, status
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.record import Ending
from novacron.errors import DeadlineExceeded, MonitorFailed, NovaCronError, StateConflict
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus

DEADLINE_S = 30.0
_NAME = "parked"
_STANDS = (MachineStatus.RUNNING, MachineStatus.PAUSED)


async def park(machine: Machine, state: Path) -> MachineReport:
    """As the contract says. :raise StateConflict: it does not run. :raise MonitorFailed, DeadlineExceeded"""
    if machine.ended:
        raise machine.died()
    if machine.leaving or machine.status not in _STANDS:
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, ("running", "paused"), "park")
    ran = machine.status is MachineStatus.RUNNING
    making = state.with_name(f".{state.name}")
    try:
        await machine.door().execute("stop")
        with _opened(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
            await _transfer(machine, descriptor, "migrate")
            await asyncio.to_thread(os.fsync, descriptor)
        making.rename(state)
    except BaseException:  # half of a state lies under another name, and is written over
        if ran and not machine.ended:
            await machine.door().execute("cont")
        raise
    await machine.end(Ending(MachineStatus.PARKED, ""))
    return machine.report()


async def begin_from(machine: Machine, spec: MachineSpec, state: Path) -> MachineReport:
    """Let it run on from where the parked one stood, as a machine of its own. Errors as for `load` and `renew`."""
    await load(machine, state)
    await machine.door().execute("cont")
    if spec.guest_agent:
        await identity.renew(machine, spec)
    machine.record.copying = False
    machine.save()
    return await machine.refresh()


async def load(machine: Machine, state: Path) -> None:
    """Give a machine that waits for a stream the state of a parked one. It stands still afterwards.

    :raise MonitorFailed: it does not fit, with QEMU's words. :raise DeadlineExceeded
    """
    with _opened(state, os.O_RDONLY) as descriptor:
        await _transfer(machine, descriptor, "migrate-incoming")


async def _transfer(machine: Machine, descriptor: int, command: str) -> None:
    """The state of all devices and none of the memory, through the descriptor."""
    monitor = machine.door()
    await monitor.execute("migrate-set-capabilities", _ignoring(memory=True))
    machine.migration_state = "none"
    await monitor.hand(_NAME, descriptor)
    await monitor.execute(command, {"uri": f"fd:{_NAME}"})
    try:
        await machine.until(lambda: machine.ended or machine.migration_state in status.OVER, DEADLINE_S, "be parked")
    except DeadlineExceeded:
        await monitor.execute("migrate_cancel")
        raise
    if machine.ended:
        raise machine.died()
    if machine.migration_state != "completed":
        told = (await monitor.execute("query-migrate")).get("error-desc", "it does not say why")
        raise MonitorFailed(f"the state of machine {machine.vm_id} could not be kept or taken: {told}")
    await monitor.execute("migrate-set-capabilities", _ignoring(memory=False))


def _ignoring(*, memory: bool) -> dict[str, object]:
    wanted = {"x-ignore-shared": memory, "events": True}
    return {"capabilities": [{"capability": name, "state": state} for name, state in wanted.items()]}


@contextmanager
def _opened(path: Path, how: int) -> Iterator[int]:
    try:
        descriptor = os.open(path, how | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as wrong:
        raise NovaCronError(f"{path} cannot be opened: {wrong.strerror}") from wrong
    try:
        yield descriptor
    finally:
        os.close(descriptor)
