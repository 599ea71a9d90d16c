"""The source's side of a migration: send the state, and take it back at whatever moment.

A transfer is followed by a task of the machine's own, not of the caller: whoever asks `send` again joins it, and
an agent that starts anew goes on following what QEMU is doing.
"""

from __future__ import annotations

import asyncio
import contextlib

from novacron.agent.drivers.base import Departure, Reception
from novacron.agent.drivers.qemu import status, tls, tpm
from novacron.agent.drivers.qemu.look import check_whole
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import (
    Info,
    address_of,
    capabilities,
    default_parameters,
    figures_of,
    progress_of,
    require,
    source_parameters,
)
from novacron.agent.drivers.qemu.record import Ending, Role, Transfer
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, MonitorFailed, Reason, StateConflict
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Figures, Goals

PROGRESS_INTERVAL_S = 0.25
CANCEL_DEADLINE_S = 2.0
KICK_AFTER_S = 0.1
YANK_DEADLINE_S = 10.0
SETTLE_DEADLINE_S = 10.0
SETTLE_PAUSE_S = 0.002
RESUME_DEADLINE_S = 5.0

_STANDS = frozenset({"pre-switchover", "device"})  # the guest stands still: nothing is asked but what moves it on


async def begin(
    machine: Machine, migration_id: str, to: Reception, goals: Goals, features: tuple[str, ...], stall_s: float
) -> None:
    """Have QEMU send, unless this very transfer is under way or done.

    :raise MigrationFailed: it could not begin; the machine runs as before.
    :raise StateConflict: it is not there to be sent, or its guest let go of a device that the target was told of.
    """
    if machine.transfer(migration_id, Role.SOURCE) is not None:
        await machine.refresh()
        rejoin(machine, stall_s)
        if machine.leaving or machine.status is MachineStatus.HANDED_OFF:
            return
    if machine.leaving or machine.status not in (MachineStatus.RUNNING, MachineStatus.PAUSED):
        seen = "being sent elsewhere" if machine.leaving else machine.status.value
        raise StateConflict.of(f"machine {machine.vm_id}", seen, ("running", "paused"), "send")
    await check_whole(machine)
    now = machine.clock.monotonic_s()
    machine.record.transfer = Transfer(
        migration_id=migration_id,
        role=Role.SOURCE,
        was_paused=machine.status is MachineStatus.PAUSED,
        began_at_s=now,
        finish_by_s=now + goals.finish_within_s,
    )
    machine.save()
    try:
        await _prepare(machine, migration_id, to, goals, features)
        await _order(machine, address_of(to), stall_s)
    except BaseException as wrong:
        await _settle(machine)
        if isinstance(wrong, DriverError):
            raise MigrationFailed(f"the transfer could not begin: {wrong.message}", wrong.reasons) from wrong
        raise


async def _prepare(machine: Machine, migration_id: str, to: Reception, goals: Goals, features: tuple[str, ...]) -> None:
    require(features)
    monitor = machine.door()
    tls.write(machine.run_dir, migration_id, to.key_hex, machine.record.uid, machine.record.gid)
    await tls.install(monitor, machine.run_dir, migration_id, "client")
    await monitor.execute("migrate-set-capabilities", capabilities(on=True))
    await monitor.execute("migrate-set-parameters", source_parameters(goals, tls.OBJECT_ID))


async def _order(machine: Machine, target: str, stall_s: float) -> None:
    # Followed from before it begins: a small guest stands still before the answer to `migrate` is here.
    machine.migration_state = "setup"  # not the last transfer's end
    work = _follow(machine, stall_s)
    try:
        await machine.door().execute("migrate", {"uri": target})
    except BaseException:
        work.cancel()
        await asyncio.wait({work})
        await abort(machine)  # refused, there is nothing to end; else it may be under way
        raise


def rejoin(machine: Machine, stall_s: float) -> None:
    """Go on following a transfer that QEMU has under way, if there is one nobody follows."""
    transfer = machine.record.transfer
    under_way = machine.migration_state in status.UNDER_WAY
    if transfer is not None and transfer.role is Role.SOURCE and under_way and not machine.leaving:
        _follow(machine, stall_s)


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
    return Departure(stopped_ago_ms=(machine.clock.monotonic_s() - stopped_at_s) * 1e3)


def _follow(machine: Machine, stall_s: float) -> asyncio.Task[None]:
    machine.work = asyncio.create_task(_Follower(machine, stall_s).run())
    machine.work.add_done_callback(lambda work: None if work.cancelled() else work.exception())
    return machine.work


class _Follower:
    """Sees one transfer to its end; gives it up when nothing moves for `stall_s` or it takes too long."""

    def __init__(self, machine: Machine, stall_s: float) -> None:
        self._machine = machine
        self._stall_s = stall_s
        self._moved_at_s = machine.clock.monotonic_s()
        self._transferred = 0
        self._why = ""

    async def run(self) -> None:
        """:raise MigrationFailed: the machine runs as before; carries QEMU's words, or ours if we gave it up."""
        machine = self._machine
        while machine.migration_state not in status.OVER:
            state = machine.migration_state
            if machine.process is None or not machine.process.alive:
                raise MigrationFailed(f"the transfer ended with its machine: {machine.died().message}")
            if state == "pre-switchover":
                # Disks are shared, so nothing has to be finished here; the pause exists for those that are not.
                await self._go_on()
            else:
                await self._wait(state)
        if machine.migration_state != "completed":
            words = await _settle(machine)
            reasons = [Reason("qemu.migration", words, subject=machine.vm_id)] if words else []
            raise MigrationFailed(f"the transfer failed: {self._why or words or machine.migration_state}", reasons)
        self._hand_off()

    async def _go_on(self) -> None:
        try:
            await self._machine.door().execute("migrate-continue", {"state": "pre-switchover"})
            await self._machine.until(
                lambda: self._machine.migration_state != "pre-switchover", CANCEL_DEADLINE_S, "go on"
            )
        except (DeadlineExceeded, DriverError):
            if self._machine.migration_state == "pre-switchover":
                await self._give_up("QEMU did not go on at the switch-over")

    async def _wait(self, state: str) -> None:
        machine = self._machine
        with contextlib.suppress(DeadlineExceeded):
            await machine.until(lambda: machine.migration_state != state or self._over, PROGRESS_INTERVAL_S, "move")
            if machine.migration_state != state:
                self._moved_at_s = machine.clock.monotonic_s()
                return
        if "SHUTDOWN" in machine.seen_at_s and machine.seen_at_s["SHUTDOWN"] >= self._began_at_s:
            await self._give_up("the guest shut down")
            return
        if machine.migration_state not in _STANDS:
            await self._look()
        await self._check_deadlines()

    @property
    def _began_at_s(self) -> float:
        transfer = self._machine.record.transfer
        return transfer.began_at_s if transfer else 0.0

    @property
    def _over(self) -> bool:
        machine = self._machine
        gone = machine.process is None or not machine.process.alive
        return gone or machine.seen_at_s.get("SHUTDOWN", -1.0) >= self._began_at_s

    async def _look(self) -> None:
        machine = self._machine
        before = machine.migration_state
        try:
            info = await machine.door().ask(Info, "query-migrate")
        except (DeadlineExceeded, DriverError):
            return  # a monitor that hangs is what the stall deadline is for, a process that ended is seen next
        if info.ram.transferred != self._transferred:
            self._transferred = info.ram.transferred
            self._moved_at_s = machine.clock.monotonic_s()
        if machine.migration_state == before:  # else an event has overtaken this answer
            machine.migration_state = info.status
            machine.progress(progress_of(info, machine.clock.wall()))

    async def _check_deadlines(self) -> None:
        now = self._machine.clock.monotonic_s()
        transfer = self._machine.record.transfer
        if now - self._moved_at_s > self._stall_s:
            await self._give_up(f"nothing moved for {self._stall_s:g} s")
        elif transfer is not None and now > transfer.finish_by_s:
            await self._give_up("it did not finish in the time it was given")

    async def _give_up(self, why: str) -> None:
        self._why = why
        await abort(self._machine)

    def _hand_off(self) -> None:
        machine = self._machine
        transfer = machine.record.transfer
        if transfer is not None:
            now = machine.clock.monotonic_s()
            seen = machine.seen_at_s.get("STOP", 0.0)
            known = seen >= transfer.began_at_s
            transfer.stopped_at_s = now if transfer.was_paused else seen if known else transfer.began_at_s
        machine.become(MachineStatus.HANDED_OFF)
        machine.save()


async def abort(machine: Machine) -> None:
    """End the transfer under way, also when QEMU's main loop is held by it. Over already: fine.

    :raise DeadlineExceeded: not even pulling its connection ended it.
    """

    def over() -> bool:
        return machine.migration_state in status.OVER or machine.ended

    if over():
        return
    with contextlib.suppress(DeadlineExceeded, MonitorFailed):
        await machine.door().execute("migrate_cancel", deadline_s=CANCEL_DEADLINE_S)
        seen = (await machine.door().ask(Info, "query-migrate")).status
        if seen not in status.UNDER_WAY:  # it had not begun, or its last event is behind this answer
            machine.migration_state = seen if seen in status.OVER else "cancelled"
            return
        with contextlib.suppress(DeadlineExceeded):
            await machine.until(over, KICK_AFTER_S, "cancel")
            return
        # A cancel that comes in between the stop and `pre-switchover` finds QEMU (7.2) about to wait for a
        # migrate-continue, and does not wake it. This does; where nobody waits it is refused or has no effect.
        await machine.door().execute("migrate-continue", {"state": "cancelling"}, deadline_s=CANCEL_DEADLINE_S)
        await machine.until(over, CANCEL_DEADLINE_S, "cancel")
    if not over():
        await _yank(machine)
        await machine.until(over, YANK_DEADLINE_S, "let go of the stream")


async def _yank(machine: Machine) -> None:
    monitor = machine.rescue if machine.rescue is not None and machine.rescue.connected else machine.door()
    await monitor.execute_oob("yank", {"instances": [{"type": "migration"}]})


async def reclaim(machine: Machine, migration_id: str, stall_s: float) -> MachineReport:
    """Take the machine back and let it be as it was before `send`. Another migration's transfer is left alone.

    :raise MonitorFailed: it cannot continue (another process holds its disks' locks: the target still lives).
    """
    if machine.transfer(migration_id, Role.SOURCE) is None or machine.ended:
        return await machine.refresh()
    rejoin(machine, stall_s)
    if machine.work is not None and not machine.work.done():
        await abort(machine)
        await asyncio.wait({machine.work}, timeout=SETTLE_DEADLINE_S)
    tpm.claim(machine.record.keep, machine.record.tpm)
    if machine.record.transfer is not None:  # it had left whole, or its follower could not put it right
        await _settle(machine)
    return await machine.refresh()


async def release(machine: Machine, migration_id: str) -> Figures:
    """Read what was measured and end the process.

    :raise StateConflict: the machine has not been handed off. It is left alone.
    """
    transfer = machine.transfer(migration_id, Role.SOURCE)
    if machine.ended:
        return (transfer and transfer.figures) or Figures()
    run_state = await settled(machine) if transfer else machine.status.value
    info = await machine.door().ask(Info, "query-migrate")
    if transfer is None or run_state == "running" or info.status != "completed":
        raise StateConflict.of(f"machine {machine.vm_id}", run_state, ("handed_off",), "release")
    transfer.figures = figures_of(info)
    transfer.closed = True
    await machine.end(Ending(MachineStatus.ABSENT, "it runs on another node"))
    tls.erase(machine.run_dir)
    tpm.leave(machine.record.keep, machine.record.tpm)
    return transfer.figures


async def settled(machine: Machine) -> str:
    """The run state once QEMU has done with a transfer that is over; it tells no event of that moment.

    :raise DeadlineExceeded: it does not come to an end.
    """
    give_up_s = machine.clock.monotonic_s() + SETTLE_DEADLINE_S
    while True:
        answer = await machine.door().ask(dict[str, object], "query-status")
        if answer["status"] != "finish-migrate":
            return str(answer["status"])
        if machine.clock.monotonic_s() > give_up_s:
            raise DeadlineExceeded(f"the transfer of machine {machine.vm_id} is over, and QEMU does not finish it")
        await machine.clock.sleep(SETTLE_PAUSE_S)


async def _settle(machine: Machine) -> str:
    """Put the machine as it was, ready for another try. The words QEMU has about the failure."""
    transfer = machine.record.transfer
    if transfer is None or machine.ended:
        return ""
    monitor = machine.door()
    words = (await monitor.ask(Info, "query-migrate")).error_desc
    seen = machine.seen_at_s
    if machine.migration_state != "completed" and seen.get("STOP", 0.0) > max(
        seen.get("RESUME", 0.0), transfer.began_at_s
    ):
        with contextlib.suppress(DeadlineExceeded):  # QEMU continues a machine whose transfer failed by itself
            await machine.until(
                lambda: (
                    seen.get("RESUME", 0.0) > seen["STOP"] or machine.migration_state == "completed" or machine.ended
                ),
                RESUME_DEADLINE_S,
                "resume",
            )
    run_state = await settled(machine)
    if run_state in ("paused", "postmigrate") and not transfer.was_paused:
        await monitor.execute("cont")
    await monitor.execute("migrate-set-capabilities", capabilities(on=False))
    await monitor.execute("migrate-set-parameters", default_parameters())
    await tls.remove(monitor)
    tls.erase(machine.run_dir)
    machine.record.transfer = None
    machine.save()
    await machine.refresh()
    return words
