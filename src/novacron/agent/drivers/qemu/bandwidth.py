"""How fast a machine's memory and disks leave, changed while they do."""

from __future__ import annotations

import msgspec

from novacron.agent.drivers.qemu import mirror, status
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import pace
from novacron.agent.drivers.qemu.record import Role
from novacron.errors import StateConflict


async def change(machine: Machine, migration_id: str, bytes_per_s: int) -> None:
    """From now on so fast; 0: as it goes. All disks that are being copied share it, as they did when they began.

    A stream that goes through this node's proxy is not touched: the proxy keeps to the bandwidth.

    :raise StateConflict: nothing of it is on its way.
    """
    monitor = machine.door()
    copying = [job for job in await mirror.jobs(monitor) if job.status not in mirror.ENDED]
    for job in copying:
        speed = mirror.part(bytes_per_s, len(copying))
        await monitor.execute("block-job-set-speed", {"device": job.id, "speed": speed})
    transfer = machine.transfer(migration_id, Role.SOURCE)
    sends = (
        transfer is not None and not transfer.closed and machine.migration_state in status.UNDER_WAY | status.POSTCOPY
    )
    if transfer is not None and sends:
        if not transfer.proxied:
            await monitor.execute("migrate-set-parameters", pace(bytes_per_s))
        transfer.goals = msgspec.structs.replace(transfer.goals, bandwidth_bytes_per_s=bytes_per_s)
        machine.save()
    if not copying and not sends:
        raise StateConflict.of(f"machine {machine.vm_id}", machine.status.value, ("being sent",), "pace")
