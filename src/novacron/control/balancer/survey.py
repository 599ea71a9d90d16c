"""Makes the balancer's scene from the records and the loads of nodes, and says what a move would cost."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

import msgspec

from novacron.clock import Clock
from novacron.control.balancer.loads import Loads, settings_of
from novacron.control.balancer.scene import Post, Price, Scene, Seat
from novacron.control.breath import breathing
from novacron.control.migrations.decide import is_at_rest, need_of
from novacron.control.migrations.plan import NodePlan
from novacron.control.migrations.planner import Learnt, Planner
from novacron.control.migrations.windows import opens_at
from novacron.control.promises import occupant_of
from novacron.control.room import Room
from novacron.control.scheduler.fleet import Committed
from novacron.control.scheduler.snapshot import policy_of
from novacron.control.store.kinds import MIGRATIONS, NODES, VMS
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.errors import NovaCronError, Reason
from novacron.model.balancer import BALANCER_LABEL, NEVER, Settings
from novacron.model.migration import Migration, is_final
from novacron.model.node import Node
from novacron.model.placement import PlacementPolicy
from novacron.model.vm import Desired, Vm
from novacron.wire.rest.migrations import MigrationCreate

REMEMBERED = 5000
"""So many of the newest migrations are looked through for what has been moved lately."""
TOGETHER = 500
"""After so many VMs others are let in."""
_NOTHING = Committed()


class Lately(msgspec.Struct, frozen=True, kw_only=True):
    """moved: by VM id, when its last move ended; touched: by node id, the same of the balancer's moves for it.

    busy: nodes that a move begins or ends at now. own: how many of those are the balancer's.
    """

    moved: Mapping[str, datetime.datetime]
    touched: Mapping[str, datetime.datetime]
    busy: frozenset[str]
    own: int


class Surveyor:
    """`scene`, and `prices` for it. Changes nothing, asks no node."""

    def __init__(self, records: Records, room: Room, planner: Planner, loads: Loads, clock: Clock) -> None:
        self._records = records
        self._room = room
        self._planner = planner
        self._loads = loads
        self._clock = clock
        self._seats: dict[str, tuple[int, Seat]] = {}

    async def scene(self) -> Scene:
        """As things are now. Lets others in: there may be many VMs."""
        settings, now = settings_of(self._records), self._clock.wall()
        found = lately(self._records)
        seats, kept = [], {}
        async for stored in breathing(self._records.all(VMS), TOGETHER):
            if stored.record.node_id and stored.record.desired is not Desired.DELETED:
                seat = kept[stored.record.id] = self._seat(stored)
                held = _held(stored.record, found, settings, now)
                seats.append(msgspec.structs.replace(seat[1], held=held) if held else seat[1])
        self._seats = kept
        promised = self._room.promised()
        return Scene(
            settings=settings,
            limits=self._room.limits,
            posts=[self._post(one.record, promised, found, settings, now) for one in self._records.all(NODES)],
            seats=seats,
            draft=self._room.draft,
            under_way=found.own,
        )

    def _seat(self, stored: Stored[Vm]) -> tuple[int, Seat]:
        """As it was made of that revision of its VM."""
        known = self._seats.get(stored.record.id)
        if known is not None and known[0] == stored.modified:
            return known
        vm = stored.record
        (claim,) = occupant_of(vm, None).claims
        need = need_of(vm, streams=not is_at_rest(vm))
        seat = Seat(
            vm_id=vm.id,
            vm_name=vm.name,
            node_id=vm.node_id,
            need=need,
            memory_mib=claim.memory_mib,
            vcpus=claim.vcpus,
            for_load=policy_of(need, self._room.limits) is not PlacementPolicy.PACK,
        )
        return stored.modified, seat

    def _post(
        self,
        node: Node,
        promised: Mapping[str, Committed],
        found: Lately,
        settings: Settings,
        now: datetime.datetime,
    ) -> Post:
        mine = promised.get(node.id, _NOTHING)
        return Post(
            node=node,
            promised_memory_mib=mine.memory_mib,
            promised_vcpus=mine.vcpus,
            load=self._loads.load(node.id),
            rests=_rests(node, found, settings, now),
        )

    def prices(self) -> Prices:
        """For the moment."""
        return Prices(self._records, self._room, self._planner, self._clock.wall())


class Prices:
    """Called with a VM's id and a node's: what the move would cost, by the plan that it would begin with."""

    def __init__(self, records: Records, room: Room, planner: Planner, now: datetime.datetime) -> None:
        self._records = records
        self._room = room
        self._planner = planner
        self._learnt: Learnt = planner.learnt()
        self._now = now

    def __call__(self, vm_id: str, target_id: str) -> Price | tuple[Reason, ...]:
        stored = self._records.get(VMS, vm_id)
        if stored is None:
            return (Reason("vm.gone", "it is gone", vm_id),)
        vm = stored.record
        both = (self._room.candidate(vm.node_id), self._room.candidate(target_id))
        try:
            asked = self._planner.asked(MigrationCreate(vm=vm.id, target_node=target_id), vm)
            opens = opens_at(asked.effective.windows, self._now)
            if opens is not None:
                return (Reason("window.closed", f"its window opens at {opens:%Y-%m-%d %H:%M} UTC", vm.name, "wait"),)
            made = self._planner.plan(vm, asked, "", [one for one in both if one is not None], self._learnt)
        except NovaCronError as refused:
            return refused.reasons or (Reason(refused.code, refused.message, vm.name),)
        node = next((one for one in made.nodes if one.node_id == target_id), None)
        return _price(node) if node is not None else (Reason("node.unknown", "its target is not known", target_id),)


def _price(node: NodePlan) -> Price | tuple[Reason, ...]:
    if node.choice is None:
        return (*node.cannot, *node.unmet)
    predicted = node.choice.way.predicted
    return Price(
        kind=node.choice.way.kind.value,
        total_s=predicted.total_ms.expected / 1e3,
        downtime_s=predicted.downtime_ms.expected / 1e3,
        stream_bytes=round(predicted.bytes_transferred.expected),
        disk_bytes=predicted.disk_bytes,
    )


def lately(records: Records) -> Lately:
    """What moves now, and what has been moved; of a move that failed its VM and nodes rest, too."""
    moved: dict[str, datetime.datetime] = {}
    touched: dict[str, datetime.datetime] = {}
    busy: set[str] = set()
    own = 0
    for stored in records.all(MIGRATIONS)[-REMEMBERED:]:
        one = stored.record
        ours = BALANCER_LABEL in one.labels
        if not is_final(one):
            own += ours
            busy |= {one.source_node, one.target_node} if one.holds and not one.at_rest else set()
            continue
        ended = one.finished_at or one.updated_at
        _newer(moved, one.vm_id, ended)
        for node_id in _nodes(one) if ours else ():
            _newer(touched, node_id, ended)
    return Lately(moved=moved, touched=touched, busy=frozenset(busy), own=own)


def _nodes(migration: Migration) -> tuple[str, str]:
    return (migration.source_node, migration.target_node)


def _newer(times: dict[str, datetime.datetime], key: str, at: datetime.datetime) -> None:
    times[key] = max(at, times.get(key, at))


def _held(vm: Vm, found: Lately, settings: Settings, now: datetime.datetime) -> Reason | None:
    """Why it is not moved now."""
    if vm.labels.get(BALANCER_LABEL) == NEVER:
        told = f"it is labelled {BALANCER_LABEL}={NEVER}"
        return Reason("vm.not_to_be_moved", told, vm.name, f"novacron vm update {vm.name} --label {BALANCER_LABEL}=")
    if is_at_rest(vm):
        return Reason("vm.at_rest", "it does not run", vm.name, f"novacron vm migrate {vm.name}")
    if vm.node_lost:
        return Reason("vm.node_lost", "its node does not answer", vm.name, "wait")
    if vm.migration_id:
        return Reason("vm.migrating", "it is being moved", vm.migration_id, "wait until that has ended")
    if vm.task is not None:
        return Reason("vm.task_under_way", f"its task {vm.task.kind.value} is under way", vm.name, "wait for it")
    ended = found.moved.get(vm.id)
    if ended is not None and (now - ended).total_seconds() < settings.cool_down_s:
        told = f"it was moved at {ended:%Y-%m-%d %H:%M} UTC and cools down for {settings.cool_down_s:g} s"
        return Reason("vm.cooling_down", told, vm.name, "wait, or: novacron balancer set --cool-down")
    return None


def _rests(node: Node, found: Lately, settings: Settings, now: datetime.datetime) -> Reason | None:
    """Why it takes part in no move for load now."""
    if node.id in found.busy:
        return Reason("node.busy", f"{node.name} has a move under way", node.name, "wait until that has ended")
    ended = found.touched.get(node.id)
    if ended is not None and (now - ended).total_seconds() < settings.node_cool_down_s:
        told = f"{node.name} had a move of the balancer's at {ended:%Y-%m-%d %H:%M} UTC and cools down"
        return Reason("node.cooling_down", told, node.name, "wait, or: novacron balancer set --node-cool-down")
    return None
