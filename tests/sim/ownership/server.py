"""A server: it takes in heartbeats, judges nodes, takes VMs over, has machines started, and conducts migrations.

All servers do all of it at once: nothing here relies on there being one leader.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from novacron.agent.tenure import Beat, Join
from novacron.agent.warrant import Order
from novacron.control.fencing import decide as fencing
from novacron.control.ha import brake, fence, sight, takeover, word
from novacron.control.ha.fence import Bar, Fence, Hold
from novacron.control.ha.sight import Sight
from novacron.control.ha.takeover import Claim
from novacron.control.scheduler.snapshot import Candidate, Limits, Need
from novacron.control.vms import decide
from novacron.errors import Reason
from novacron.model import ha, membership
from novacron.model.fence_device import Power
from novacron.model.ha import FenceLog, Protection
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import Membership, MemberState, Pledge
from novacron.model.node import Node
from novacron.model.timing import Timing
from novacron.model.vm import Vm
from tests.sim.ownership.agent import SOME_TIME, Agent
from tests.sim.ownership.conductor import Conductor
from tests.sim.ownership.engine import Act, Clock, Loop, Net, Process, ask
from tests.sim.ownership.host import Host
from tests.sim.ownership.store import Answer, State, Store, Transaction

LOG = ("fences", "")
LOOK_S = 1.0
ROOM = Limits()


class Server:
    """needs, protections: by VM id; nodes: their records, which do not change here."""

    def __init__(
        self, loop: Loop, name: str, net: Net, store: Store, timing: Timing, nodes: Mapping[str, Node],
        needs: Mapping[str, Need], protections: Mapping[str, Protection],
    ) -> None:  # fmt: skip
        self.loop, self.name, self.net, self.store, self.timing = loop, name, net, store, timing
        self.nodes, self.needs, self.protections = nodes, needs, protections
        self.process = Process(loop, Clock(loop, timing.rate_bound))
        self.agents: Mapping[str, Agent] = {}
        self.switches: Mapping[str, Host] = {}
        self.conductor = Conductor(self)
        self.begin()

    @property
    def now_s(self) -> float:
        return self.process.clock.now_s()

    def begin(self) -> None:
        """What it knew before is gone."""
        self.process.begin()
        self.view: State = {}
        self.vms: list[Vm] = []
        self.revision = -1
        self.sights: dict[str, Sight] = {}
        self._log_seen: dict[int, float] = {}
        self._reports: dict[str, tuple[MachineReport, ...]] = {}
        self._asking: set[str] = set()
        self._reading: set[str] = set()
        self._cut_s: dict[tuple[str, int], float] = {}
        self.conductor.begin()
        self.process.after(self.loop.rng.uniform(0, LOOK_S), self._look)

    def die(self, back_after_s: float) -> None:
        if self.process.alive:
            self.process.end()
            self.loop.after(back_after_s, self.begin)

    # -- the store and the line ----------------------------------------------------------------------------------

    def write(self, transaction: Transaction, answer: Answer) -> None:
        self.store.ask(self.process, self.name, self.timing.request_s, transaction, answer)

    def once(self, what: str, transaction: Transaction) -> None:
        """Write, unless the same is being written by this server already."""
        if what not in self._asking:
            self._asking.add(what)
            self.write(transaction, lambda _: self._asking.discard(what))

    def order(self, node: str, verb: Callable[[Agent, Callable[[str], None]], None], answer: Answer) -> None:
        """Have an agent do something; `answer` is called once, with None when no answer came in time."""
        agent = self.agents[node]

        def obey(reply: Callable[[Any], None]) -> Act:
            def arrived() -> None:
                if agent.host.on:
                    agent.process.mine(lambda: verb(agent, reply))()

            return arrived

        ask(self.net, (self.name, self.process), node, self.timing.request_s, answer, obey)

    def warrant(self, vm: Vm, node: str) -> Order:
        """What an order to `node` about this VM speaks for, by what this server knows."""
        member = self.member(node)
        epoch = member.epoch if member is not None and member.state is MemberState.UP else 0
        return Order(vm_id=vm.id, generation=vm.generation, epoch=epoch)

    def member(self, node: str) -> Membership | None:
        found: Membership | None = self.view.get(("node", node))
        return found

    # -- what agents ask -----------------------------------------------------------------------------------------

    def take_beat(
        self, node: str, beat: Beat, reports: tuple[MachineReport, ...], reply: Callable[[Any], None]
    ) -> None:
        self._observe(node, reports)

        def write(state: State) -> tuple[bool, Membership | None]:
            member = state.get(("node", node))
            now = None if member is None else membership.beaten(member, beat.epoch, beat.beats, beat.ttl_s)
            if now is not None:
                state["node", node] = now
            return now is not None, now or member

        self.write(write, lambda answer: None if answer is None else reply(answer))

    def take_join(self, node: str, join: Join, pledge: Pledge, reply: Callable[[Any], None]) -> None:
        state_seen, epoch_seen = (join.seen.state, join.seen.epoch) if join.seen else (None, 0)

        def write(state: State) -> tuple[bool, Membership | None]:
            member = state.get(("node", node))
            now = membership.joined(member, node, state_seen, epoch_seen, pledge)
            if now is not None:
                state["node", node] = now
            return now is not None, now or member

        self.write(write, lambda answer: None if answer is None else reply(answer))

    def take_leave(self, node: str, seen: MemberState, epoch: int, reply: Callable[[Any], None]) -> None:
        def write(state: State) -> tuple[bool, Membership | None]:
            member: Membership | None = state.get(("node", node))
            now = None if member is None else membership.left(member, seen, epoch)
            if now is not None:
                state["node", node] = now
            return now is not None, now or member

        self.write(write, lambda answer: None if answer is None else reply(answer))

    def take_plea(self, node: str, reply: Callable[[Any], None]) -> None:
        if node in self.sights:
            self.sights[node] = sight.promised(self.sights[node], self.now_s)
        reply(True)

    # -- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self.process.after(LOOK_S * self.loop.rng.uniform(0.8, 1.2), self._look)
        self.store.read(self.process, self.name, self.timing.request_s, self._seen)

    def _seen(self, answer: tuple[int, State] | None) -> None:
        if answer is None or answer[0] < self.revision:
            return
        self.revision, self.view = answer
        self.vms = [value for (kind, _), value in self.view.items() if kind == "vm"]
        for (kind, name), value in self.view.items():
            if kind == "node":
                self.sights[name] = sight.looked(self.sights.get(name), value, self.now_s)
        log: FenceLog = self.view[LOG]
        self._log_seen = brake.watched(self._log_seen, log, self.now_s)
        lapsed = brake.lapsed(self._log_seen, self.now_s, self.timing)
        if lapsed:
            self.once("log", functools.partial(_forget, lapsed))
        self._judge(log)
        self._take_over()
        self._reconcile()
        self._sweep()
        self.conductor.look()

    def _judge(self, log: FenceLog) -> None:
        worth = set()
        for vm in self.vms:
            member = self.member(vm.node_id)
            if member is not None and takeover.is_worth(
                self.protections[vm.id], member, provable=vm.node_id in self.switches
            ):
                worth.add(vm.node_id)
        held: dict[str, Reason] = {}
        for verdict in fence.verdicts(self.name, self.sights, log, worth.__contains__, self.now_s, self.timing):
            match verdict:
                case Hold():
                    held[verdict.node_id] = verdict.reason
                case Bar():
                    self.once(f"bar {verdict.seen.id}", functools.partial(_bar, verdict, self.timing.fences))
                case Fence():
                    self.once(f"fence {verdict.seen.id}", functools.partial(_fence, verdict))

        self._switch(worth, held)

    def _switch(self, worth: set[str], held: Mapping[str, Reason]) -> None:
        """Have the power of barred nodes read; what is read comes later, and what comes of it later still."""
        for node in self.switches:
            member = self.member(node)
            if member is None or node in self._reading or not fencing.is_due(member, node in worth, held.get(node)):
                continue
            self._reading.add(node)
            self.process.after(self.loop.rng.uniform(0.1, 2.0), functools.partial(self._read, node, member))

    def _read(self, node: str, member: Membership) -> None:
        host, key = self.switches[node], (node, member.epoch)
        ago_s = self.now_s - self._cut_s[key] if key in self._cut_s else None
        step = fencing.next_step(Power.ON if host.on else Power.OFF, ago_s)
        if step is fencing.Step.SWITCH_OFF:
            self._cut_s[key] = self.now_s
            host.cut()
        after_s = self.loop.rng.uniform(0.1, 20.0) if step is fencing.Step.PROVEN else 0.0

        def done() -> None:
            self._reading.discard(node)
            if step is fencing.Step.PROVEN:
                self.once(f"prove {node}", functools.partial(_prove, node, member))

        self.process.after(after_s, done)

    def take_word(self, node: str) -> None:
        """A person says that the node is off."""
        seen = self.sights.get(node)
        if seen is not None and word.refusal(seen, self.now_s, self.timing) is None:
            self.once(f"word {node}", functools.partial(_take_word, node, seen.member))

    def _take_over(self) -> None:
        for node in self.nodes:
            member = self.member(node)
            if member is None or member.state is not MemberState.FENCED:
                continue
            claims = [Claim(vm=vm, protection=self.protections[vm.id], need=self.needs[vm.id]) for vm in self.vms]
            if not any(claim.vm.node_id == node for claim in claims):
                continue
            for restart in takeover.plan(member, claims, self._candidates(), ROOM).restarts:
                if restart.target_id:
                    vm: Vm = self.view["vm", restart.vm_id]
                    write = functools.partial(_move, vm, member, restart.target_id)
                    self.once(f"move {vm.id}", write)

    def _candidates(self) -> list[Candidate]:
        found = []
        for name, node in self.nodes.items():
            member, seen = self.member(name), self.sights.get(name)
            silent = seen is not None and sight.silent_s(seen, self.now_s) >= sight.suspect_after_s(seen, self.timing)
            state = membership.state_of(member, silent=silent)
            found.append(Candidate(node=msgspec.structs.replace(node, state=state), pools={"local": ""}))
        return found

    # -- VMs -----------------------------------------------------------------------------------------------------

    def _observe(self, node: str, reports: tuple[MachineReport, ...]) -> None:
        """What a node reports of the VMs it owns, and which of them it does not have."""
        self._reports[node] = reports
        seen = {report.vm_id: report for report in reports}
        for vm in self.vms:
            if vm.node_id != node or vm.migration_id:
                continue
            report = seen.get(vm.id)
            if report is None:
                report = MachineReport(
                    vm_id=vm.id, generation=vm.generation, status=MachineStatus.ABSENT, since=SOME_TIME
                )
            if decide.speaks_for(vm, node, report) and vm.observed != report:
                self.once(f"observe {vm.id}", functools.partial(_observed, node, report))

    def _reconcile(self) -> None:
        for vm in self.vms:
            member = self.member(vm.node_id)
            if member is None or member.state is not MemberState.UP:
                continue
            if takeover.restart_here(vm, self.protections[vm.id], member, "here", SOME_TIME) is not None:
                self.once(f"restart {vm.id}", functools.partial(_restart, vm, member, self.protections[vm.id]))
            match decide.next_action(vm):
                case decide.Start():
                    self.order(vm.node_id, functools.partial(_start, self.warrant(vm, vm.node_id)), _ignore)
                case decide.Stop():
                    self.order(vm.node_id, functools.partial(_stop, vm), _ignore)
                case decide.Done() if vm.task is not None:
                    self.once(f"task {vm.id}", functools.partial(_task_done, vm))

    def _sweep(self) -> None:
        """Copies that nodes report and that are nobody's."""
        for node, reports in self._reports.items():
            for report in reports:
                vm: Vm = self.view["vm", report.vm_id]
                passed = report.generation < vm.generation
                stray = report.status is not MachineStatus.RUNNING and vm.migration_id != report.migration_id
                if not vm.migration_id and (passed or stray or vm.node_id != node):
                    self.order(node, functools.partial(_drop, vm, report), _ignore)


def _ignore(answer: Any) -> None:
    """What came of it is seen in the next report."""


def _start(order: Order, agent: Agent, reply: Callable[[str], None]) -> None:
    agent.orders.start(order, reply)


def _stop(vm: Vm, agent: Agent, reply: Callable[[str], None]) -> None:
    agent.orders.stop(vm.id, vm.generation, reply)


def _drop(vm: Vm, report: MachineReport, agent: Agent, reply: Callable[[str], None]) -> None:
    agent.orders.drop(vm.id, vm.generation, report.migration_id, reply)


# -- transactions: each reads the state as it is when it arrives ---------------------------------------------------


def _forget(numbers: frozenset[int], state: State) -> bool:
    log = ha.forgotten(state[LOG], numbers)
    if log is not None:
        state[LOG] = log
    return log is not None


def _bar(verdict: Bar, limit: int, state: State) -> bool:
    node = verdict.seen.id
    member = membership.barred(state["node", node], verdict.seen, verdict.reason)
    log = ha.noted(state[LOG], node, verdict.seen.epoch, verdict.reason, limit)
    if member is None or log is None:
        return False
    state["node", node], state[LOG] = member, log
    return True


def _fence(verdict: Fence, state: State) -> bool:
    node = verdict.seen.id
    member = membership.fenced(state["node", node], verdict.seen, ha.Proof.NONE, verdict.reason)
    if member is not None:
        state["node", node] = member
    return member is not None


def _prove(node: str, seen: Membership, state: State) -> bool:
    member = membership.proven(state["node", node], seen, ha.Proof.POWER, "its power was seen to be off")
    if member is not None:
        state["node", node] = member
    return member is not None


def _take_word(node: str, seen: Membership, state: State) -> bool:
    member = word.taken(state["node", node], seen, "somebody said that it is off", all_vms=False)
    if member is not None:
        state["node", node] = member
    return member is not None


def _move(vm: Vm, member: Membership, target: str, state: State) -> bool:
    if state["vm", vm.id] is not vm or state["node", member.id] is not member:
        return False
    state["vm", vm.id] = takeover.taken_over(vm, member, target, f"ha-{vm.generation + 1}", SOME_TIME)
    if vm.migration_id:
        migration = state["migration", vm.migration_id]
        state["migration", vm.migration_id] = takeover.cut_short(migration, member, SOME_TIME)
    return True


def _observed(node: str, report: MachineReport, state: State) -> bool:
    vm: Vm = state["vm", report.vm_id]
    if decide.speaks_for(vm, node, report):
        state["vm", vm.id] = decide.observed(vm, report, SOME_TIME)
    return True


def _restart(vm: Vm, member: Membership, protection: Protection, state: State) -> bool:
    now = takeover.restart_here(state["vm", vm.id], protection, member, f"here-{vm.generation}", SOME_TIME)
    if now is not None and state["vm", vm.id] is vm:
        state["vm", vm.id] = now
    return True


def _task_done(vm: Vm, state: State) -> bool:
    if vm.task is not None:
        state["vm", vm.id] = decide.task_done(state["vm", vm.id], vm.task.id, SOME_TIME)
    return True
