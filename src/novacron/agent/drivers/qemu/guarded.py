"""A machine and its guardian: met after a start or by the next agent, and told until when the machine may live."""

from __future__ import annotations

import contextlib

from novacron.agent.drivers.qemu.guarding import SOCKET, GuardianLine
from novacron.agent.drivers.qemu.machine import Machine


def meet(machine: Machine) -> None:
    """Open a line to its guardian. Without one its deadline stays as it is."""
    with contextlib.suppress(OSError):
        machine.guardian = GuardianLine(machine.run_dir.connect(SOCKET))


async def arm(machine: Machine, deadline_s: float, *, at_most: bool) -> bool:
    """Whether its guardian's timer is set so. Nothing of it lives: likewise."""
    if machine.guardian is None and machine.process is not None:
        meet(machine)
    guardian = machine.guardian
    if guardian is not None and await guardian.arm(deadline_s, at_most=at_most):
        return True
    if guardian is not None:  # another line the next time
        guardian.close()
        machine.guardian = None
    return machine.process is not None and not machine.process.alive
