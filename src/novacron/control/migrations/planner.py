"""Makes the plan of a move from the records, and measures the machine before it: what `plan` decides from.

A measurement is kept for a while, so that a migration begun from a plan decides from the same one.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.link import Agents
from novacron.control.migrations.decide import STREAMED_FROM, need_of
from novacron.control.migrations.disks import DiskAt
from novacron.control.migrations.goals import effective
from novacron.control.migrations.history import Probes, completed
from novacron.control.migrations.plan import Asked, Known, Plan, plan
from novacron.control.named import named
from novacron.control.room import Room
from novacron.control.scheduler.placement import Candidate
from novacron.control.store.kinds import LINKS, MIGRATIONS, NODES, POLICIES, POOLS, SNAPSHOTS, VOLUMES
from novacron.control.store.records import Records
from novacron.errors import InvalidInput, NovaCronError
from novacron.model.migration import Migration, MigrationKind, Strategy, Wishes
from novacron.model.pool import Pool
from novacron.model.prediction import Measurement
from novacron.model.vm import Vm, running_spec, status_of
from novacron.wire.moving import Measure
from novacron.wire.rest.migrations import Goals, MigrationCreate

KEPT_S = 120.0
LATEST = datetime.timedelta(days=366)
"""So far away may the time be that a migration is to begin at."""
REMEMBERED = 500
"""So many of the newest migrations are learnt from."""
DEADLINE_S = 15.0
BINDING = ("max_downtime_ms", "finish_within_s")
"""Goals that are worth a second's measuring before a migration begins, when somebody has said them."""
NOT_ASKED = "it was not measured: nobody asked for that"


class _Kept(msgspec.Struct, frozen=True):
    measured: Measurement
    generation: int
    at_s: float


class Learnt(msgspec.Struct, frozen=True, kw_only=True):
    """What moves so far, and measured links, tell about the next move. past: as `history.completed` answers."""

    past: Sequence[Migration]
    probes: Probes


class Planner:
    """`measure`, then `plan`. Measurements are held in memory only."""

    def __init__(self, records: Records, room: Room, agents: Agents, clock: Clock) -> None:
        self._records = records
        self._room = room
        self._agents = agents
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    def asked(self, body: MigrationCreate, vm: Vm) -> Asked:
        """The request with its policies. :raise InvalidInput: no such node or policy, or fields that do not agree."""
        if body.strategy is not None and body.kind not in (None, MigrationKind.LIVE):
            raise InvalidInput.field("strategy", f"does not go with kind {body.kind}", "leave one of them out")
        if body.never_postcopy and body.strategy in (Strategy.POSTCOPY, Strategy.HYBRID):
            raise InvalidInput.field("never_postcopy", f"contradicts strategy {body.strategy}", "leave one of them out")
        if body.starts_at is not None and body.starts_at > self._clock.wall() + LATEST:
            raise InvalidInput.field("starts_at", "is more than a year away", f"give a time within {LATEST.days} days")
        target = named(self._records, NODES, body.target_node, "target_node").record.id if body.target_node else ""
        policy = named(self._records, POLICIES, body.policy, "policy").record if body.policy else None
        every, pools = (stored.record for stored in self._records.all(POLICIES)), self._pools(body, vm)
        return Asked(
            effective=effective(wishes_of(body), policy, vm.labels, every),
            target_id=target or (vm.node_id if pools else ""),
            kind=body.kind,
            strategy=body.strategy,
            pools=pools,
        )

    def _pools(self, body: MigrationCreate, vm: Vm) -> dict[str, Pool]:
        """By volume id, where disks are to be. :raise InvalidInput: no such pool, or no such disk."""
        mine = [disk.volume_id for disk in running_spec(vm).disks]
        every = named(self._records, POOLS, body.pool, "pool").record if body.pool else None
        found = dict.fromkeys(mine, every) if every else {}
        for ref, pool in body.disk_pools.items():
            field = f"disk_pools.{ref}"
            volume_id = named(self._records, VOLUMES, ref, field).record.id
            if volume_id not in mine:
                raise InvalidInput.field(field, f"is no disk of {vm.name}", f"novacron vm show {vm.name} lists them")
            found[volume_id] = named(self._records, POOLS, pool, field).record
        return {volume_id: pool for volume_id, pool in found.items() if pool is not None}

    def _disks(self, vm: Vm) -> tuple[DiskAt, ...]:
        """Those that are recorded; one that is not stays where it is."""
        found = []
        for disk in running_spec(vm).disks:
            volume = self._records.get(VOLUMES, disk.volume_id)
            pool = self._records.get(POOLS, volume.record.pool_id) if volume else None
            if volume is not None and pool is not None:
                found.append(DiskAt(disk=disk, volume=volume.record, pool=pool.record))
        return tuple(found)

    async def measure(self, vm: Vm, asked: Asked, *, wanted: bool | None) -> str:
        """Measure it if that is wanted (None: if a goal binds) and was not done lately; why it was not, else empty."""
        if status_of(vm) not in STREAMED_FROM or asked.kind is MigrationKind.COLD:
            return ""
        if self._fresh(vm) is not None:
            return ""
        if wanted is None:
            wanted = any(asked.effective.is_said(goal) for goal in BINDING)
        if not wanted:
            return NOT_ASKED
        verb = Measure(vm_id=vm.id, generation=vm.generation)
        try:
            found = await self._agents.call(vm.node_id, verb, Measurement, deadline_s=DEADLINE_S)
        except NovaCronError as error:
            return f"it was not measured: {error.message}"
        now_s = self._clock.monotonic_s()
        self._kept = {key: one for key, one in self._kept.items() if now_s - one.at_s < KEPT_S}
        self._kept[vm.id] = _Kept(found, vm.generation, now_s)
        return ""

    def plan(
        self, vm: Vm, asked: Asked, note: str, nodes: list[Candidate] | None = None, learnt: Learnt | None = None
    ) -> Plan:
        """The plan, from the records as they are now; `nodes` in place of those they have. Raises as `plan.plan`.

        learnt: for one of many plans, so that it is had once for all.
        """
        learnt = learnt or self.learnt()
        known = Known(
            nodes=self._room.candidates() if nodes is None else nodes,
            limits=self._room.limits,
            disks=self._disks(vm),
            company=self._room.in_company(need_of(vm, streams=False), vm.id).company,
            snapshots=len(self._records.of_vm(SNAPSHOTS, vm.id)),
            measured=self._fresh(vm),
            note=note,
            past=learnt.past,
            probes=learnt.probes,
        )
        return plan(vm, asked, known)

    def learnt(self) -> Learnt:
        """From the records as they are now."""
        newest = self._records.all(MIGRATIONS)[-REMEMBERED:]
        figures = [stored.record for stored in self._records.all(LINKS)]
        return Learnt(
            past=completed(stored.record for stored in newest),
            probes=Probes(figures=figures, now=self._clock.wall()),
        )

    def _fresh(self, vm: Vm) -> Measurement | None:
        kept = self._kept.get(vm.id)
        if kept is None or kept.generation != vm.generation or self._clock.monotonic_s() - kept.at_s >= KEPT_S:
            return None
        return kept.measured


def wishes_of(body: Goals) -> Wishes:
    """The goals that a request says."""
    return Wishes(**{field: getattr(body, field) for field in Wishes.__struct_fields__})
