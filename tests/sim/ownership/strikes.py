"""What each fault does to the cluster, and what users ask for meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from novacron.model.machine import ENDED
from novacron.model.migration import UNDOING, Migration, MigrationKind, MigrationState, Strategy
from novacron.model.migration_steps import cancelled, may_cancel
from novacron.model.vm import Desired, Task, TaskKind, Vm, status_of
from tests.sim.ownership.agent import SOME_TIME, Agent
from tests.sim.ownership.faults import LOCAL, Fault
from tests.sim.ownership.host import Host
from tests.sim.ownership.server import Server

if TYPE_CHECKING:
    from tests.sim.ownership.world import World

LONG_TTL_S = 60.0


def strike(world: World, fault: Fault) -> None:
    world.say(f"FAULT {fault}")
    STRIKES[fault.kind](world, fault)


# -- whom it strikes -----------------------------------------------------------------------------------------------


def _host(world: World, fault: Fault) -> Host:
    return world.hosts[world.names[fault.node % len(world.names)]]


def _agent(world: World, fault: Fault) -> Agent:
    return world.agents[world.names[fault.node % len(world.names)]]


def _server(world: World, fault: Fault) -> Server:
    return list(world.servers.values())[fault.salt % len(world.servers)]


def _vm(world: World, fault: Fault) -> Vm:
    found: Vm = world.store.state["vm", list(world.protections)[fault.vm % len(world.protections)]]
    return found


# -- faults --------------------------------------------------------------------------------------------------------


def _stick(world: World, fault: Fault) -> None:
    host = _host(world, fault)
    for vm_id in list(host.copies):
        host.stick(vm_id, fault.length_s)


def _store_away(world: World, fault: Fault) -> None:
    world.store.down_until_s = max(world.store.down_until_s, world.loop.now_s + fault.length_s)


def _cut(world: World, fault: Fault) -> None:
    """A node or a server from some of the others, or from all."""
    rng = random.Random(fault.salt)
    name, everybody = _host(world, fault).name, (*world.names, *world.servers, "store")
    if rng.random() < 0.25:
        name = rng.choice(list(world.servers))
    places = [one for one in everybody if one != name]
    cut = places if rng.random() < 0.4 else rng.sample(places, rng.randint(1, len(places) - 1))
    until_s = world.loop.now_s + fault.length_s
    for place in cut:
        world.net.cut(name, place, until_s)
        if fault.kind == "cut":
            world.net.cut(place, name, until_s)


def _part(world: World, fault: Fault) -> None:
    everybody = (*world.names, *world.servers, "store")
    a, b = everybody[fault.node % len(everybody)], everybody[fault.salt % len(everybody)]
    until_s = world.loop.now_s + fault.length_s
    world.net.cut(a, b, until_s)
    world.net.cut(b, a, until_s)


def _deafen(world: World, fault: Fault) -> None:
    until_s = world.loop.now_s + fault.length_s
    world.net.cut(_server(world, fault).name, _host(world, fault).name, until_s)


def _mute(world: World, fault: Fault) -> None:
    until_s = world.loop.now_s + fault.length_s
    world.net.cut(_host(world, fault).name, _server(world, fault).name, until_s)


def _upgrade(world: World, fault: Fault) -> None:
    """The agent says that it will be away for longer, is away (unless that is called off), and says that it is back."""
    agent = _agent(world, fault)

    def away() -> None:
        if agent.tenure.ttl_s == LONG_TTL_S and fault.salt % 3:
            agent.die(fault.length_s)

    agent.retime(LONG_TTL_S)
    world.loop.after(5.0, away)
    for back_s in (7.0 + fault.length_s, 50.0):
        world.loop.after(back_s, lambda: agent.retime(world.timing.ttl_s))


def _word(world: World, fault: Fault) -> None:
    """Somebody sees that a host is off, and says so to a server; the word is long on its way."""
    host, server = _host(world, fault), _server(world, fault)
    if not host.on:
        world.loop.after(fault.length_s, server.process.mine(lambda: server.take_word(host.name)))


def _relist(world: World, fault: Fault) -> None:
    """Servers come and go: which of them an agent asks for time."""
    _agent(world, fault).relist(tuple(world.servers)[fault.salt % 2 :])


# -- what users ask for --------------------------------------------------------------------------------------------


def _migrate(world: World, fault: Fault) -> None:
    _begin_migration(world, _vm(world, fault), _host(world, fault).name, _server(world, fault).name)


def _begin_migration(world: World, vm: Vm, target: str, conductor: str, *, at_rest: bool = False) -> None:
    busy = vm.migration_id or vm.task is not None or vm.observed is None
    if busy or vm.node_id == target or vm.id == LOCAL:
        return
    world.migrations += 1
    name = f"m{world.migrations}"
    migration = Migration(
        id=name,
        vm_id=vm.id,
        vm_name=vm.id,
        kind=MigrationKind.COLD if at_rest else MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node=vm.node_id,
        target_node=target,
        generation=vm.generation,
        state=MigrationState.PENDING,
        created_at=SOME_TIME,
        updated_at=SOME_TIME,
        at_rest=at_rest,
        labels={"conductor": conductor},
    )
    held = msgspec.structs.replace(vm, migration_id=name)
    _put(world, {("migration", name): migration, ("vm", vm.id): held})


def _cancel(world: World, fault: Fault) -> None:
    vm = _vm(world, fault)
    if vm.migration_id:
        migration: Migration = world.store.state["migration", vm.migration_id]
        if may_cancel(migration) and migration.state not in UNDOING:
            _put(world, {("migration", migration.id): cancelled(migration, SOME_TIME)})


def _shelve(world: World, fault: Fault) -> None:
    """A VM is shut down, moved while it is at rest, and started."""
    vm_id, target, conductor = _vm(world, fault).id, _host(world, fault).name, _server(world, fault).name

    def move() -> None:
        vm: Vm = world.store.state["vm", vm_id]
        if vm.desired is Desired.STOPPED and status_of(vm) in ENDED:
            _begin_migration(world, vm, target, conductor, at_rest=True)

    def start() -> None:
        vm: Vm = world.store.state["vm", vm_id]
        if vm.migration_id or vm.task is not None:
            world.loop.after(2.0, start)
        elif vm.desired is Desired.STOPPED:
            _want(world, vm, Desired.RUNNING, TaskKind.START)

    vm = _vm(world, fault)
    if not vm.migration_id and vm.task is None:
        _want(world, vm, Desired.STOPPED, TaskKind.STOP)
        world.loop.after(4.0, move)
        world.loop.after(8.0, start)


def _want(world: World, vm: Vm, desired: Desired, kind: TaskKind) -> None:
    task = Task(id=f"user-{world.loop.now_s:.3f}", kind=kind, requested_at=SOME_TIME, force=True)
    _put(world, {("vm", vm.id): msgspec.structs.replace(vm, desired=desired, task=task)})


def _put(world: World, records: dict[tuple[str, str], Any]) -> None:
    world.store.apply(lambda state: state.update(records))


STRIKES: dict[str, Callable[[World, Fault], None]] = {
    "agent": lambda world, fault: _agent(world, fault).die(fault.length_s / 2),
    "pause": lambda world, fault: _agent(world, fault).process.pause(fault.length_s),
    "power": lambda world, fault: _host(world, fault).power_off(fault.length_s),
    "leave": lambda world, fault: _agent(world, fault).leave(fault.length_s),
    "freeze": lambda world, fault: _host(world, fault).freeze(fault.length_s),
    "guardian": lambda world, fault: _host(world, fault).stop_guardian(fault.length_s),
    "stuck": _stick,
    "cut": _cut,
    "half": _cut,
    "pair": _part,
    "deaf": _deafen,
    "mute": _mute,
    "store": _store_away,
    "server": lambda world, fault: _server(world, fault).die(fault.length_s / 3),
    "still": lambda world, fault: _server(world, fault).process.pause(fault.length_s),
    "upgrade": _upgrade,
    "word": _word,
    "relist": _relist,
    "migrate": _migrate,
    "cancel": _cancel,
    "shelve": _shelve,
}
