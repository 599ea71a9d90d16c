"""What an agent does when it is told to, if its tenure and its ledger let it: each verb answers OK, WAIT or why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from novacron.agent import warrant
from novacron.agent.ledger import Holding, Role
from novacron.agent.warrant import Order
from novacron.model.ha import is_guarded
from tests.sim.ownership.host import Copy

if TYPE_CHECKING:
    from tests.sim.ownership.agent import Agent

OK = "ok"
WAIT = "wait"
FOREVER_S = float("inf")


class Orders:
    """Of one agent. starting: machines that are about to run."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.host = agent.host
        self.starting: set[str] = set()

    # -- start and stop ------------------------------------------------------------------------------------------

    def start(self, order: Order, reply: Callable[[str], None]) -> None:
        vm_id = order.vm_id
        refused = self._refusal(order)
        copy, holding = self.host.copies.get(vm_id), self.holding(vm_id)
        if refused:
            reply(refused)
        elif copy is not None:
            reply(OK if holding.role is Role.OWNED and not copy.doomed else WAIT)
        elif vm_id in self.starting or self.agent.leaving:
            reply(WAIT)
        else:
            self.hold(vm_id, order.generation, Role.OWNED)
            self.starting.add(vm_id)

            def ready() -> None:
                self.starting.discard(vm_id)
                if not self._refusal(order) and vm_id not in self.host.copies and not self.agent.leaving:
                    self._run(Copy(vm_id, order.generation, runs=False, guarded=False, armed_s=FOREVER_S))

            self.agent.process.after(self.host.loop.rng.uniform(0.05, 1.0), ready)
            reply(WAIT)

    def _run(self, copy: Copy) -> None:
        """Armed first, then running."""
        copy.guarded = is_guarded(self.agent.protections[copy.vm_id], self.host.fence_class)
        copy.armed_s = self.agent.tenure.deadline_s
        self.host.run(copy)

    def _refusal(self, order: Order, *, back: bool = False) -> str:
        """Why it must not run; back: it was to leave, and goes on here."""
        holding = self.holding(order.vm_id)
        floor = holding.generation if back else warrant.floor_of(holding)
        refused = warrant.refusal(order, self.agent.tenure, floor, self.agent.now_s, self.agent.timing)
        if refused is not None:
            return refused.code
        guarded = is_guarded(self.agent.protections[order.vm_id], self.host.fence_class)
        return "order.guardian" if guarded and self.host.guardian.paused else ""

    def stop(self, vm_id: str, generation: int, reply: Callable[[str], None]) -> None:
        holding = self.holding(vm_id)
        if generation < holding.generation:
            reply("order.generation")
        elif holding.role in (Role.LEAVING, Role.INCOMING):
            reply("busy")
        else:
            reply(OK if self.host.kill(vm_id) else WAIT)

    def drop(self, vm_id: str, generation: int, migration_id: str, reply: Callable[[str], None]) -> None:
        """A copy that is nobody's: of an ownership that has passed, or of a migration that is over."""
        holding, copy = self.holding(vm_id), self.host.copies.get(vm_id)
        if generation < holding.generation:
            reply("order.generation")
            return
        passed = copy is not None and copy.generation < generation
        stray = holding.role in (Role.LEAVING, Role.INCOMING) and holding.migration_id == migration_id
        if holding.role is Role.OWNED and not passed:
            reply(OK)
        elif (passed or stray) and self.host.kill(vm_id):
            self.hold(vm_id, generation, Role.GONE)
            reply(OK)
        else:
            reply(WAIT)

    # -- the steps of a migration --------------------------------------------------------------------------------

    def accept(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        vm_id, holding = order.vm_id, self.holding(order.vm_id)
        if order.generation < holding.generation or holding.called_off == migration_id:
            reply("order.generation")
        elif holding.role is Role.INCOMING and holding.migration_id == migration_id:
            reply(OK if vm_id in self.host.copies else "gone")
        elif (holding.role is Role.OWNED and vm_id in self.host.copies) or vm_id in self.starting:
            reply("conflict")
        elif not self.host.kill(vm_id):
            reply(WAIT)
        else:
            self.hold(vm_id, order.generation, Role.INCOMING, migration_id)
            self.host.copies[vm_id] = Copy(
                vm_id, order.generation, runs=False, guarded=False, armed_s=FOREVER_S, migration_id=migration_id
            )
            reply(OK)

    def send(self, order: Order, migration_id: str, target: Orders, reply: Callable[[str], None]) -> None:
        """The state goes to the target; both stand still when it has come."""
        vm_id, holding, copy = order.vm_id, self.holding(order.vm_id), self.host.copies.get(order.vm_id)
        if order.generation < holding.generation or holding.called_off == migration_id:
            reply("order.generation")
        elif holding.role is Role.LEAVING and holding.migration_id == migration_id:
            reply("gone" if copy is None else OK if copy.whole else "broken" if not copy.runs else WAIT)
        elif holding.role is not Role.OWNED or copy is None or not copy.runs:
            reply("conflict")
        else:
            self.hold(vm_id, holding.generation, Role.LEAVING, migration_id)
            copy.migration_id, copy.whole = migration_id, False
            rng = self.host.loop.rng
            self.host.loop.after(rng.uniform(0.3, 4.0), lambda: self._switch(copy, migration_id, target))
            reply(WAIT)

    def _switch(self, copy: Copy, migration_id: str, target: Orders) -> None:
        """By the hypervisor, whatever became of the agent: the guest stops, the rest of it goes over."""
        host = self.host
        here = host.on and host.copies.get(copy.vm_id) is copy and copy.migration_id == migration_id
        if not here or not copy.runs or copy.stuck:
            return
        if host.frozen:
            host.loop.at(host.frozen_until_s + 0.01, lambda: self._switch(copy, migration_id, target))
            return
        copy.runs = False

        def arrive() -> None:
            other = target.host.copies.get(copy.vm_id)
            if target.host.on and other is not None and other.migration_id == migration_id and not other.runs:
                other.whole = True
                self.agent.net.send(target.host.name, self.host.name, arrived)

        def arrived() -> None:
            if host.on and host.copies.get(copy.vm_id) is copy and copy.migration_id == migration_id:
                copy.whole = True

        self.agent.net.send(self.host.name, target.host.name, arrive)

    def take_over(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        vm_id, holding, copy = order.vm_id, self.holding(order.vm_id), self.host.copies.get(order.vm_id)
        if holding.migration_id != migration_id or copy is None:
            reply("gone")
        elif holding.role is Role.OWNED:
            reply(OK)
        elif not copy.whole:
            reply("gone")
        elif refused := self._refusal(order):
            reply(refused)
        else:
            self.hold(vm_id, order.generation, Role.OWNED, migration_id)
            copy.generation = order.generation
            self._run(copy)
            reply(OK)

    def boot_here(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        """verify: whether it runs here."""
        copy = self.host.copies.get(order.vm_id)
        reply(OK if copy is not None and copy.runs and copy.generation == order.generation else "gone")

    def release(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        """It has moved: nothing of it stays."""
        vm_id, holding = order.vm_id, self.holding(order.vm_id)
        owned = holding.role is Role.OWNED and vm_id in self.host.copies and order.generation == holding.generation
        if owned or order.generation < holding.generation:
            reply(OK)
        elif self.host.kill(vm_id):
            self.hold(vm_id, order.generation, Role.GONE, called_off=migration_id)
            reply(OK)
        else:
            reply(WAIT)

    def reclaim(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        """Its migration was taken back: it goes on here."""
        vm_id, holding, copy = order.vm_id, self.holding(order.vm_id), self.host.copies.get(order.vm_id)
        if holding.role is not Role.LEAVING or holding.migration_id != migration_id:
            if order.generation >= holding.generation:
                self.host.ledger[vm_id] = msgspec.structs.replace(holding, called_off=migration_id)
            reply(OK)
            return
        if copy is None:
            self.hold(vm_id, order.generation, Role.GONE, called_off=migration_id)
            reply(OK)
        elif refused := self._refusal(order, back=True):
            reply(refused)
        else:
            self.hold(vm_id, order.generation, Role.OWNED, called_off=migration_id)
            copy.generation, copy.migration_id, copy.whole = order.generation, "", False
            if not copy.runs:
                self._run(copy)
            reply(OK)

    def discard(self, order: Order, migration_id: str, reply: Callable[[str], None]) -> None:
        """When it answers OK, the machine never ran here by that migration and never will."""
        vm_id, holding = order.vm_id, self.holding(order.vm_id)
        if holding.role is Role.OWNED and holding.migration_id == migration_id:
            reply("taken")
        elif holding.role is Role.INCOMING and holding.migration_id == migration_id:
            if self.host.kill(vm_id):
                self.hold(vm_id, max(holding.generation, order.generation), Role.GONE, called_off=migration_id)
                reply(OK)
            else:
                reply(WAIT)
        else:
            self.host.ledger[vm_id] = msgspec.structs.replace(holding, called_off=migration_id)
            reply(OK)

    # -- the ledger ----------------------------------------------------------------------------------------------

    def holding(self, vm_id: str) -> Holding:
        return self.host.ledger.get(vm_id) or Holding(vm_id=vm_id, generation=0, role=Role.GONE)

    def hold(
        self, vm_id: str, generation: int, role: Role, migration_id: str = "", called_off: str | None = None
    ) -> None:
        before = self.holding(vm_id)
        self.host.ledger[vm_id] = Holding(
            vm_id=vm_id,
            generation=max(before.generation, generation),
            role=role,
            migration_id=migration_id,
            called_off=before.called_off if called_off is None else called_off,
        )
