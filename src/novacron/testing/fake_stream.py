"""The fake driver's migration stream: a machine's state goes to who waits for it, as long as the link holds."""

from __future__ import annotations

import asyncio

from novacron.agent.drivers.base import ProgressListener
from novacron.agent.drivers.handoff import Departure, Reception
from novacron.errors import MigrationFailed
from novacron.model.machine import ENDED, MachineStatus
from novacron.model.migration import Progress
from novacron.testing import fake_disks
from novacron.testing.fake_world import FakeHost, FakeMachine, FakeWorld


async def transferred(
    world: FakeWorld,
    host: FakeHost,
    machine: FakeMachine,
    to: Reception,
    progress: ProgressListener,
    volume_ids: tuple[str, ...],
) -> Departure:
    """The hypervisor's own work: nobody's cancellation but `reclaim`'s ends it."""
    total = world.stream_bytes(machine)
    try:
        for tick in range(1, world.ticks + 1):
            receiver = world.waiting_at(to)
            await world.clock.sleep(world.tick_s(machine, host, receiver[0] if receiver else host))
            _peer(world, host, machine, to)
            sent = total * tick // world.ticks
            progress(
                Progress(
                    at=world.clock.wall(),
                    total_bytes=total,
                    transferred_bytes=sent,
                    remaining_bytes=total - sent,
                    iteration=1,
                )
            )
        peer = _peer(world, host, machine, to)
        fake_disks.finished(world, machine, machine.report.migration_id, volume_ids)
        peer.received, peer.kept = machine.whole_first, machine.kept
        machine.moved = True
        if not machine.paused_for:
            machine.stopped_at_s = world.clock.monotonic_s()
        host.set_status(machine, MachineStatus.HANDED_OFF)
        return Departure(stopped_ago_ms=0.0)
    finally:
        machine.transfer = None


async def joined(transfer: asyncio.Task[Departure]) -> None:
    """Wait for a transfer, whoever began it. :raise MigrationFailed: it broke, or `reclaim` ended it."""
    try:
        await asyncio.shield(transfer)
    except asyncio.CancelledError:
        if transfer.cancelled():
            raise MigrationFailed("the transfer was called off; the source runs as before") from None
        raise


def looked_at(transfer: asyncio.Task[Departure]) -> None:
    """A transfer may fail while nobody waits for it; whoever asks next is told anew."""
    if not transfer.cancelled():
        transfer.exception()


def _peer(world: FakeWorld, host: FakeHost, machine: FakeMachine, to: Reception) -> FakeMachine:
    found = world.waiting_at(to)
    if found is None or world.is_cut(found[0].name, host.name):
        raise MigrationFailed(f"the stream to {to.host}:{to.port} broke; the source runs as before")
    if machine.report.status in ENDED:
        raise MigrationFailed("the source ended during the transfer")
    return found[1]
