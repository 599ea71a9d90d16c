"""The source's disks in a move: copied while the guest runs, alike to the last write when it stands, or let go of."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from novacron.agent.drivers.base import DiskFile, ProgressListener
from novacron.agent.drivers.qemu import mirror, power, status, tls
from novacron.agent.drivers.qemu.blocks import hold
from novacron.agent.drivers.qemu.devices import other_node, secrets, storage
from novacron.agent.drivers.qemu.look import check_may_leave, disk_nodes
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.mirror import Copied, Order
from novacron.agent.drivers.qemu.record import Ending
from novacron.agent.drivers.qemu.refill import Refill
from novacron.errors import MigrationFailed
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus
from novacron.model.migration import Goals, Progress

BY_FORCE = "it was ended by force: the guest did not shut down within {:g} s"


async def begin(machine: Machine, order: Order) -> None:
    """Have QEMU copy, unless it does.

    :raise MigrationFailed: it could not begin; nothing of it is left. :raise StateConflict: see `check_may_leave`.
    """
    check_may_leave(machine)
    machine.record.copied = ""
    await mirror.begin(machine, order)


async def copied(
    machine: Machine,
    volume_ids: Sequence[str],
    features: tuple[str, ...],
    progress: ProgressListener,
    stall_s: float,
    bytes_per_s: int = 0,
) -> int:
    """Wait until they are alike; the bytes that were copied. Errors as `mirror.ready`.

    bytes_per_s: for what is brought to targets that hold the rest from an earlier copy.
    """
    brought = Copied(0, 0)

    def tell(seen: Copied) -> None:
        at, done, total = machine.clock.wall(), seen.done_bytes, seen.total_bytes
        done, total = brought.done_bytes + done, brought.total_bytes + total
        progress(Progress(at=at, disk_total_bytes=total, disk_copied_bytes=done))

    brought = await Refill(machine, bytes_per_s, stall_s).run(volume_ids, tell)
    return brought.done_bytes + (await mirror.ready(machine, volume_ids, tell, features, stall_s)).done_bytes


async def begin_copy(machine: Machine, order: Order) -> None:
    """Have QEMU copy its disks for another machine, unless it does.

    A single disk is copied behind the guest's back: its writes never wait. Several are kept alike once they are, since
    only so there is one moment at which the target can close the door behind all of them.

    :raise MigrationFailed: it could not begin; nothing of it is left.
    """
    await mirror.begin(machine, order, behind=len(order.volume_ids) == 1)


async def end_copy(machine: Machine, volume_ids: Sequence[str]) -> None:
    """A single disk's copy is as the disk is at this moment, on its storage; several are left to the target's cut.

    :raise MigrationFailed: it may lack something.
    """
    if len(volume_ids) == 1:
        await mirror.finish(machine, volume_ids)


async def drop_copy(machine: Machine) -> None:
    """Nothing of a copy for another machine is left, nor its key. None, or ended: fine."""
    await drop(machine)
    tls.erase(machine.run_dir)


async def finish(machine: Machine, migration_id: str, volume_ids: tuple[str, ...]) -> None:
    """Its guest stands still: have the disks alike to the last write, and note that. Done before: fine.

    :raise MigrationFailed: they may differ.
    """
    if not volume_ids or machine.record.copied == migration_id:
        return
    await Refill(machine, 0, mirror.FINISH_DEADLINE_S).finish()
    await mirror.finish(machine, volume_ids)
    machine.record.copied = migration_id
    machine.save()


async def halt(machine: Machine, migration_id: str, volume_ids: tuple[str, ...], patience_s: float) -> MachineReport:
    """End it, the guest asked first; between the guest's end and QEMU's the disks are made alike.

    :raise MigrationFailed: they may differ; if it has ended, its own are the good ones.
    """
    if not volume_ids:
        return await power.stop(machine, patience_s)
    if not machine.ended:
        machine.lingers = True
        try:
            reason = await _stand(machine, patience_s)
            await finish(machine, migration_id, volume_ids)
        finally:
            machine.lingers = False
        await machine.end(Ending(MachineStatus.STOPPED, reason))
    if machine.record.copied != migration_id:
        raise MigrationFailed(f"machine {machine.vm_id} ended before all of its disks had been copied")
    return machine.report()


async def _stand(machine: Machine, patience_s: float) -> str:
    """Have its guest shut down, or stand still for good when it does not. How it ended, in words."""
    report = await machine.refresh()
    if report.reason in (status.NOT_BEGUN, status.SHUT_DOWN):
        return report.reason
    if await power.ask_guest(machine, patience_s, lambda: machine.ended or machine.reason == status.SHUT_DOWN):
        return status.GUEST_SHUTDOWN
    await machine.door().execute("stop")
    return BY_FORCE.format(patience_s)


async def begin_here(machine: Machine, files: Sequence[DiskFile], goals: Goals, features: tuple[str, ...]) -> None:
    """Have QEMU copy its disks into these files, unless it does.

    :raise MigrationFailed: it could not begin; nothing of it is left.
    """
    monitor, record = machine.door(), machine.record
    missing = await mirror.unbegun(monitor, [file.volume_id for file in files])
    record.copied, record.pivoting = "", False
    if not missing:
        return
    own, speed = mirror.layered(machine), mirror.part(goals.bandwidth_bytes_per_s, len(files))
    async with mirror.all_or_none(machine):
        await hold(machine)
        nodes = await disk_nodes(monitor)
        for file in (one for one in files if one.volume_id in missing):
            node = nodes[file.volume_id]
            target, sync = other_node(node), "top" if file.backing and file.volume_id in own else "full"
            for secret in secrets(file):
                await monitor.execute("object-add", secret)
            await monitor.execute("blockdev-add", storage(file, target))
            await mirror.start(
                monitor, file.volume_id, node, target, features, sync=sync, bytes_per_s=speed, finalize=False
            )


async def pivot(machine: Machine, migration_id: str, wanted: MachineSpec) -> MachineReport:
    """Have it work with the copies alone, all of them or none; noted before, so that who asks again goes on.

    A QEMU that ended meanwhile leaves both alike: each write it had said to be done was in both.

    :raise MigrationFailed: none; the disks it has are the good ones.
    """
    record, before = machine.record, machine.record.spec
    if record.copied == migration_id or before is None:
        return machine.report()
    lies_in = {disk.volume_id: disk.pool_id for disk in before.disks}
    moved = [disk.volume_id for disk in wanted.disks if lies_in.get(disk.volume_id, disk.pool_id) != disk.pool_id]
    if not machine.ended:
        if not record.pivoting:
            await mirror.check_alike(machine, moved)
            record.pivoting = True
            machine.save()
        try:
            await mirror.complete(machine)
        except MigrationFailed:
            record.pivoting = False
            machine.save()
            raise
    elif not record.pivoting:
        raise MigrationFailed(f"machine {machine.vm_id} ended before it worked with its new disks")
    record.spec = msgspec.structs.replace(before, disks=wanted.disks, pools=wanted.pools)
    record.copied, record.pivoting = migration_id, False
    machine.save()
    return machine.report()


async def drop(machine: Machine) -> None:
    """The copies are of no use any more. None, or ended: fine."""
    if not machine.ended:
        await mirror.drop(machine)
