"""The target's side of a migration: wait for a state, take the machine over, or end what waits."""

from __future__ import annotations

import asyncio

import structlog

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Arrival, Awaited, DiskReception, Reception
from novacron.agent.drivers.qemu import blocks, postcopy_probe, status, tls, tpm, trail
from novacron.agent.drivers.qemu.adjust import limit
from novacron.agent.drivers.qemu.command import Host
from novacron.agent.drivers.qemu.exports import close_exports, open_exports
from novacron.agent.drivers.qemu.launcher import abandon, launch
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.migration import (
    ANNOUNCE,
    LATE_ACTIVATION,
    POSTCOPY,
    Info,
    capabilities,
    only,
    require,
    sends_parallel,
    target_parameters,
    uri,
)
from novacron.agent.drivers.qemu.process import IN_ORDER
from novacron.agent.drivers.qemu.record import Ending, Role, Transfer
from novacron.errors import DeadlineExceeded, MonitorFailed, StateConflict
from novacron.model.machine import MachineReport, MachineStatus

SOCKET = "stream"
LOAD_DEADLINE_S = 60.0
RESUME_DEADLINE_S = 10.0
LOAD_PAUSE_S = 0.002
WHOLE_DEADLINE_S = 5.0  # the source has heard of it by then


async def accept(machine: Machine, what: Launch, host: Host, features: tuple[str, ...], awaited: Awaited) -> Reception:
    """Start it, waiting for a stream with a key of its own, or for this node's stream proxy.

    After a failure nothing of it is left.
    """
    require(features)
    migration_id, host_at = awaited.migration_id, awaited.host
    transfer = Transfer(migration_id=migration_id, role=Role.TARGET, host=host_at, paused=awaited.paused)
    if awaited.proxied:
        transfer.socket = SOCKET
    transfer.channels = awaited.channels if sends_parallel(features) and not awaited.proxied else 1
    listen_at = f"unix:{transfer.socket}" if awaited.proxied else uri(host_at, 0)  # QEMU works in its own directory
    machine.record.transfer = transfer
    key_hex = tls.new_key()
    await launch(machine, what, host, incoming=True)
    try:
        await limit(machine, what)
        monitor = machine.door()
        if awaited.receives or not awaited.proxied:
            tls.write(machine.run_dir, migration_id, key_hex, what.uid, what.gid)
            await tls.install(monitor, machine.run_dir, migration_id, "server")
        await monitor.execute("migrate-set-capabilities", capabilities(on=True, channels=transfer.channels))
        if awaited.paused:
            # Without `cont` nothing but its stream's end makes its disks usable, and QEMU (7.2) ends itself when they
            # are to be moved or grown before. Its source does not need their locks to stand still.
            await monitor.execute("migrate-set-capabilities", only(LATE_ACTIVATION, on=False))
        if postcopy_probe.FEATURE in features and transfer.channels == 1:
            # It takes a stream of either kind then; whether it will be needed is decided on the way.
            await _allow_postcopy(machine)
        credentials = "" if awaited.proxied else tls.OBJECT_ID
        await monitor.execute("migrate-set-parameters", target_parameters(credentials, transfer.channels))
        await monitor.execute("migrate-incoming", {"uri": listen_at})
        if not awaited.proxied:
            transfer.port = await _port(machine)
        if awaited.receives:
            layered = {disk.volume_id for disk in what.disks if disk.backing}
            transfer.layered = tuple(one for one in awaited.receives if one in layered)
            transfer.resumable = await trail.tells(
                monitor, [one for one in what.disks if one.volume_id in awaited.receives]
            )
            transfer.disk_port = await open_exports(machine, awaited.receives, awaited.host)
        machine.save()
    except BaseException:
        await abandon(machine)
        raise
    machine.become(MachineStatus.INCOMING)
    return _reception(machine, transfer, key_hex)


async def _allow_postcopy(machine: Machine) -> None:
    """As far as the kernel lets it now: its leave may have been withdrawn since the node was probed. A stream that
    needs it then fails as it begins, and the source runs on.
    """
    try:
        await machine.door().execute("migrate-set-capabilities", only(POSTCOPY))
    except MonitorFailed as refused:
        machine.door()  # it lives, and said no
        log = structlog.get_logger("qemu")
        log.warning("this target takes no post-copy after all", vm_id=machine.vm_id, why=refused.message)


def reception(machine: Machine, migration_id: str) -> Reception | None:
    """The answer `accept` gave, while the machine still waits; None: it gave none."""
    transfer = machine.transfer(migration_id, Role.TARGET)
    if transfer is None or machine.status is not MachineStatus.INCOMING:
        return None
    if not transfer.socket and not transfer.port:
        return None
    key_hex = tls.read(machine.run_dir, migration_id)
    return _reception(machine, transfer, key_hex or "") if key_hex or transfer.socket else None


def _reception(machine: Machine, transfer: Transfer, key_hex: str) -> Reception:
    disks = None
    if transfer.disk_port:
        disks = DiskReception(
            host=transfer.host,
            port=transfer.disk_port,
            key_hex=key_hex,
            layered=transfer.layered,
            resumable=transfer.resumable,
        )
    if transfer.socket:
        return Reception(socket=machine.run_dir.path / transfer.socket, disks=disks)
    return Reception(host=transfer.host, port=transfer.port, key_hex=key_hex, channels=transfer.channels, disks=disks)


async def take_over(machine: Machine, migration_id: str, generation: int, watch: tuple[str, ...]) -> Arrival:
    """Continue once its state is loaded; one that is to stand is taken over as it stands. watch: disks of which it is
    noted what is written from then on.

    :raise MonitorFailed: QEMU refuses (a disk is still held by another): it stays `incoming`; asking again is safe.
    :raise DeadlineExceeded: it may continue or not; the status is `unknown` until it says.
    """
    transfer = machine.transfer(migration_id, Role.TARGET)
    if transfer is None:
        raise StateConflict.of(f"machine {machine.vm_id}", machine.status.value, ("incoming",), "take over")
    stands = transfer.paused and transfer.taken_over and machine.status is MachineStatus.PAUSED
    if machine.status is not MachineStatus.RUNNING and not stands:
        await machine.until(
            lambda: machine.ended or machine.migration_state in status.OVER | status.POSTCOPY, LOAD_DEADLINE_S, "load"
        )
        await _require_loaded(machine, transfer)
        await _continue(machine, transfer, generation, watch)
    now = machine.clock.monotonic_s()
    resumed_at_s = now if transfer.resumed_at_s is None else transfer.resumed_at_s
    arrival = Arrival(resumed_ago_ms=(now - resumed_at_s) * 1e3, report=machine.report())
    machine.save()
    return arrival


async def verify(machine: Machine) -> MachineReport:
    """Ask whether it really runs, or stands as it is to, announce it to the network, and forget the key.

    :raise StateConflict: it does not. :raise DeadlineExceeded: a part of its memory is missing.
    """
    if machine.record.transfer is not None and machine.record.transfer.in_part:
        await machine.until(
            lambda: machine.ended or machine.migration_state == "completed", WHOLE_DEADLINE_S, "get all its memory"
        )
    report = await machine.refresh()
    if report.status is MachineStatus.STOPPED:
        return report  # the guest has shut down since; that is its own affair
    transfer = machine.record.transfer
    to_be = MachineStatus.PAUSED if transfer is not None and transfer.paused else MachineStatus.RUNNING
    if report.status not in (to_be, MachineStatus.RUNNING):
        raise StateConflict.of(f"machine {machine.vm_id}", report.status.value, (to_be.value,), "verify")
    monitor = machine.door()
    await monitor.execute("announce-self", ANNOUNCE)
    await monitor.execute("migrate-set-parameters", {"tls-creds": ""})
    await tls.remove(monitor)
    tls.erase(machine.run_dir)
    if machine.record.transfer is not None:
        machine.record.transfer.closed = True
        machine.save()
        machine.run_dir.remove(*filter(None, (machine.record.transfer.socket,)))
    return machine.report()


async def settle(machine: Machine, migration_id: str) -> bool:
    """End it once its disks have come: they are on its storage when this returns. Whether it left by itself, now.

    :raise StateConflict: it was taken over. What came with another migration is not touched.
    """
    transfer = machine.transfer(migration_id, Role.TARGET)
    if transfer is None or transfer.taken_over:
        raise StateConflict.of(f"machine {machine.vm_id}", machine.status.value, ("incoming",), "settle")
    process = None if machine.ended else machine.process
    if process is not None:
        await close_exports(machine)
    await machine.end(Ending(MachineStatus.ABSENT, "its disks have come"))
    tls.erase(machine.run_dir)
    return process is not None and process.ended.done() and process.ended.result() == IN_ORDER


async def discard(machine: Machine, migration_id: str) -> bool:
    """End it if it waits for that migration; whether it was so. One that was taken over is not touched."""
    transfer = machine.transfer(migration_id, Role.TARGET)
    if transfer is None or transfer.taken_over:
        return False
    if not machine.ended:
        machine.record.ending = Ending(MachineStatus.ABSENT, "the migration was called off")
        machine.save()
    await abandon(machine)
    return True


async def _port(machine: Machine) -> int:
    info = await machine.door().ask(Info, "query-migrate")
    for address in info.socket_address:
        if address.type == "inet" and address.port.isdigit():
            return int(address.port)
    raise MonitorFailed("QEMU listens for a stream, and does not say where")


async def _require_loaded(machine: Machine, transfer: Transfer) -> None:
    """Its devices' state is there, and its memory: whole, or, in post-copy, as far as it had been sent.

    :raise MachineDied, MonitorFailed, DeadlineExceeded: it is not; it never ran, and never will without being told.
    """
    transfer.in_part = machine.migration_state in status.POSTCOPY
    give_up_s = machine.clock.monotonic_s() + LOAD_DEADLINE_S
    while transfer.in_part and not machine.ended:
        answer = await machine.door().ask(dict[str, object], "query-status")
        if answer["status"] != "inmigrate":
            return
        if machine.clock.monotonic_s() > give_up_s:
            raise DeadlineExceeded(f"the state of machine {machine.vm_id} is half there, and nothing more comes")
        await machine.clock.sleep(LOAD_PAUSE_S)
    if machine.ended:
        raise machine.died()
    if machine.migration_state != "completed":
        words = (await machine.door().ask(Info, "query-migrate")).error_desc
        raise MonitorFailed(f"machine {machine.vm_id} did not load: {words or machine.migration_state}")


async def _continue(machine: Machine, transfer: Transfer, generation: int, watch: tuple[str, ...]) -> None:
    if machine.process is not None and machine.process.is_over():  # it never continued, and it can be known for sure
        await machine.until(lambda: machine.ended, RESUME_DEADLINE_S, "end")
        raise machine.died()
    # Noted before it is done: from here on nobody may take this copy for a leftover.
    if transfer.disk_port:
        await close_exports(machine)
        await blocks.watch(machine, watch)
    before, transfer.taken_over = transfer.taken_over, True
    generation_before, machine.record.generation = machine.record.generation, generation
    machine.save()
    tpm.claim(machine.record.keep, machine.record.tpm)
    if transfer.paused:
        machine.become(machine.status if machine.ended else MachineStatus.PAUSED)
        return
    try:
        await _tell_to_continue(machine)
    except MonitorFailed:
        if not machine.monitor or not machine.monitor.connected:
            machine.become(MachineStatus.UNKNOWN, "it was told to continue, and its monitor was lost")
            raise
        # Refused in so many words: it never continued. A guest that had shut down before its stop arrives so.
        transfer.taken_over, machine.record.generation = before, generation_before
        machine.save()
        if (await machine.refresh()).status is not MachineStatus.STOPPED:
            raise
    except BaseException:
        machine.become(MachineStatus.UNKNOWN, "it was told to continue, and did not say whether it does")
        machine.look_later()
        raise
    else:
        transfer.resumed_at_s = machine.seen_at_s.get("RESUME")
        machine.become(machine.status if machine.ended else MachineStatus.RUNNING)


async def _tell_to_continue(machine: Machine) -> None:
    """Its event is believed, not the answer alone: a machine that runs may wait for a page before it answers."""
    machine.seen_at_s.pop("RESUME", None)  # when it came is known to a few ms, whether it came exactly

    def resumed() -> bool:
        return "RESUME" in machine.seen_at_s

    telling = asyncio.create_task(machine.door().execute("cont"))
    hearing = asyncio.create_task(machine.until(lambda: resumed() or machine.ended, RESUME_DEADLINE_S, "continue"))
    try:
        await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not resumed():
            await telling
        await hearing
    finally:
        telling.cancel()
        hearing.cancel()
        await asyncio.gather(telling, hearing, return_exceptions=True)
