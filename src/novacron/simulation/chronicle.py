"""What users would see: changes of records turned into lines of a timeline, and counted."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.store.kinds import BULK_MIGRATIONS, MIGRATIONS, NODES, VMS
from novacron.control.store.records import Records, Seen
from novacron.errors import NovaCronError
from novacron.model.bulk_migration import BulkMigration, EntryState, is_bulk_final
from novacron.model.machine import MachineStatus
from novacron.model.migration import Migration, is_final
from novacron.model.node import Node, NodeState
from novacron.model.vm import Desired, Vm
from novacron.simulation.presence import Presence


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline, so many virtual seconds after the start. kind: fault, request, server, node, vm,
    migration, drain.
    """

    at_s: float
    kind: str
    subject: str
    text: str


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A request that was not done. reasons: what kept each node from it, where that is why."""

    at_s: float
    what: str
    code: str
    message: str
    reasons: tuple[str, ...]


class Chronicle:
    """`begin` when the scenario's time begins; what was before is not told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_s: float | None = None
        self._nodes: dict[str, str] = {}  # names by id
        self.vms: dict[str, str] = {}  # likewise; also of those that are gone
        self.presence = Presence()
        self.entries: list[Entry] = []
        self.migrations: list[Migration] = []
        self.refusals: list[Refusal] = []
        self.done: Counter[str] = Counter()  # requests
        self.takeovers = self.fences = 0
        self.records_changed = 0

    @property
    def now_s(self) -> float:
        """Since the scenario's time began."""
        return self._clock.monotonic_s() - (self._began_s or 0.0)

    def begin(self) -> None:
        """Time counts from now."""
        self._began_s = self._clock.monotonic_s()

    def tell(self, kind: str, subject: str, text: str) -> None:
        """A line of the timeline."""
        if self._began_s is not None:
            self.entries.append(Entry(at_s=round(self.now_s, 3), kind=kind, subject=subject, text=text))

    def refused(self, what: str, subject: str, error: NovaCronError) -> None:
        """A request was not done."""
        reasons = tuple(one.message for one in error.reasons)
        at_s = round(self.now_s, 3) if self._began_s is not None else 0.0
        found = Refusal(at_s=at_s, what=f"{what} {subject}", code=error.code, message=error.message, reasons=reasons)
        self.refusals.append(found)
        short = error.message.partition(":")[0] if reasons else error.message  # the summary has them
        self.tell("request", subject, f"{what} refused: {short}")

    def watch(self, host: str, vm_id: str, status: MachineStatus) -> None:
        """See world.Watcher."""
        ended = self.presence.machine(host, vm_id, status, self._clock.monotonic_s())
        if ended is not None and not ended.pause and ended.lasts_s(0.0) > 0:
            self.tell("vm", self._name(vm_id), f"runs again on {host}, {ended.lasts_s(0.0):.1f} s after it had ended")

    def follow(self, records: Records) -> Callable[[], None]:
        """Listen to these records; returns how to stop."""
        return records.subscribe(self._notice)

    def _name(self, record_id: str) -> str:
        return self.vms.get(record_id) or self._nodes.get(record_id, record_id)

    def _notice(self, seen: Sequence[Seen]) -> None:
        told: dict[object, Callable[[Seen], None]] = {
            VMS: self._vm,
            NODES: self._node,
            MIGRATIONS: self._migration,
            BULK_MIGRATIONS: self._bulk,
        }
        for one in seen:
            self.records_changed += self._began_s is not None
            teller = told.get(one.kind)
            if teller is not None:
                teller(one)

    def _node(self, seen: Seen) -> None:
        before, now = seen.before, seen.now
        if not isinstance(now, Node):
            return
        self._nodes[now.id] = now.name
        if isinstance(before, Node) and before.state is not now.state:
            self.fences += now.state is NodeState.FENCED
            self.tell("node", now.name, f"{before.state.value} → {now.state.value}: {now.state_reason}")
        elif isinstance(before, Node) and before.cordoned is not now.cordoned:
            self.tell("node", now.name, "cordoned" if now.cordoned else "takes VMs again")
        elif isinstance(before, Node) and before.state_reason != now.state_reason:
            self.tell("node", now.name, f"{now.state.value}: {now.state_reason}")

    def _vm(self, seen: Seen) -> None:
        before, now = seen.before, seen.now
        tell = functools.partial(self.tell, "vm")
        if isinstance(now, Vm):
            self.vms[now.id] = now.name
            self.presence.wanted(now.id, now.desired is Desired.RUNNING, self._clock.monotonic_s())
        if isinstance(before, Vm) and not isinstance(now, Vm):
            self.presence.wanted(before.id, False, self._clock.monotonic_s())
            tell(before.name, "deleted")
        elif isinstance(now, Vm) and not isinstance(before, Vm):
            tell(now.name, f"created on {self._name(now.node_id)}")
        elif isinstance(now, Vm) and isinstance(before, Vm):
            if (
                before.node_id not in ("", now.node_id) and not now.migration_id
            ):  # a migration still holds what it moves
                self.takeovers += 1
                tell(now.name, f"is taken over: {self._name(before.node_id)} → {self._name(now.node_id)}")
            if now.problem is not None and (before.problem is None or before.problem.code != now.problem.code):
                tell(now.name, f"problem {now.problem.code}: {now.problem.message}")

    def _migration(self, seen: Seen) -> None:
        before, now = seen.before, seen.now
        if not isinstance(now, Migration) or not is_final(now) or (isinstance(before, Migration) and is_final(before)):
            return
        self.migrations.append(now)
        took = f" in {now.figures.total_ms / 1e3:.1f} s" if now.figures.total_ms else ""
        why = f": {now.problem.message}" if now.problem else ""
        way = f"{self._name(now.source_node)} → {self._name(now.target_node)}"
        self.tell("migration", now.vm_name, f"{way} {now.state.value}{took}{why}")

    def _bulk(self, seen: Seen) -> None:
        before, now = seen.before, seen.now
        if not isinstance(now, BulkMigration) or (isinstance(before, BulkMigration) and before.state is now.state):
            return
        if isinstance(before, BulkMigration) and is_bulk_final(now):
            states = Counter(entry.state for entry in now.entries)
            left = len(now.entries) - states[EntryState.DONE] - states[EntryState.SKIPPED]
            text = f"{now.purpose.value} {now.state.value}: {states[EntryState.DONE]} moved, {left} not"
            self.tell("drain", now.labels.get("node", now.id), text)
