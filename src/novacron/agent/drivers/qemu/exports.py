"""What a QEMU lets others read or fill of its disks, over NBD: the target's of a move, under the migration's key.

open_exports → (filled) → close_exports, before the target continues
serving        for this node's agent alone, at a socket in the machine's directory
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence

from novacron.agent.drivers.qemu import tls
from novacron.agent.drivers.qemu.devices import node_of
from novacron.agent.drivers.qemu.machine import Machine
from novacron.errors import DriverError, MonitorFailed

LISTENER = "disk-exports"
OWN_LISTENER = "own-exports"


async def open_exports(machine: Machine, volume_ids: Sequence[str], address: str) -> int:
    """Let who holds the migration's key fill these disks; the port. The key is installed (`tls.install`).

    :raise DriverError: the address is not this host's. :raise MonitorFailed
    """
    monitor = machine.door()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        try:
            listening.bind((address, 0))
            listening.listen(len(volume_ids) + 1)
        except OSError as wrong:
            raise DriverError(f"no disk can be received at {address}: {wrong}") from wrong
        port: int = listening.getsockname()[1]
        await monitor.hand(LISTENER, listening.fileno())
        where = {"type": "fd", "data": {"str": LISTENER}}
        await monitor.execute("nbd-server-start", {"addr": where, "tls-creds": tls.OBJECT_ID})
    for volume_id in volume_ids:
        node = node_of(volume_id)
        export = {"type": "nbd", "id": f"export-{node}", "node-name": node, "name": volume_id, "writable": True}
        await monitor.execute("block-export-add", export | {"allocation-depth": True})
    return port


async def close_exports(machine: Machine) -> None:
    """Nobody fills them any more, and QEMU alone has them. None open: fine."""
    monitor = machine.door()
    try:
        await monitor.execute("nbd-server-stop")
    except MonitorFailed:
        if not monitor.connected:
            raise


@contextlib.asynccontextmanager
async def serving(machine: Machine, name: str) -> AsyncIterator[None]:
    """What is exported while the block runs is to be had at that socket. :raise OSError: there can be none."""
    await close_exports(machine)  # what an asking left that was cut off
    machine.run_dir.remove(name)
    listening = machine.run_dir.listen(name)
    try:
        await machine.door().hand(OWN_LISTENER, listening.fileno())
    finally:
        listening.close()
    try:
        await machine.door().execute("nbd-server-start", {"addr": {"type": "fd", "data": {"str": OWN_LISTENER}}})
        yield
    finally:
        machine.run_dir.remove(name)
        await close_exports(machine)
