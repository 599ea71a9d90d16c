"""Post-copy: the target gets what it needs to run, the rest of memory follows, over another link when one breaks.

Past `opened` the source alone is not the machine: it is never continued, unless its target certainly never ran. A
target that waits for a page can hold QEMU's main loop, so it is spoken to out of band.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket

from novacron.agent.drivers.handoff import Fetched, Reception
from novacron.agent.drivers.qemu import stand_in, status, tls
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import Info, Memory, progress_of, uri
from novacron.agent.drivers.qemu.record import Role, Transfer
from novacron.agent.drivers.qemu.takeback import abort
from novacron.errors import DeadlineExceeded, DriverError, MigrationFailed, MonitorFailed, StateConflict

LOOK_INTERVAL_S = 0.25
PAUSE_DEADLINE_S = 10.0
BEGIN_DEADLINE_S = 1.0
CONNECT_DEADLINE_S = 10.0
RECOVER_DEADLINE_S = 10.0
PORT_ATTEMPTS = 5
CANCEL_ATTEMPTS = 5
BREAKS_WITHIN_S = 0.5
"""Its target was ended just before, so the link is about to break: a QEMU (7.2) cancelled as it notices never ends."""
LAST_WORD_STALLS = 4
"""When all is sent and only the target's word is missing, a link is waited for so much longer: QEMU 7.2 that is made to
let go of it then never sends anything again.
"""
_LINK = "recovery"


# -- source ------------------------------------------------------------------------------------------------------


async def open_(machine: Machine, migration_id: str, stall_s: float) -> None:
    """As the driver's `open_postcopy`. stall_s: how long its switch may take."""
    transfer = _departing(machine, migration_id)
    give_up_s, told = machine.clock.monotonic_s() + stall_s, False
    while machine.migration_state != "completed" and machine.migration_state not in status.POSTCOPY:
        state = machine.migration_state
        if machine.ended or state in status.OVER:
            words = machine.died().message if machine.ended else await _words(machine) or state
            raise MigrationFailed(f"the target did not get what it needs to run: {words}")
        told = state == "pre-switchover"
        try:
            await _switch(machine, transfer, state)
            await machine.until(
                lambda: machine.ended or machine.migration_state != state,  # noqa: B023 (awaited here)
                give_up_s - machine.clock.monotonic_s(),
                "switch to post-copy",
            )
        except (DeadlineExceeded, MonitorFailed) as wrong:
            if machine.migration_state == state:
                await _cut_off(machine, state)
                raise MigrationFailed(f"the target did not get what it needs to run: {wrong.message}") from wrong
    await _see_it_open(machine, give_up_s, told=told)


async def _switch(machine: Machine, transfer: Transfer, state: str) -> None:
    if state == "active":
        await machine.door().execute("migrate-start-postcopy")
    elif state == "pre-switchover":
        # The point of no return, whichever way its memory goes: nothing reaches the target's vCPUs before it.
        transfer.opened = True
        machine.save()
        machine.seen_at_s.pop("MIGRATION_PASS", None)
        await machine.door().execute("migrate-continue", {"state": "pre-switchover"})


async def _cut_off(machine: Machine, state: str) -> None:
    """What hangs in its last step ends with its connection; before that, nothing can go on by itself."""
    if state == "device":
        with contextlib.suppress(DeadlineExceeded, MonitorFailed):
            await machine.oob().execute_oob("yank", {"instances": [{"type": "migration"}]})


async def _see_it_open(machine: Machine, give_up_s: float, *, told: bool) -> None:
    """Wait until the last of what the target needs is on its way.

    QEMU says that it is in post-copy and then begins to send it: first which pages are missing, which it tells, then
    the devices; until that is done it answers nothing.
    """
    if machine.migration_state != "postcopy-active":
        return

    def began() -> bool:
        begins = not told or "MIGRATION_PASS" in machine.seen_at_s
        return begins or machine.ended or machine.migration_state != "postcopy-active"

    with contextlib.suppress(DeadlineExceeded):
        await machine.until(began, BEGIN_DEADLINE_S, "begin its post-copy")
    try:
        await machine.door().execute("query-status", deadline_s=max(1.0, give_up_s - machine.clock.monotonic_s()))
    except DeadlineExceeded:
        await _pause(machine)
    if machine.migration_state in ("failed", "cancelled"):
        words = await _words(machine) or machine.migration_state
        raise MigrationFailed(f"the target did not get what it needs to run: {words}")


async def call_off(machine: Machine) -> None:
    """End a post-copy whose target never ran and never will, so that the source, still whole, can continue.

    :raise MonitorFailed: this QEMU does not let go of it. It can only be stopped, and started again.
    """
    with contextlib.suppress(DeadlineExceeded):
        await machine.until(
            lambda: machine.ended or machine.migration_state != "postcopy-active", BREAKS_WITHIN_S, "notice"
        )
    try:
        for _ in range(CANCEL_ATTEMPTS):
            if machine.migration_state in status.POSTCOPY:
                await stand_in.cancel(machine)
        await abort(machine)
    except (DeadlineExceeded, MonitorFailed) as wrong:
        raise MonitorFailed(
            f"machine {machine.vm_id} stands still in a post-copy that its target never took part in, and QEMU does "
            f"not let it go on from there; stop it and start it again: {wrong.message}",
            wrong.reasons,
        ) from wrong


async def relink(machine: Machine, migration_id: str, to: Reception | None) -> str:
    """Go on over a new link to where the target listens now; why it does not. None, or whole already: nothing to do.

    :raise MigrationFailed: no post-copy of it is under way, or none that could go on.
    """
    transfer = _departing(machine, migration_id)
    await machine.refresh()
    if machine.migration_state == "completed":
        return ""
    if not transfer.opened or machine.migration_state not in status.POSTCOPY:
        raise MigrationFailed(f"machine {machine.vm_id} is in no post-copy: QEMU says {machine.migration_state}")
    if to is None:
        return ""
    await _pause(machine)  # on this side nobody may have noticed yet
    _require_paused(machine)
    try:
        if tls.read(machine.run_dir, migration_id) != to.key_hex:
            tls.write(machine.run_dir, migration_id, to.key_hex, machine.record.uid, machine.record.gid)
            await tls.install(machine.door(), machine.run_dir, migration_id, "client")
        await stand_in.let_go(machine)
        await _connect(machine, to)
    except (OSError, DeadlineExceeded, DriverError) as wrong:
        return f"the target cannot be reached again: {wrong}"
    return ""


async def _connect(machine: Machine, to: Reception) -> None:
    """Have QEMU go on over a connection of ours, and see it do so. :raise OSError, DeadlineExceeded, MonitorFailed

    Ours, so that each attempt is over when this returns: a QEMU (7.2) that is told to connect anew while an earlier
    attempt hangs ends itself when that one comes to its end.
    """
    loop = asyncio.get_running_loop()
    family, kind, *_ = (await loop.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))[
        0
    ]
    with socket.socket(family, kind) as link:
        link.setblocking(False)
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            await loop.sock_connect(link, (to.host, to.port))
        await machine.door().hand(_LINK, link.fileno())
        try:
            await machine.door().execute("migrate", {"uri": f"fd:{_LINK}", "resume": True})
            await _see_it_linked(machine, link)
        except BaseException:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            raise


async def _see_it_linked(machine: Machine, link: socket.socket) -> None:
    """Until both have found each other; whatever breaks from there on QEMU tells, or `fetched` sees.

    Before, it does not say when the target hangs up on it, so the connection is looked at too.
    """

    def found() -> bool:
        return machine.ended or machine.migration_state not in ("postcopy-paused", "postcopy-recover-setup")

    watch = select.poll()
    watch.register(link, select.POLLRDHUP)
    give_up_s = machine.clock.monotonic_s() + RECOVER_DEADLINE_S
    while not found():
        hung_up = bool(watch.poll(0))
        with contextlib.suppress(DeadlineExceeded):
            await machine.until(found, LOOK_INTERVAL_S, "find its target")
        if hung_up and not found():
            raise MonitorFailed("it hung up")
        if machine.clock.monotonic_s() > give_up_s:
            raise DeadlineExceeded(f"it did not answer within {RECOVER_DEADLINE_S:g} s")


async def fetched(machine: Machine, stall_s: float, why: str = "") -> Fetched:
    """Wait for the last of its memory. A link that moves nothing for `stall_s` is taken for broken.

    :raise MigrationFailed: it has ended, or QEMU cannot go on with it.
    """
    seen, moved_at_s = Memory(), machine.clock.monotonic_s()
    while machine.migration_state != "completed":
        if machine.ended or machine.migration_state in status.OVER:
            words = machine.died().message if machine.ended else await _words(machine)
            raise MigrationFailed(f"the rest of the memory of machine {machine.vm_id} cannot be fetched: {words}")
        if machine.migration_state == "postcopy-paused":
            return Fetched(done=False, why=why or "the link to the target broke")
        state = machine.migration_state
        with contextlib.suppress(DeadlineExceeded):
            await machine.until(
                lambda: machine.ended or machine.migration_state != state,  # noqa: B023 (awaited here)
                LOOK_INTERVAL_S,
                "move",
            )
        before, seen = seen, await _look(machine) or seen
        still_s = machine.clock.monotonic_s() - moved_at_s
        if seen.transferred != before.transferred or machine.migration_state != state:
            moved_at_s = machine.clock.monotonic_s()
        elif not seen.remaining and still_s > LAST_WORD_STALLS * stall_s:
            return Fetched(done=False, why="all memory has been sent, and the target has not said that it has it")
        elif seen.remaining and still_s > stall_s:
            why = f"nothing moved for {stall_s:g} s"
            await _pause(machine)
            _require_paused(machine)
    return Fetched(done=True)


def _require_paused(machine: Machine) -> None:
    """:raise MigrationFailed: QEMU holds on to a link that is broken."""
    if machine.migration_state not in ("postcopy-paused", *status.OVER):
        raise MigrationFailed(
            f"the link of machine {machine.vm_id} broke at a moment ({machine.migration_state}) from which this QEMU "
            "finds no way back; what its target has of it is all there is"
        )


async def _look(machine: Machine) -> Memory | None:
    """Ask how far it is, and tell. None: it does not answer."""
    before = machine.migration_state
    try:
        info = await machine.door().ask(Info, "query-migrate")
    except (DeadlineExceeded, DriverError):
        return None
    if machine.migration_state == before:  # else an event has overtaken this answer
        machine.migration_state = info.status
        machine.progress(progress_of(info, machine.clock.wall()))
    return info.ram


# -- target ------------------------------------------------------------------------------------------------------


async def reopen(machine: Machine, migration_id: str, host: str) -> Reception:
    """As the driver's. The key is the one it has: a QEMU that waits for memory takes no other."""
    transfer = machine.transfer(migration_id, Role.TARGET)
    if machine.ended:
        raise machine.died()
    whole = transfer is not None and (transfer.closed or machine.migration_state == "completed")
    if transfer is None or whole or not transfer.in_part:
        raise StateConflict.of(f"machine {machine.vm_id}", "whole", ("without a part of its memory",), "reopen")
    key_hex = tls.read(machine.run_dir, migration_id)
    if key_hex is None:
        raise DriverError(f"the key of migration {migration_id} is gone: its target cannot be found again")
    await _pause(machine)
    port = await _listen(machine, host)
    transfer.host, transfer.port = host, port
    machine.save()
    return Reception(host=host, port=port, key_hex=key_hex)


async def _listen(machine: Machine, host: str) -> int:
    """Where QEMU listens from now on. It could not say which port it took, so it is given one that is free."""
    for attempt in range(PORT_ATTEMPTS):
        port = await asyncio.to_thread(_free_port, host)
        try:
            await machine.oob().execute_oob("migrate-recover", {"uri": uri(host, port)})
        except MonitorFailed:
            if attempt == PORT_ATTEMPTS - 1 or not machine.oob().connected:
                raise
        else:
            return port
    raise MonitorFailed(f"no port of {host} was free")


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError as wrong:
            raise DriverError(f"no port of {host} can be had: {wrong}") from wrong
        return int(probe.getsockname()[1])


# -- both --------------------------------------------------------------------------------------------------------


async def _pause(machine: Machine) -> None:
    """Let go of the link, broken or not. Gone already: fine."""

    def gone() -> bool:
        # setup: a target that listens anew says so, and means that nobody has come yet.
        return machine.ended or machine.migration_state in ("postcopy-paused", "setup", *status.OVER)

    if gone():
        return
    with contextlib.suppress(
        DeadlineExceeded, MonitorFailed
    ):  # refused where the link is down already, and QEMU is about to notice
        await machine.oob().execute_oob("migrate-pause")
    with contextlib.suppress(DeadlineExceeded):
        await machine.until(gone, PAUSE_DEADLINE_S, "let go of its link")


async def _words(machine: Machine) -> str:
    return (await machine.door().ask(Info, "query-migrate")).error_desc


def _departing(machine: Machine, migration_id: str) -> Transfer:
    transfer = machine.transfer(migration_id, Role.SOURCE)
    if transfer is None:
        raise StateConflict.of(f"machine {machine.vm_id}", machine.status.value, ("handed_off",), "go on in post-copy")
    return transfer
