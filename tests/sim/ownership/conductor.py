"""Conducts migrations by the production steps: order, write what happened, ask what comes next; the hand-over is a CAS.

Source and target stand still while the ownership moves, and what comes after a write of unknown outcome is another
write to the same records (rule R8).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from novacron.agent import warrant
from novacron.model import membership
from novacron.model import migration_steps as machine
from novacron.model.migration import UNDOING, Migration, MigrationState, is_final
from novacron.model.migration_steps import COMMIT, Do, Finish, Side, Step, Undo
from novacron.model.vm import Problem, Vm
from tests.sim.ownership.agent import SOME_TIME, Agent
from tests.sim.ownership.orders import OK, WAIT, Orders
from tests.sim.ownership.store import State

if TYPE_CHECKING:
    from tests.sim.ownership.server import Server

PASSING = warrant.PASSING | {WAIT, "busy", "order.guardian"}
PATIENCE_S = 6.0
"""A migration of which nothing was written for so long is conducted by any server."""
GIVE_UP_S = 20.0
"""A step before the commit that has not succeeded for so long is given up."""

PROBLEM = Problem(code="sim", message="a step failed", at=SOME_TIME)


class Conductor:
    """Part of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.decides_by_reading = False

    def begin(self) -> None:
        self._seen: dict[str, tuple[Migration, float]] = {}
        self._busy: set[str] = set()
        self._unsure: set[str] = set()

    def look(self) -> None:
        for (kind, name), migration in list(self._server.view.items()):
            if kind == "migration" and not is_final(migration):
                self._consider(name, migration)

    def _consider(self, name: str, migration: Migration) -> None:
        now_s = self._server.now_s
        seen, since_s = self._seen.get(name, (None, now_s))
        if seen is not migration:
            seen, since_s = migration, now_s
            self._seen[name] = (migration, now_s)
        mine = migration.labels["conductor"] == self._server.name
        if name in self._busy or not (mine or now_s - since_s > PATIENCE_S):
            return
        vm: Vm = self._server.view["vm", migration.vm_id]
        if self.decides_by_reading and name in self._unsure:
            self._unsure.discard(name)
            if "send" in migration.began and COMMIT not in migration.did:  # not written, as far as can be read
                self._order(name, migration, vm, Undo(next(s for s in machine.STREAMED if s.name == "send")), _nothing)
            return
        match machine.next_action(migration):
            case Do(step) if step.side is Side.CONTROL:
                self._write(name, functools.partial(hand_over, name, None))
            case Do(step) if step.name not in migration.began:
                self._write(name, functools.partial(_forward, name, lambda now: machine.began(now, step, SOME_TIME)))
            case Do(step) as action:
                late = now_s - since_s > GIVE_UP_S and not machine.is_committed(migration)
                self._order(name, migration, vm, action, functools.partial(self._did, name, step, late))
            case Undo(step) if step.side is Side.CONTROL:
                self._write(name, functools.partial(_retake, name, step))
            case Undo(step) as action:
                self._order(name, migration, vm, action, functools.partial(self._undid, name, step))
            case Finish(state):
                self._write(name, functools.partial(_finish, name, state))

    def _write(self, name: str, transaction: Callable[[State], Any]) -> None:
        self._busy.add(name)

        def answered(answer: Any) -> None:
            self._busy.discard(name)
            if answer is None:
                self._unsure.add(name)

        self._server.write(transaction, answered)

    def _order(
        self, name: str, migration: Migration, vm: Vm, action: Do | Undo, answer: Callable[[str | None], None]
    ) -> None:
        step = action.step
        node = migration.source_node if step.side is Side.SOURCE else migration.target_node
        verb = step.name if isinstance(action, Do) else step.undo
        order = self._server.warrant(vm, node)
        self._busy.add(name)

        def answered(value: str | None) -> None:
            self._busy.discard(name)
            answer(value)

        def obey(agent: Agent, reply: Callable[[str], None]) -> None:
            if verb == "send":
                agent.orders.send(order, migration.id, self._server.agents[migration.target_node].orders, reply)
            else:
                VERBS[verb](agent.orders, order, migration.id, reply)

        self._server.order(node, obey, answered)

    def _did(self, name: str, step: Step, late: bool, answer: str | None) -> None:
        if answer == OK:
            self._write(name, functools.partial(did, name, step))
        elif late or (answer is not None and answer not in PASSING):
            self._write(name, functools.partial(_went_wrong, name, False))

    def _undid(self, name: str, step: Step, answer: str | None) -> None:
        if answer == OK:
            self._write(name, functools.partial(_undone, name, step))
        elif answer is not None and answer not in PASSING:
            self._write(name, functools.partial(_went_wrong, name, True))


def _nothing(answer: str | None) -> None:
    """Whatever came of it."""


VERBS: dict[str, Callable[..., None]] = {
    "accept": Orders.accept,
    "take_over": Orders.take_over,
    "verify": Orders.boot_here,
    "release": Orders.release,
    "reclaim": Orders.reclaim,
    "discard": Orders.discard,
}


# -- transactions, as the journal writes them ----------------------------------------------------------------------


def _forward(name: str, write: Callable[[Migration], Migration], state: State) -> bool:
    migration: Migration = state["migration", name]
    if is_final(migration) or migration.state in UNDOING:
        return False
    state["migration", name] = write(migration)
    return True


def did(name: str, step: Step, state: State) -> bool:
    """A step is done; where the commit is next, it is written by the same transaction."""
    migration: Migration = state["migration", name]
    steps = machine.steps_of(migration)
    if step in steps and steps[steps.index(step) + 1 :][:1] == tuple(s for s in steps if s.name == COMMIT):
        return hand_over(name, step, state)
    return _forward(name, lambda now: machine.did(now, step, SOME_TIME), state)


def hand_over(name: str, before: Step | None, state: State) -> bool:
    """The commit: the target owns the VM under the next generation. Not of a migration that a takeover ended."""
    migration: Migration = state["migration", name]
    vm: Vm = state["vm", migration.vm_id]
    if is_final(migration) or migration.state in UNDOING or COMMIT in migration.did:
        return False
    if not membership.takes_machines(state.get(("node", migration.target_node))):
        return _went_wrong(name, False, state)
    story = migration if before is None else machine.did(migration, before, SOME_TIME)
    commit = next(step for step in machine.steps_of(migration) if step.name == COMMIT)
    state["migration", name] = machine.did(machine.began(story, commit, SOME_TIME), commit, SOME_TIME)
    state["vm", vm.id] = msgspec.structs.replace(vm, node_id=migration.target_node, generation=vm.generation + 1)
    return True


def _retake(name: str, step: Step, state: State) -> bool:
    migration: Migration = state["migration", name]
    vm: Vm = state["vm", migration.vm_id]
    if is_final(migration) or step.name in migration.undone:
        return False
    state["migration", name] = machine.undid(migration, step, SOME_TIME)
    state["vm", vm.id] = msgspec.structs.replace(vm, node_id=migration.source_node, generation=vm.generation + 1)
    return True


def _undone(name: str, step: Step, state: State) -> bool:
    migration: Migration = state["migration", name]
    if is_final(migration) or step.name in migration.undone:
        return False
    state["migration", name] = machine.undid(migration, step, SOME_TIME)
    return True


def _went_wrong(name: str, undoing: bool, state: State) -> bool:
    migration: Migration = state["migration", name]
    if is_final(migration) or undoing != (migration.state in UNDOING):
        return False
    story = machine.went_wrong(migration, PROBLEM, SOME_TIME)
    state["migration", name] = story
    if is_final(story):
        _let_go(name, state)
    return True


def _finish(name: str, end: MigrationState, state: State) -> bool:
    migration: Migration = state["migration", name]
    if is_final(migration):
        return False
    state["migration", name] = machine.finished(migration, end, SOME_TIME)
    _let_go(name, state)
    return True


def _let_go(name: str, state: State) -> None:
    vm: Vm = state["vm", state["migration", name].vm_id]
    if vm.migration_id == name:
        state["vm", vm.id] = msgspec.structs.replace(vm, migration_id="")
