"""An agent: it heartbeats, joins, asks for time, and obeys orders if its tenure and its ledger let it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from novacron.agent import tenure as tenures
from novacron.agent.ledger import Role
from novacron.agent.tenure import Tenure
from novacron.model.ha import Protection
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.membership import Membership, MemberState, Pledge
from novacron.model.timing import Timing
from tests.sim.ownership.engine import Net, ask
from tests.sim.ownership.host import Copy, Host
from tests.sim.ownership.orders import Orders

if TYPE_CHECKING:
    from tests.sim.ownership.server import Server

SOME_TIME = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)

_STATUS = {
    Role.OWNED: MachineStatus.RUNNING,
    Role.LEAVING: MachineStatus.HANDED_OFF,
    Role.INCOMING: MachineStatus.INCOMING,
}


class Agent:
    """Its host's processes and ledger outlive it. servers: those it has lines to; listed: those it asks for time."""

    def __init__(
        self, host: Host, net: Net, timing: Timing, servers: Mapping[str, Server], listed: tuple[str, ...],
        protections: Mapping[str, Protection],
    ) -> None:  # fmt: skip
        self.host, self.net, self.timing, self.protections = host, net, timing, protections
        self.name, self.process = host.name, host.agent
        self._servers, self._listed = servers, listed
        self._at = 0
        self.tenure = Tenure(ttl_s=timing.ttl_s)
        self._member: Membership | None = None
        self._refused = False
        self.orders = Orders(self)
        self._leaving: Callable[[], None] | None = None
        host.booted = self.begin

    @property
    def leaving(self) -> bool:
        """Whether it ends everything: nothing is started any more."""
        return self._leaving is not None

    @property
    def now_s(self) -> float:
        return self.host.clock.now_s()

    def begin(self) -> None:
        """At the host's boot and after each death: what it knew of its tenure is gone."""
        self.process.begin()
        self.tenure = Tenure(ttl_s=self.timing.ttl_s)
        self._member, self._refused, self._leaving = None, False, None
        self._away = False
        self.orders.starting = set()
        for vm_id, copy in self.host.copies.items():
            self._adopt(vm_id, copy)
        self.process.after(self.host.loop.rng.uniform(0.05, 0.5), self._turn)

    def _adopt(self, vm_id: str, copy: Copy) -> None:
        holding = self.host.ledger[vm_id]
        if holding.role is Role.INCOMING and copy.runs:  # it died between the order to run and its ledger
            self.orders.hold(vm_id, copy.generation, Role.OWNED, copy.migration_id)

    def die(self, back_after_s: float) -> None:
        if self.host.on and self.process.alive:
            self.process.end()
            boots = self.host.boots

            def back() -> None:
                if self.host.on and self.host.boots == boots and not self.process.alive:
                    self.begin()

            self.host.loop.after(back_after_s, back)

    # -- the node's membership -----------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Once every heartbeat."""
        self.process.after(self.timing.heartbeat_s, self._turn)
        if self._leaving is not None:
            self._leaving()
        elif self._refused:
            self._join()
        else:
            self._beat()
            if self._away:
                self._plead()  # not only once the heartbeat was in vain, too

    def _beat(self) -> None:
        self.tenure, beat = tenures.beating(self.tenure, self.now_s)

        def answered(answer: tuple[bool, Membership | None] | None) -> None:
            if answer is None:
                self._unheard()
                return
            counted, member = answer
            self._away = False
            if counted:
                self.tenure = tenures.beat_counted(self.tenure, beat)
                self.host.arm(self.tenure.deadline_s)
            elif tenures.joining(self.tenure, member, self._listed, self.now_s) is not None:
                self._member, self._refused = member, True
                self._join()

        self._ask(lambda server, reply: server.take_beat(self.name, beat, self._reports(), reply), answered)

    def _join(self) -> None:
        join = tenures.joining(self.tenure, self._member, self._listed, self.now_s)
        if join is None:
            self._refused = False
            return
        if (join.end_first and not self.end_guarded()) or not self.host.shorten(join.latest_s):
            return  # something does not die, which the watchdog will see to, or the guardian stands still
        self.tenure = tenures.sending(self.tenure, join)
        pledge = Pledge(
            boot_id=f"{self.name}-{self.host.boots}",
            fence_class=self.host.fence_class,
            ttl_s=self.tenure.ttl_s,
            servers=join.servers,
        )

        def answered(answer: tuple[bool, Membership | None] | None) -> None:
            if answer is None:
                self._unheard()
                return
            counted, self._member = answer
            if counted and self._member is not None:
                self.tenure = tenures.joined(self.tenure, join, self._member)
                self._refused = False
                self.host.arm(self.tenure.deadline_s)

        self._ask(lambda server, reply: server.take_join(self.name, join, pledge, reply), answered)

    def end_guarded(self) -> bool:
        """Kill what is guarded; whether none of it lives."""
        guarded = [one.vm_id for one in self.host.copies.values() if one.guarded]
        return not [vm_id for vm_id in guarded if not self.host.kill(vm_id)]

    def leave(self, back_after_s: float) -> None:
        """In order: end everything, say so, and power off once it is written."""
        if not self.host.on or not self.process.alive or self._leaving is not None:
            return

        seen = [(MemberState.UP, self.tenure.epoch)]

        def say() -> None:
            self.tenure = tenures.leaving(self.tenure, self.now_s)
            alive = [one for one in list(self.host.copies) if not self.host.kill(one)]
            if not alive and not self.orders.starting:
                state, epoch = seen[-1]
                self._ask(lambda server, reply: server.take_leave(self.name, state, epoch, reply), said)

        def said(answer: tuple[bool, Membership | None] | None) -> None:
            counted, member = answer or (False, None)
            if self._leaving is not say:
                return
            if counted or (member is not None and member.state is MemberState.FENCED):
                self.host.power_off(back_after_s)
            elif member is not None:
                seen.append((member.state, member.epoch))
            elif answer is None:
                self._at += 1

        self._leaving = say
        say()

    def retime(self, ttl_s: float) -> None:
        """Before a time without an agent, and back after it."""
        if not self.process.alive or self.process.paused:
            return
        sooner = tenures.with_ttl(self.tenure, ttl_s, self.now_s)
        if sooner.deadline_s < self.tenure.deadline_s and not self.host.shorten(sooner.deadline_s):
            return
        self.tenure = sooner

    def relist(self, listed: tuple[str, ...]) -> None:
        """From now on it is to ask these servers for time."""
        if self.process.alive and not self.process.paused and self._leaving is None and self.tenure.epoch:
            self._listed, self._refused = listed, True

    def _unheard(self) -> None:
        """The store may be away, or this server: another one the next time."""
        self._at += 1
        self._away = True
        self._plead()

    def _plead(self) -> None:
        """Ask all servers for time."""
        asked_s, epoch, agreed = self.now_s, self.tenure.epoch, set[str]()
        if epoch == 0 or self.now_s >= self.tenure.deadline_s:
            return

        def promised(name: str) -> Callable[[bool | None], None]:
            def take(answer: bool | None) -> None:
                if answer:
                    agreed.add(name)
                    self.tenure = tenures.given_time(self.tenure, epoch, asked_s, agreed, self.now_s, self.timing)
                    self.host.arm(self.tenure.deadline_s)

            return take

        for name in sorted(self.tenure.servers):
            self._ask(lambda server, reply: server.take_plea(self.name, reply), promised(name), name)

    def _ask(
        self, request: Callable[[Server, Callable[[Any], None]], None], answer: Callable[[Any], None], to: str = ""
    ) -> None:
        """To one server; `answer` is called once, with None when no answer came in time."""
        names = tuple(self._servers)
        name = to or names[self._at % len(names)]
        server = self._servers[name]
        asker = (self.name, self.process)
        ask(
            self.net, asker, name, self.timing.request_s, answer,
            lambda reply: lambda: server.process.mine(lambda: request(server, reply))(),
        )  # fmt: skip

    def _reports(self) -> tuple[MachineReport, ...]:
        found = []
        for copy in self.host.copies.values():
            holding = self.host.ledger[copy.vm_id]
            status = _STATUS.get(holding.role, MachineStatus.UNKNOWN)
            moves = copy.migration_id if status is not MachineStatus.RUNNING else ""
            found.append(
                MachineReport(
                    vm_id=copy.vm_id, generation=copy.generation, status=status, since=SOME_TIME, migration_id=moves
                )
            )
        return tuple(found)
