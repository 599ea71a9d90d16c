"""What the plan of a bulk migration is made from: for each VM where it could go and how long that takes, room aside."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterable, Mapping

import msgspec

from novacron.control.bulk_migrations.admission import at_once
from novacron.control.bulk_migrations.timetable import Timetable, UnderWay, Way, Wish, timetable
from novacron.control.migrations import decide, history
from novacron.control.migrations.choice import Choice
from novacron.control.migrations.plan import NodePlan, Plan
from novacron.control.migrations.planner import Learnt, Planner
from novacron.control.migrations.windows import opens_at
from novacron.control.room import Room
from novacron.control.scheduler.placement import Candidate, Need
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.errors import Busy, NovaCronError, Reason
from novacron.model.bulk_migration import BulkLimits, BulkMigration, Entry, EntryState, Forecast, Purpose
from novacron.model.migration import Goals, MigrationKind
from novacron.model.vm import Vm, running_spec
from novacron.wire.rest.migrations import MigrationCreate

MISSING = Reason("vm.gone", "there is no such VM any more")


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """The timetable, and each entry as it says: waiting with its target, or staying; passing: who is only busy now."""

    timetable: Timetable
    forecast: Forecast
    passing: frozenset[str] = frozenset()


class Surveyor:
    """`outlook` looks at the records as they are now; it changes nothing and asks no node."""

    def __init__(self, records: Records, room: Room, planner: Planner) -> None:
        self._records = records
        self._room = room
        self._planner = planner

    async def outlook(self, bulk: BulkMigration) -> Outlook:
        """When each waiting entry moves and where to, and what that takes. Lets others in: it may be long."""
        nodes = [_open(one, bulk) for one in self._room.candidates()]
        blank = [msgspec.structs.replace(one, committed_memory_mib=0, committed_vcpus=0) for one in nodes]
        learnt = self._planner.learnt()
        waiting = [entry for entry in bulk.entries if entry.state is EntryState.WAITING]
        part = self._share(bulk, waiting, nodes)
        passing: set[str] = set()
        wishes = []
        for entry in waiting:
            wish, is_busy = self._wish(bulk, entry, blank, learnt, part)
            wishes.append(wish)
            await asyncio.sleep(0)
            passing |= {entry.vm_id} if is_busy else set()
        going_on = self._under_way(bulk)
        made = await asyncio.to_thread(timetable, wishes, nodes, self._room.limits, bulk.limits, going_on)
        forecast = Forecast(
            total_s=made.total_s,
            waves=max((move.wave for move in made.moves), default=0),
            share_bytes_per_s=part,
            busiest=made.busiest,
            held_back_s=dict(made.held_back_s),
        )
        return Outlook(timetable=made, forecast=forecast, passing=frozenset(passing))

    def body(self, bulk: BulkMigration, vm: Vm, target_id: str, part: int) -> MigrationCreate:
        """What moves this VM: the goals of the bulk migration, and no more bandwidth than its part (0: no bound)."""
        goals = msgspec.structs.asdict(bulk.goals)
        plain = MigrationCreate(
            vm=vm.id,
            target_node=target_id or None,
            policy=bulk.policy_id or None,
            now=bulk.now or None,
            **goals,
        )
        if not part:
            return plain
        cap = self.cap(plain, vm)
        return plain.model_copy(update={"bandwidth_bytes_per_s": min(cap, part) if cap else part})

    def cap(self, body: MigrationCreate, vm: Vm) -> int:
        """How fast the goals of that move let it go, whatever the budget; 0: as the link."""
        return self._planner.asked(body, vm).effective.goals.bandwidth_bytes_per_s

    def opens_at(self, bulk: BulkMigration, vm: Vm, now: datetime.datetime) -> datetime.datetime | None:
        """When a move of this VM may begin by its policies' windows; None: now."""
        if bulk.now:
            return None
        body = self.body(bulk, vm, bulk.target_node, 0)
        return opens_at(self._planner.asked(body, vm).effective.windows, now)

    def _share(self, bulk: BulkMigration, waiting: list[Entry], nodes: list[Candidate]) -> int:
        together = self._together(bulk.limits, waiting, [one.node.id for one in nodes])
        return bulk.limits.bandwidth_bytes_per_s // together

    def _together(self, limits: BulkLimits, entries: Iterable[Entry], node_ids: list[str]) -> int:
        return at_once(
            limits,
            (
                (
                    entry.source_node,
                    [entry.target_node]
                    if entry.target_node
                    else [node_id for node_id in node_ids if node_id != entry.source_node],
                )
                for entry in entries
                if not self._at_rest(entry.vm_id)
            ),
        )

    def _at_rest(self, vm_id: str) -> bool:
        stored = self._records.get(VMS, vm_id)
        return stored is None or decide.is_at_rest(stored.record)

    def _wish(
        self, bulk: BulkMigration, entry: Entry, blank: list[Candidate], learnt: Learnt, part: int
    ) -> tuple[Wish, bool]:
        """The VM's wish, and whether it is only busy now."""
        stored = self._records.get(VMS, entry.vm_id)
        nothing = Wish(vm_id=entry.vm_id, vm_name=entry.vm_name, source_id=entry.source_node, need=_NO_NEED)
        if stored is None:
            return msgspec.structs.replace(nothing, cannot=(MISSING,)), False
        vm = stored.record
        body = self.body(bulk, vm, bulk.target_node, part)
        try:
            made = self._planner.plan(vm, self._planner.asked(body, vm), "", blank, learnt)
        except Busy as busy:
            return msgspec.structs.replace(nothing, cannot=_reasons(busy)), True
        except NovaCronError as refused:
            return msgspec.structs.replace(nothing, cannot=_reasons(refused)), False
        return self._planned(entry, vm, made, learnt), False

    def _planned(self, entry: Entry, vm: Vm, made: Plan, learnt: Learnt) -> Wish:
        asked = made.asked.target_id
        looked_at = [one for one in made.nodes if not one.is_here and asked in ("", one.node_id)]
        ways = {one.node_id: _way(one, one.choice, made, learnt) for one in looked_at if one.choice is not None}
        return Wish(
            vm_id=vm.id,
            vm_name=vm.name,
            source_id=vm.node_id,
            need=self.need(vm),
            priority=entry.priority,
            at_rest=made.at_rest,
            ways=ways,
            cannot=tuple(reason for one in looked_at for reason in (*one.cannot, *one.unmet)) or _NOBODY,
            prefer=entry.target_node,
            avoid=entry.avoid,
        )

    def need(self, vm: Vm) -> Need:
        """What the VM asks of a node at whichever moment it comes: what is promised to it now, or to its next start.

        Where its disks can be, and which go along, the plan of each move says.
        """
        spec = running_spec(vm)
        need = Need(
            memory_mib=max(vm.spec.memory_mib, spec.memory_mib),
            vcpus=max(vm.spec.vcpus, spec.vcpus),
            machine=vm.spec.machine,
            not_nodes=(vm.node_id,),
            labels=vm.labels,
            wishes=vm.placement,
        )
        return self._room.in_company(need, vm.id)

    def _under_way(self, bulk: BulkMigration) -> list[UnderWay]:
        found = []
        for entry in bulk.entries:
            stored = self._records.get(VMS, entry.vm_id)
            if entry.state is not EntryState.MOVING or stored is None:
                continue
            vm = stored.record
            wish = Wish(
                vm_id=vm.id,
                vm_name=vm.name,
                source_id=entry.source_node,
                need=self.need(vm),
                at_rest=decide.is_at_rest(vm),
            )
            found.append(UnderWay(wish=wish, target_id=entry.target_node, left_s=entry.takes_s))
        return found


_NO_NEED = Need(memory_mib=0, vcpus=0)
_NOBODY = (Reason("node.none", "there is no other node", remedy="add a node"),)


def _open(candidate: Candidate, bulk: BulkMigration) -> Candidate:
    """The node as it will be: one that is brought back takes VMs again."""
    if bulk.purpose is not Purpose.BRING_BACK or candidate.node.id != bulk.selection.node_id:
        return candidate
    return msgspec.structs.replace(candidate, node=msgspec.structs.replace(candidate.node, cordoned=False))


def _reasons(error: NovaCronError) -> tuple[Reason, ...]:
    return error.reasons or (Reason(error.code, error.message),)


def _way(node: NodePlan, choice: Choice, plan: Plan, learnt: Learnt) -> Way:
    """How long the move takes: what the prediction has beside its bytes, and the bytes at the rate it gets."""
    predicted, goals = choice.way.predicted, plan.asked.effective.goals
    rate = history.link(learnt.past, plan.source_id, node.node_id, goals, learnt.probes).rate.expected
    carried = history.link(learnt.past, plan.source_id, node.node_id, Goals(), learnt.probes).rate.expected
    sent = predicted.bytes_transferred.expected if choice.way.kind is not MigrationKind.COLD else 0.0
    fixed_s = max(predicted.total_ms.expected / 1e3 - sent / rate, 0.0)
    return Way(fixed_s=fixed_s, stream_bytes=sent, rate=rate, link_rate=max(carried, rate))


def planned(bulk: BulkMigration, found: Outlook) -> Mapping[str, Entry]:
    """By VM id: the waiting entries as the timetable has them. One that finds no place keeps the reasons, and no
    target.
    """
    moves = {move.vm_id: move for move in found.timetable.moves}
    changed = {}
    for entry in bulk.entries:
        move = moves.get(entry.vm_id)
        if move is not None:
            changed[entry.vm_id] = msgspec.structs.replace(
                entry,
                target_node=move.target_id,
                wave=move.wave,
                starts_at_s=round(move.starts_at_s, 3),
                takes_s=round(move.ends_at_s - move.starts_at_s, 3),
                reasons=(),
            )
        elif entry.vm_id in found.timetable.unplaced:
            reasons = found.timetable.unplaced[entry.vm_id][:20]
            changed[entry.vm_id] = msgspec.structs.replace(
                entry, target_node="", wave=0, starts_at_s=0.0, takes_s=0.0, reasons=reasons
            )
    return changed
