"""The source's side of a migration: send the state, and take it back at whatever moment.

A transfer is followed by a task of the machine's own, not of the caller: whoever asks `send` again joins it, and
an agent that starts anew goes on following what QEMU is doing.
"""

from __future__ import annotations

import asyncio

import msgspec

from novacron.agent.drivers.handoff import Departure, Reception
from novacron.agent.drivers.qemu import disks, mirror, postcopy, status, tls, tpm
from novacron.agent.drivers.qemu.follow import Follower, halt
from novacron.agent.drivers.qemu.look import check_may_leave, check_whole
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import (
    Info,
    address_of,
    capabilities,
    figures_of,
    require,
    source_parameters,
)
from novacron.agent.drivers.qemu.record import Ending, Role, Transfer
from novacron.agent.drivers.qemu.takeback import SETTLE_DEADLINE_S, abort, settle, settled
from novacron.errors import DriverError, MigrationFailed, StateConflict
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Figures, Goals, Tactics


class Order(msgspec.Struct, frozen=True):
    """What is to be sent where, and how. features: of this QEMU; stall_s: given up when nothing moves for so long.

    volumes: disks that are being kept alike on both sides.
    """

    migration_id: str
    to: Reception
    goals: Goals
    tactics: Tactics
    features: tuple[str, ...]
    stall_s: float
    volumes: tuple[str, ...] = ()


async def begin(machine: Machine, order: Order) -> None:
    """Have QEMU send, unless this very transfer is under way or done.

    :raise MigrationFailed: it could not begin; the machine runs as before.
    :raise StateConflict: it is not there to be sent, or cannot be sent again before it has run, or its guest let go of
        a device that the target was told of.
    """
    before = machine.transfer(order.migration_id, Role.SOURCE)
    if before is not None:
        await machine.refresh()
        rejoin(machine, order.stall_s)
        if machine.leaving or machine.status is MachineStatus.HANDED_OFF:
            return
    if machine.leaving or machine.status not in (MachineStatus.RUNNING, MachineStatus.PAUSED):
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, ("running", "paused"), "send")
    check_may_leave(machine)
    await check_whole(machine)
    await mirror.check_alike(machine, order.volumes)
    now = machine.clock.monotonic_s()
    transfer = Transfer(
        migration_id=order.migration_id,
        role=Role.SOURCE,
        goals=order.goals,
        tactics=order.tactics,
        # An agent that ended after it had stopped the guest has left us a pause that is no wish of anybody's.
        was_paused=before.was_paused if before else machine.status is MachineStatus.PAUSED,
        halted=before is not None and before.halted,
        stopped_at_s=before.stopped_at_s if before else None,
        began_at_s=now,
        finish_by_s=now + order.goals.finish_within_s,
        volumes=order.volumes,
        proxied=order.to.socket is not None,
        patience_s=order.to.patience_s,
    )
    machine.record.copied = ""
    machine.record.transfer = transfer
    machine.save()
    try:
        await _prepare(machine, order)
        if order.tactics.stands_still:
            await halt(machine, transfer)
        await _order(machine, transfer, order)
    except BaseException as wrong:
        await settle(machine)
        if isinstance(wrong, DriverError):
            raise MigrationFailed(f"the transfer could not begin: {wrong.message}", wrong.reasons) from wrong
        raise


async def _prepare(machine: Machine, order: Order) -> None:
    require(order.features, order.tactics, order.to.channels)
    monitor = machine.door()
    proxied = order.to.socket is not None  # then it does not leave the host before it is encrypted
    if not proxied:
        tls.write(machine.run_dir, order.migration_id, order.to.key_hex, machine.record.uid, machine.record.gid)
        await tls.install(monitor, machine.run_dir, order.migration_id, "client")
    await monitor.execute(
        "migrate-set-capabilities", capabilities(on=True, tactics=order.tactics, channels=order.to.channels)
    )
    credentials = "" if proxied else tls.OBJECT_ID
    parameters = source_parameters(order.goals, credentials, order.tactics, proxied=proxied, channels=order.to.channels)
    await monitor.execute("migrate-set-parameters", parameters)


async def _order(machine: Machine, transfer: Transfer, order: Order) -> None:
    # Followed from before it begins: a small guest stands still before the answer to `migrate` is here.
    machine.migration_state = "setup"  # not the last transfer's end
    work = _follow(machine, transfer, order.stall_s)
    try:
        await machine.door().execute("migrate", {"uri": address_of(order.to)})
    except BaseException:
        work.cancel()
        await asyncio.wait({work})
        await abort(machine)  # refused, there is nothing to end; else it may be under way
        raise


def rejoin(machine: Machine, stall_s: float) -> None:
    """Go on following a transfer that QEMU has under way, if there is one nobody follows.

    One that stands still for its post-copy waits for `open_postcopy` alone.
    """
    transfer = machine.record.transfer
    if transfer is None or transfer.role is not Role.SOURCE or machine.leaving:
        return
    waits = machine.status is MachineStatus.HANDED_OFF
    if machine.migration_state in status.UNDER_WAY and not waits:
        _follow(machine, transfer, stall_s)


async def departed(machine: Machine) -> Departure:
    """Wait for the end of the transfer. The wait may be given up; the transfer goes on.

    :raise MigrationFailed: it failed, or was taken back; the machine runs as before.
    """
    work = machine.work
    if work is not None:
        await asyncio.wait({work})
        if work.cancelled():
            raise MigrationFailed(f"the transfer of machine {machine.vm_id} was ended from outside")
        work.result()
    transfer = machine.record.transfer
    if transfer is None or machine.status is not MachineStatus.HANDED_OFF:
        raise MigrationFailed(f"the transfer of machine {machine.vm_id} was taken back")
    stopped_at_s = transfer.began_at_s if transfer.stopped_at_s is None else transfer.stopped_at_s
    ago_ms = (machine.clock.monotonic_s() - stopped_at_s) * 1e3
    return Departure(stopped_ago_ms=ago_ms, whole=machine.migration_state == "completed")


def _follow(machine: Machine, transfer: Transfer, stall_s: float) -> asyncio.Task[None]:
    machine.work = asyncio.create_task(Follower(machine, transfer, stall_s).run())
    machine.work.add_done_callback(lambda work: None if work.cancelled() else work.exception())
    return machine.work


async def reclaim(machine: Machine, migration_id: str, stall_s: float) -> MachineReport:
    """Take the machine back and let it be as it was before `send`. Another migration's transfer is left alone.

    :raise MonitorFailed: it cannot continue (another process holds its disks' locks: the target still lives).
    """
    transfer = machine.transfer(migration_id, Role.SOURCE)
    if transfer is None or machine.ended:
        await disks.drop(machine)
        return await machine.refresh()
    rejoin(machine, stall_s)
    if machine.work is not None and not machine.work.done():
        await abort(machine)
        await asyncio.wait({machine.work}, timeout=SETTLE_DEADLINE_S)
    elif transfer.opened:
        await postcopy.call_off(machine)
    elif transfer.switching:
        await abort(machine)
    tpm.claim(machine.record.keep, machine.record.tpm)
    await disks.drop(machine)
    if machine.record.transfer is not None:  # it had left, or its follower could not put it right
        await settle(machine)
    return await machine.refresh()


async def release(machine: Machine, migration_id: str) -> Figures:
    """Read what was measured and end the process.

    :raise StateConflict: the machine has not been handed off. It is left alone.
    """
    transfer = machine.transfer(migration_id, Role.SOURCE)
    if machine.ended:
        return (transfer and transfer.figures) or Figures()
    in_part = transfer is not None and transfer.opened and machine.migration_state in status.POSTCOPY
    run_state = await settled(machine) if transfer and not in_part else machine.status.value
    info = await machine.door().ask(Info, "query-migrate")
    if transfer is None or run_state == "running" or not _is_sent(transfer, info):
        raise StateConflict.of(f"machine {machine.vm_id}", run_state, ("handed_off",), "release")
    transfer.figures = figures_of(info, proxied=transfer.proxied)
    transfer.closed = True
    await machine.end(Ending(MachineStatus.ABSENT, "it runs on another node"))
    tls.erase(machine.run_dir)
    tpm.leave(machine.record.keep, machine.record.tpm)
    return transfer.figures


def _is_sent(transfer: Transfer, info: Info) -> bool:
    """Whether nothing of it is here that is not there, as its target has said or, verified meanwhile, shows."""
    sent = transfer.opened and info.status in status.POSTCOPY and not info.ram.remaining
    return sent or info.status == "completed"
