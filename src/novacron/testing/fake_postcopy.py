"""The fake driver's post-copy: what of a machine's memory is missing on its target, and whether it can still come."""

from __future__ import annotations

from novacron.agent.drivers.handoff import Fetched, Reception
from novacron.errors import MigrationFailed
from novacron.testing.fake_world import FakeHost, FakeMachine, FakeWorld


def opened(world: FakeWorld, host: FakeHost, machine: FakeMachine) -> None:
    """Let the target run with what it has. :raise MigrationFailed: it is not there, or out of reach."""
    if machine.opened or machine.whole_first:
        return
    found = world.waiting_at(machine.to) if machine.to else None
    if found is None or world.is_cut(found[0].name, host.name):
        raise MigrationFailed("the stream broke before the target had what it needs to run")
    machine.opened = True
    found[1].received, found[1].missing_from = True, host.name


async def fetched(world: FakeWorld, host: FakeHost, machine: FakeMachine, to: Reception | None) -> Fetched:
    """Let the rest follow, if the link holds. :raise MigrationFailed: the target is gone, and with it the machine."""
    if not machine.opened:
        return Fetched(done=True)
    machine.to = to or machine.to
    await world.clock.sleep(world.transfer_s)
    found = world.listening_at(machine.to) if machine.to else None
    if found is None:
        raise MigrationFailed("the target is gone, and what it had of the machine with it")
    if world.is_cut(found[0].name, host.name):
        return Fetched(done=False, why="the link is cut")
    found[1].missing_from = ""
    return Fetched(done=True)
