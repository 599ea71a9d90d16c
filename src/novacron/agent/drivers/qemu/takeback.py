"""The way back of a source: end the transfer under way, whatever its moment, and let the machine be as it was."""

from __future__ import annotations

import contextlib

from novacron.agent.drivers.qemu import status, tls
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import Info, capabilities, default_parameters
from novacron.errors import DeadlineExceeded, MonitorFailed

CANCEL_DEADLINE_S = 2.0
KICK_AFTER_S = 0.1
YANK_DEADLINE_S = 10.0
SETTLE_DEADLINE_S = 10.0
SETTLE_PAUSE_S = 0.002
RESUME_DEADLINE_S = 5.0


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
        if seen not in status.UNDER_WAY | status.POSTCOPY:  # it had not begun, or its last event is behind this answer
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
        await machine.oob().execute_oob("yank", {"instances": [{"type": "migration"}]})
        await machine.until(over, YANK_DEADLINE_S, "let go of the stream")


async def settle(machine: Machine) -> str:
    """Put the machine as it was, ready for another try. The words QEMU has about the failure."""
    transfer = machine.record.transfer
    if transfer is None or machine.ended:
        return ""
    monitor = machine.door()
    words = (await monitor.ask(Info, "query-migrate")).error_desc
    if not transfer.halted:
        await _let_it_resume(machine, transfer.began_at_s)
    run_state = await settled(machine)
    if run_state in ("paused", status.POSTMIGRATE) and not transfer.was_paused:
        await monitor.execute("cont")
    await monitor.execute("migrate-set-capabilities", capabilities(on=False))
    await monitor.execute("migrate-set-parameters", default_parameters())
    await tls.remove(monitor)
    tls.erase(machine.run_dir)
    machine.record.transfer = None
    machine.save()
    await machine.refresh()
    return words


async def _let_it_resume(machine: Machine, began_at_s: float) -> None:
    """QEMU continues a machine whose transfer failed by itself: give it the time."""
    seen = machine.seen_at_s
    if machine.migration_state == "completed" or seen.get("STOP", 0.0) <= max(seen.get("RESUME", 0.0), began_at_s):
        return
    with contextlib.suppress(DeadlineExceeded):
        await machine.until(
            lambda: seen.get("RESUME", 0.0) > seen["STOP"] or machine.migration_state == "completed" or machine.ended,
            RESUME_DEADLINE_S,
            "resume",
        )


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
