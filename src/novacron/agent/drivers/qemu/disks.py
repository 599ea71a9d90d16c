"""The source's disks in a move: copied while the guest runs, alike to the last write when it stands, or let go of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from novacron.agent.drivers.base import DiskFile, ProgressListener
from novacron.agent.drivers.handoff import DiskReception
from novacron.agent.drivers.qemu import mirror, power, status, tls
from novacron.agent.drivers.qemu.blocks import hold
from novacron.agent.drivers.qemu.devices import other_node, secrets, storage
from novacron.agent.drivers.qemu.look import check_may_leave, disk_nodes
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.mirror import Copied
from novacron.agent.drivers.qemu.record import Ending
from novacron.agent.drivers.qemu.refill import Refill
from novacron.errors import DriverError, MigrationFailed
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus
from novacron.model.migration import Goals, Progress

BY_FORCE = "it was ended by force: the guest did not shut down within {:g} s"


class Order(msgspec.Struct, frozen=True):
    """Which disks are to be copied where. features: of this QEMU."""

    migration_id: str
    to: DiskReception
    volume_ids: tuple[str, ...]
    goals: Goals
    features: tuple[str, ...]


async def begin(machine: Machine, order: Order) -> None:
    """Have QEMU copy, unless it does.

    :raise MigrationFailed: it could not begin; nothing of it is left. :raise StateConflict: see `check_may_leave`.
    """
    check_may_leave(machine)
    record, spec = machine.record, machine.record.spec
    tls.write(machine.run_dir, order.migration_id, order.to.key_hex, record.uid, record.gid)
    layered = {disk.volume_id for disk in spec.disks if disk.backing_digest} if spec else set()
    record.copied = ""
    await mirror.begin(
        machine,
        order.migration_id,
        order.to,
        order.volume_ids,
        order.features,
        layered,
        order.goals.bandwidth_bytes_per_s,
    )


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


async def begin_copy(machine: Machine, order: Order, exports: Mapping[str, str]) -> None:
    """Have QEMU copy its disks for another machine, unless it does. exports: by volume, its name at the target.

    A single disk is copied behind the guest's back: its writes never wait. Several are kept alike once they are, since
    only so there is one moment at which the target can close the door behind all of them.

    :raise MigrationFailed: it could not begin; nothing of it is left.
    """
    record, spec = machine.record, machine.record.spec
    tls.write(machine.run_dir, order.migration_id, order.to.key_hex, record.uid, record.gid)
    await mirror.begin(
        machine,
        order.migration_id,
        order.to,
        order.volume_ids,
        order.features,
        {disk.volume_id for disk in spec.disks if disk.backing_digest} if spec else set(),
        order.goals.bandwidth_bytes_per_s,
        exports=exports,
        behind=len(order.volume_ids) == 1,
    )


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
    known, nodes = {job.id for job in await mirror.jobs(monitor)}, await disk_nodes(monitor)
    own = {disk.volume_id for disk in record.spec.disks if disk.backing_digest} if record.spec else set()
    record.copied, record.pivoting = "", False
    try:
        await hold(machine)
        for file in files:
            if mirror.job_of(file.volume_id) in known:
                continue
            node = nodes[file.volume_id]
            target = other_node(node)
            for secret in secrets(file):
                await monitor.execute("object-add", secret)
            await monitor.execute("blockdev-add", storage(file, target))
            await mirror.start(
                monitor,
                file.volume_id,
                node,
                target,
                features,
                sync="top" if file.backing and file.volume_id in own else "full",
                bytes_per_s=mirror.part(goals.bandwidth_bytes_per_s, len(files)),
                finalize=False,
            )
    except DriverError as wrong:
        await mirror.drop(machine)
        raise MigrationFailed(f"its disks cannot be copied: {wrong.message}", wrong.reasons) from wrong


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
