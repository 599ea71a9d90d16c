"""A whole cluster under a plan of faults, watched from outside: what a violation is, is decided here.

I1  no VM runs twice at any instant of true time, whatever anybody believes
I2  a VM's generation never falls, and grows whenever its owner changes
I7  a VM that is handed over or taken over stands still at that moment where it was
I5  once faults have ended, every VM with HA runs, where its record says, and nothing else does
    and none was taken from a node whose fence class does not vouch for its end, unless that was proved;
    none started on a node that has not its disk; no more fences than allowed in any window
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import Any

import msgspec

from novacron.control.scheduler.snapshot import Need, PoolNeed
from novacron.model.ha import FenceClass, FenceLog, HaPolicy, Proof, Protection
from novacron.model.membership import Membership, MemberState
from novacron.model.migration import Migration
from novacron.model.node import DriverFacts, Node, NodeFacts, NodeState
from novacron.model.timing import STANDARD
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec
from tests.sim.ownership.agent import SOME_TIME, Agent
from tests.sim.ownership.engine import Loop, Net
from tests.sim.ownership.faults import LOCAL, UNPROTECTED, Fault, drawn
from tests.sim.ownership.host import Host
from tests.sim.ownership.server import LOG, Server
from tests.sim.ownership.store import Key, Store
from tests.sim.ownership.strikes import strike

FAULTS_UNTIL_S = 75.0
END_S = 165.0
"""The last fault may last 36 s; what it did is put right in the rest."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What kind of cluster; 0, empty: drawn. classes: of its nodes, in turn. min_class: of its VMs. fences: the limit.
    listed: servers that agents ask for time. no_fences_until_s: one before is a violation. every_s: between faults that
    are drawn. without: kinds that are left out. decides_by_reading: rule R8 is broken.
    bmcs: every node's power can be cut and read from outside.
    """

    nodes: int = 0
    servers: int = 0
    classes: tuple[FenceClass, ...] = ()
    min_class: FenceClass = FenceClass.WATCHDOG
    fences: int = 0
    listed: int = 0
    no_fences_until_s: float = 0.0
    every_s: float = 5.0
    without: frozenset[str] = frozenset()
    decides_by_reading: bool = False
    bmcs: bool = False


USUAL = Options()


class World:
    """One run. violations: what must never be; log: the story, if wanted."""

    def __init__(
        self, seed: int, plan: list[Fault] | None = None, options: Options = USUAL, *, tell: bool = False
    ) -> None:
        self.loop = Loop(seed)
        self.rng = random.Random(seed ^ 0x5EED)
        self.options = options
        self.timing = msgspec.structs.replace(STANDARD, fences=options.fences or self.rng.choice((1, 2, 4)))
        self.tell, self.log, self.violations = tell, list[str](), list[str]()
        self.fences: list[float] = []
        self.takeovers = 0
        self.starts = 0
        self.migrations = 0
        self.net = Net(self.loop)
        self.store = Store(self.loop, self.net)
        self.store.audit = self._changed
        self._build()
        self.plan = drawn(self.rng, FAULTS_UNTIL_S, options.every_s) if plan is None else plan
        for fault in self.plan:
            if fault.kind not in options.without:
                self.loop.at(fault.at_s, functools.partial(strike, self, fault))

    # -- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        rng, options = self.rng, self.options
        count = options.nodes or rng.choice((3, 3, 3, 4, 5))
        classes = options.classes or _classes(rng)
        self.names = [f"n{i}" for i in range(count)]
        server_names = [f"s{i}" for i in range(options.servers or rng.choice((2, 3)))]
        listed = tuple(server_names[: options.listed or rng.choice((2, 3, 3))])
        self.hosts = {
            name: Host(self.loop, name, classes[i % len(classes)], self.timing) for i, name in enumerate(self.names)
        }
        nodes = {name: _node(name) for name in self.names}
        self.protections = {
            vm: Protection(policy=HaPolicy.NONE if vm == UNPROTECTED else HaPolicy.RESTART, min_class=options.min_class)
            for vm in ("v0", "v1", LOCAL, UNPROTECTED)
        }
        self.home = self.names[2 % count]
        needs = {vm: _need(self.home if vm == LOCAL else "") for vm in self.protections}
        self.store.state[LOG] = FenceLog()
        for i, vm in enumerate(self.protections):
            node = self.home if vm == LOCAL else self.names[i % count]
            self.store.state["vm", vm] = _vm(vm, node)
        self.servers = {
            name: Server(self.loop, name, self.net, self.store, self.timing, nodes, needs, self.protections)
            for name in server_names
        }
        self.agents = {
            name: Agent(host, self.net, self.timing, self.servers, listed, self.protections)
            for name, host in self.hosts.items()
        }
        for server in self.servers.values():
            server.agents = self.agents
            server.switches = self.hosts if options.bmcs else {}
            server.conductor.decides_by_reading = options.decides_by_reading
        for name, host in self.hosts.items():
            host.began = functools.partial(self._began, name)
            host.boot()

    # -- watching ------------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        if self.tell:
            self.log.append(f"{self.loop.now_s:8.3f} {text}")

    def violate(self, text: str) -> None:
        self.violations.append(f"at {self.loop.now_s:.3f} s: {text}")
        self.say(f"VIOLATION {text}")

    def running(self, vm_id: str) -> list[str]:
        return [name for name, host in self.hosts.items() if vm_id in host.running()]

    def _began(self, name: str, vm_id: str) -> None:
        self.starts += 1
        self.say(f"{vm_id} runs on {name}")
        where = self.running(vm_id)
        if len(where) > 1:
            self.violate(f"{vm_id} runs on {' and '.join(where)}")
        if vm_id == LOCAL and name != self.home:
            self.violate(f"{vm_id} runs on {name}, its disk is on {self.home}")

    def _changed(self, key: Key, before: Any, now: Any) -> None:
        match before, now:
            case Vm(), Vm():
                self._vm_changed(before, now)
            case Membership(), Membership():
                if before.state is not now.state or before.epoch != now.epoch:
                    self.say(f"{key[1]} {now.state.value} epoch {now.epoch}: {now.reason}")
                if now.state is MemberState.FENCING:
                    self._barred(key[1])
            case _, Migration():
                self.say(f"{key[1]} {now.state.value} did {' '.join(now.did)} undone {' '.join(now.undone)}")
        if key[0] == "node" and before is None:
            self.say(f"{key[1]} joined")

    def _vm_changed(self, before: Vm, now: Vm) -> None:
        moved = before.node_id != now.node_id
        if now.generation < before.generation or (moved and now.generation <= before.generation):
            self.violate(f"{now.id} went from generation {before.generation} to {now.generation}")
        if moved:
            self.say(f"{now.id} belongs to {now.node_id}, generation {now.generation}")
            if now.task is not None and now.task.requested_by.startswith("ha:"):
                self._taken_over(before)
            self._handed(before, now)
            if before.node_id in self.running(before.id) and not self._at_rest(before):
                self.violate(f"{now.id} went to {now.node_id} while it ran on {before.node_id}")

    def _handed(self, before: Vm, now: Vm) -> None:
        """To a node that is barred no guest is sent: it could not go on there, and not from there."""
        migration: Migration | None = self.store.state.get(("migration", before.migration_id))
        member: Membership | None = self.store.state.get(("node", now.node_id))
        sent = migration is not None and migration.target_node == now.node_id and now.migration_id == migration.id
        if sent and member is not None and member.state is not MemberState.UP:
            self.violate(f"{now.id} was handed to {now.node_id}, which is {member.state.value}")

    def _at_rest(self, vm: Vm) -> bool:
        """Whether it is moved because it was seen not to run: a start that was on its way is undone by its release."""
        migration: Migration | None = self.store.state.get(("migration", vm.migration_id))
        return migration is not None and migration.at_rest

    def _taken_over(self, vm: Vm) -> None:
        """By what the cluster is made of, not by what the records say."""
        self.takeovers += 1
        host, protection = self.hosts[vm.node_id], self.protections[vm.id]
        member: Membership = self.store.state["node", vm.node_id]
        runs = host.on and any(copy.runs for copy in host.copies.values())  # what stands still needs an order to go on
        proved = member.proof is not Proof.NONE and not runs
        vouched = protection.policy is HaPolicy.RESTART and host.fence_class >= protection.min_class
        if protection.policy is HaPolicy.NONE or not (vouched or proved):
            self.violate(f"{vm.id} was taken from {vm.node_id}, of class {host.fence_class.name}")

    def _barred(self, name: str) -> None:
        now_s = self.loop.now_s
        self.fences.append(now_s)
        if now_s < self.options.no_fences_until_s:
            self.violate(f"{name} was fenced")
        if sum(1 for one in self.fences if now_s - one < self.timing.fence_window_s) > self.timing.fences:
            self.violate(f"{len(self.fences)} fences within {self.timing.fence_window_s:.0f} s")

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self, until_s: float = END_S, *, live: bool = True) -> World:
        self.loop.run(until_s)
        if live and not self.violations:
            self._check_live()
        return self

    def _check_live(self) -> None:
        for vm_id, protection in self.protections.items():
            vm: Vm = self.store.state["vm", vm_id]
            if protection.policy is HaPolicy.NONE:
                continue
            where = self.running(vm_id)
            if where != [vm.node_id]:
                self.violate(f"{vm_id} belongs to {vm.node_id} and runs on {where or 'none'} at the end")


def _classes(rng: random.Random) -> tuple[FenceClass, ...]:
    """Mostly watchdogs; sometimes nodes that promise less."""
    usual = FenceClass.WATCHDOG
    other = rng.choice((usual, usual, usual, FenceClass.TIMER, FenceClass.AGENT, FenceClass.BMC))
    return (usual, other, usual)


def _node(name: str) -> Node:
    driver = DriverFacts(name="qemu", version="7.2", default_machine_types={"q35": "pc-q35-7.2"})
    facts = NodeFacts(
        hostname=name, kernel="6", architecture="x86_64", boot_id="", cpu_model="", cpu_flags=(), cpu_count=16,
        memory_mib=65536, agent_version="1", drivers=(driver,),
    )  # fmt: skip
    return Node(
        id=name, name=name, state=NodeState.UP, created_at=SOME_TIME, updated_at=SOME_TIME, state_since=SOME_TIME,
        facts=facts,
    )  # fmt: skip


def _need(node: str) -> Need:
    pools = (PoolNeed(id="local", name="local", node_id=node),) if node else ()
    return Need(memory_mib=1024, vcpus=1, pools=pools)


def _vm(vm_id: str, node: str) -> Vm:
    task = Task(id="first", kind=TaskKind.START, requested_at=SOME_TIME)
    return Vm(
        id=vm_id, name=vm_id, spec=VmSpec(image_id="i"), desired=Desired.RUNNING, created_at=SOME_TIME,
        updated_at=SOME_TIME, node_id=node, generation=1, task=task,
    )  # fmt: skip
