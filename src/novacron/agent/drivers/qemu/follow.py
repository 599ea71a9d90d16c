"""Follows one transfer that leaves, to its end or to its switch to post-copy. What to do is decided in convergence."""

from __future__ import annotations

import contextlib

import structlog

from novacron.agent.drivers.qemu import convergence, disks, status
from novacron.agent.drivers.qemu.convergence import GiveUp, Keep, StopGuest, SwitchToPostcopy
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import Info, progress_of, sample_of
from novacron.agent.drivers.qemu.record import Transfer
from novacron.agent.drivers.qemu.takeback import CANCEL_DEADLINE_S, abort, settle
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, Reason
from novacron.failpoint import reach
from novacron.model.machine import MachineStatus
from novacron.model.migration import Strategy

PROGRESS_INTERVAL_S = 0.25

_STANDS = frozenset({"pre-switchover", "device"})  # the guest stands still: nothing is asked but what moves it on


class Follower:
    """Sees one transfer to its end; gives it up when nothing moves for `stall_s` or it takes too long."""

    def __init__(self, machine: Machine, transfer: Transfer, stall_s: float) -> None:
        self._machine = machine
        self._transfer = transfer
        self._stall_s = max(stall_s, transfer.patience_s)
        self._moved_at_s = machine.clock.monotonic_s()
        self._transferred = 0
        self._why = ""
        self._history: convergence.History = ()
        self._log = structlog.get_logger("qemu").bind(vm_id=machine.vm_id, migration_id=transfer.migration_id)

    async def run(self) -> None:
        """Returns when both sides stand still: its state whole over there, or the rest to follow in post-copy.

        :raise MigrationFailed: the machine runs as before; carries QEMU's words, or ours if we gave it up.
        """
        machine = self._machine
        while machine.migration_state not in status.OVER:
            state = machine.migration_state
            if machine.process is None or not machine.process.alive:
                raise MigrationFailed(f"the transfer ended with its machine: {machine.died().message}")
            if state == "active" and self._transfer.switching:
                if await self._stands() and machine.migration_state == "active" and await self._disks_alike():
                    machine.become(MachineStatus.HANDED_OFF)
                    await self._get_ready()
                    return
            elif state == "pre-switchover":
                if await self._disks_alike():
                    await self._go_on()
            else:
                await self._wait(state)
        if machine.migration_state != "completed":
            words = await settle(machine)
            reasons = [Reason("qemu.migration", words, subject=machine.vm_id)] if words else []
            raise MigrationFailed(f"the transfer failed: {self._why or words or machine.migration_state}", reasons)
        self._hand_off()

    async def _go_on(self) -> None:
        reach("qemu.switchover:before")
        try:
            await self._machine.door().execute("migrate-continue", {"state": "pre-switchover"})
            await self._machine.until(
                lambda: self._machine.migration_state != "pre-switchover", CANCEL_DEADLINE_S, "go on"
            )
        except (DeadlineExceeded, DriverError):
            if self._machine.migration_state == "pre-switchover":
                await self._give_up("QEMU did not go on at the switch-over")

    async def _disks_alike(self) -> bool:
        """Whether the target's disks hold all that the guest, which stands still, has written."""
        try:
            await disks.finish(self._machine, self._transfer.migration_id, self._transfer.volumes)
        except (DeadlineExceeded, DriverError) as wrong:
            await self._give_up(wrong.message)
            return False
        return True

    async def _wait(self, state: str) -> None:
        machine = self._machine
        passed_at_s = machine.seen_at_s.get("MIGRATION_PASS")

        def news() -> bool:
            # The end of a pass is looked at where it may be the moment to switch.
            passed = self._undecided and machine.seen_at_s.get("MIGRATION_PASS") != passed_at_s
            return machine.migration_state != state or self._over or passed

        with contextlib.suppress(DeadlineExceeded):
            await machine.until(news, PROGRESS_INTERVAL_S, "move")
        if machine.migration_state != state:
            self._moved_at_s = machine.clock.monotonic_s()
            return
        if machine.seen_at_s.get("SHUTDOWN", -1.0) >= self._transfer.began_at_s:
            await self._give_up("the guest shut down")
            return
        if machine.migration_state not in _STANDS:
            await self._look()
        await self._check_deadlines()

    @property
    def _undecided(self) -> bool:
        """Whether a post-copy is still ahead."""
        precopy = self._transfer.tactics.strategy is Strategy.PRECOPY
        return not (precopy or self._transfer.halted or self._transfer.was_paused)

    @property
    def _over(self) -> bool:
        machine = self._machine
        gone = machine.process is None or not machine.process.alive
        return gone or machine.seen_at_s.get("SHUTDOWN", -1.0) >= self._transfer.began_at_s

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
            if info.status == "active":
                await self._decide(info)

    async def _decide(self, info: Info) -> None:
        transfer = self._transfer
        if transfer.was_paused or transfer.halted:
            return  # a guest that stands still writes nothing: this ends by itself
        self._history = convergence.noted(self._history, sample_of(info, self._machine.clock.monotonic_s()))
        match convergence.decide(self._history, transfer.goals, transfer.tactics, transfer.finish_by_s):
            case Keep():
                return
            case SwitchToPostcopy(reason):
                self._log.info("going on in post-copy", why=reason)
                transfer.switching = True
            case StopGuest(reason):
                self._log.info("letting the guest stand still", why=reason)
                await self._stands()
            case GiveUp(reason):
                await self._give_up(reason)

    async def _stands(self) -> bool:
        """Have the guest stand still; whether it does because of us, so that QEMU cannot let it go on by itself."""
        try:
            stands = await halt(self._machine, self._transfer)
        except (DeadlineExceeded, DriverError) as wrong:
            self._log.warning("the guest could not be stopped yet", why=wrong.message)
            await self._wait("active")
            return False
        if not stands:  # its last state is on the way already, or it had stopped by itself: it will leave whole
            self._transfer.switching = False
        self._machine.save()
        return stands

    async def _get_ready(self) -> None:
        """Have QEMU go as far as `pre-switchover` while the ownership moves; it gets there in a tenth of a second."""
        with contextlib.suppress(DeadlineExceeded, DriverError):  # `open_postcopy` asks again
            await self._machine.door().execute("migrate-start-postcopy")

    async def _check_deadlines(self) -> None:
        now = self._machine.clock.monotonic_s()
        if now - self._moved_at_s > self._stall_s:
            await self._give_up(f"nothing moved for {self._stall_s:g} s")
        elif now > self._transfer.finish_by_s:
            await self._give_up("it did not finish in the time it was given")

    async def _give_up(self, why: str) -> None:
        self._why = why
        await abort(self._machine)

    def _hand_off(self) -> None:
        machine, transfer = self._machine, self._transfer
        transfer.switching = False  # it is whole
        if transfer.was_paused or transfer.stopped_at_s is None:
            seen = machine.seen_at_s.get("STOP", 0.0)
            known = seen if seen >= transfer.began_at_s else transfer.began_at_s
            transfer.stopped_at_s = machine.clock.monotonic_s() if transfer.was_paused else known
        machine.become(MachineStatus.HANDED_OFF)
        machine.save()


async def halt(machine: Machine, transfer: Transfer) -> bool:
    """Have the guest stand still for its transfer; whether it is that which it does. Noted before it is done.

    :raise DriverError, DeadlineExceeded: it may stand still or not.
    """
    transfer.halted = True
    machine.save()
    await machine.door().execute("stop")
    answer = await machine.door().ask(dict[str, object], "query-status")
    if answer["status"] != "paused":
        return False
    if transfer.stopped_at_s is None:
        seen = machine.seen_at_s.get("STOP", 0.0)
        transfer.stopped_at_s = seen if seen >= transfer.began_at_s else machine.clock.monotonic_s()
    return True
