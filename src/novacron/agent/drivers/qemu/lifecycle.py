"""How machines come into a fleet and leave it: started, reverted, opened for a copy, received, given up, forgotten.

To be called while the fleet runs the verb: one at a time for each machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu import adjust, incoming, launcher, parking, power, snapshot
from novacron.agent.drivers.qemu.fleet import Fleet
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.record import Role
from novacron.errors import StateConflict
from novacron.model.machine import MachineReport


async def start(fleet: Fleet, launch: Launch) -> MachineReport:
    """Also from what it remembers, when it was parked. One that lives is left; nothing is left of a failure."""

    async def begin(machine: Machine) -> object:
        await adjust.limit(machine, launch)
        return await (parking.begin_from(machine, launch.spec, launch.state) if launch.state else power.begin(machine))

    known = await fleet.known_at(launch)
    if known is not None and not known.ended:
        return await power.begin(known)
    return await _begun(fleet, launch, begin, incoming=launch.state is not None)


async def restore(fleet: Fleet, launch: Launch, snapshot_id: str) -> MachineReport:
    """Begin where a snapshot was taken. :raise StateConflict: it lives. Nothing is left of a failure."""
    known = await fleet.known_at(launch)
    if known is not None and not known.ended:
        raise StateConflict.of(f"machine {known.vm_id}", known.status.value, ("stopped",), "revert")
    return await _begun(fleet, launch, lambda machine: snapshot.begin_from(machine, snapshot_id), incoming=False)


async def _begun(
    fleet: Fleet, launch: Launch, begin: Callable[[Machine], Awaitable[object]], *, incoming: bool
) -> MachineReport:
    machine, host = await fleet.make(launch)
    machine.record.copying = incoming
    await launcher.launch(machine, launch, host, incoming=incoming)
    try:
        await begin(machine)
    except BaseException:
        await launcher.abandon(machine)
        raise
    fleet.enlist(machine)
    return machine.report()


async def stop(fleet: Fleet, vm_id: str, patience_s: float) -> MachineReport:
    """See power.stop. One that is not there is reported absent."""
    machine = fleet.machines.get(vm_id)
    return fleet.absent(vm_id) if machine is None else await power.stop(machine, patience_s)


async def forget(fleet: Fleet, vm_id: str) -> None:
    """Its files go with it. Not there: fine. :raise StateConflict: it lives."""
    machine = fleet.machines.get(vm_id)
    if machine is None:
        return
    if not machine.ended:
        raise StateConflict.of(f"machine {vm_id}", machine.status.value, ("stopped", "crashed"), "forget")
    del fleet.machines[vm_id]
    await machine.let_go()
    launcher.clear(machine.run_dir)


async def open_disks(fleet: Fleet, launch: Launch, migration_id: str) -> MachineReport:
    """A machine that does not run, over disks that another node or process is to read or fill."""
    known = await fleet.known_at(launch)
    if known is not None and not (known.ended and known.record.copied != migration_id):
        return known.report()
    machine, host = await fleet.make(launch)
    await launcher.launch(machine, launch, host, incoming=False)
    fleet.enlist(machine)
    return await machine.refresh()


async def accept(fleet: Fleet, launch: Launch, awaited: Awaited) -> Reception:
    """Make ready to receive; asked again, it says the same. An unfinished arrival of before is given up.

    :raise StateConflict: a machine is in the way.
    """
    known = await fleet.known_at(launch)
    if known is not None and not known.ended:
        given = incoming.reception(known, awaited.migration_id)
        if given is not None:
            return given
        unfinished = known.transfer(awaited.migration_id, Role.TARGET)
        if unfinished is None or not await discard(fleet, known.vm_id, awaited.migration_id):
            raise StateConflict.of(f"machine {known.vm_id}", known.status.value, ("absent",), "accept")
    _, found, *_ = await fleet.facts()
    machine, host = await fleet.make(launch)
    given = await incoming.accept(machine, launch, host, (*found.features, *await fleet.arrivals()), awaited)
    fleet.enlist(machine)
    return given


async def discard(fleet: Fleet, vm_id: str, migration_id: str) -> bool:
    """Whether there was an arrival of that migration to give up, which then is gone."""
    machine = fleet.machines.get(vm_id)
    if machine is None or not await incoming.discard(machine, migration_id):
        return False
    fleet.tell(fleet.absent(vm_id))
    del fleet.machines[vm_id]
    return True
