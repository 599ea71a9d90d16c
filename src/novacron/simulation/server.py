"""One server of the simulated cluster: production records, election, workers and services; started and killed."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from novacron.config import ServerConfig
from novacron.control.bulk_migrations.outlook import Surveyor
from novacron.control.bulk_migrations.service import BulkMigrationService
from novacron.control.fencing.device import opener
from novacron.control.fencing.seal import Seal
from novacron.control.ha.admission import Admission
from novacron.control.household import Household, household
from novacron.control.leader import Leader, Term
from novacron.control.link import Answer
from novacron.control.migrations.links import Links
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.service import MigrationService
from novacron.control.nodes.service import NodeService
from novacron.control.pools.service import ensure_default
from novacron.control.reign import LedLines, reign
from novacron.control.room import Room
from novacron.control.roster import Roster
from novacron.control.staff import Watch, guardians, watching, workers
from novacron.control.store.base import Delete, Expect, Put, Store
from novacron.control.store.records import Records
from novacron.control.supervise import Work, keep_going
from novacron.control.vms.service import VmService
from novacron.model.leadership import ALONE, STANDARD, Candidate
from novacron.simulation.frost import Frost, FrostClock, FrostLines, FrostStore
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import POOL_ID


@dataclasses.dataclass
class Costs:
    """What the servers did, counted: transactions written, and calls to nodes."""

    commits: int = 0
    calls: int = 0
    worker_failures: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """What all servers stand on. alone: there is only one. leads: told of a server that begins to lead."""

    root: Path
    store: Store
    clock: HandClock
    cluster: SimCluster
    alone: bool
    seed: int
    leads: Callable[[str], None]
    costs: Costs


class _CountingStore(FrostStore):
    """Counts the transactions that are asked for."""

    costs: Costs

    async def commit(self, ops: Sequence[Put | Delete], expect: Sequence[Expect] = ()) -> int:
        self.costs.commits += 1
        return await super().commit(ops, expect)


class _CountingLines(FrostLines):
    """Counts the calls that go out."""

    costs: Costs

    async def call(
        self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float, term: int = 0
    ) -> Answer:
        self.costs.calls += 1
        return await super().call(node_id, args, answer, deadline_s=deadline_s, term=term)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Services:
    """What users ask of a server."""

    vms: VmService
    nodes: NodeService
    migrations: MigrationService
    bulk: BulkMigrationService


class Server:
    """One process. `start` once, `kill` once; a server that comes back is another of the same name."""

    def __init__(self, name: str, ground: Ground, life: int) -> None:
        rng = random.Random(f"{ground.seed} {name} {life}")  # noqa: S311 (ids, no secrets)
        self.name = name
        self._ground = ground
        self._frost = Frost(rng)
        self._clock = FrostClock(ground.clock, self._frost)
        self._store = _CountingStore(ground.store, self._frost, ground.clock)
        self._store.costs = ground.costs
        self.records = Records(self._store, self._clock, rng)
        self._rng = rng
        self._timing = ALONE if ground.alone else STANDARD
        self._candidate = Candidate(name, name, f"{name}-{life}")
        self._config = ServerConfig(name=name, data_dir=ground.root / name, pool_dir=ground.root / "pool")
        self.lines = ground.cluster.another_server()
        self._frosted = _CountingLines(self.lines, self._frost, self._clock)
        self._frosted.costs = ground.costs
        self._running: list[asyncio.Task[None]] = []
        self.services: Services

    async def start(self, nodes: Iterable[str]) -> None:
        """nodes: names of those that reach it."""
        await self.records.start()
        await ensure_default(self.records, self._clock, POOL_ID)
        home = household(self._config, self.records, self.lines, self._clock, POOL_ID)
        roster = Roster(self._store, self._clock, self._candidate, "", self._timing)
        watch = watching(home, self._frosted, roster)
        self.services = self._services(home.room, watch)
        leader = Leader(self._store, self._clock, self._candidate, self._timing)
        self._begin("roster", roster.run)
        self._begin("loads", home.loads.run)
        self._begin("leader", lambda: leader.run(lambda term: self._reign(term, home, watch)))
        for node in nodes:
            await self.lines.connect(node)

    async def kill(self) -> None:
        """kill -9: its lines break, and nothing more of it reaches anybody."""
        self._frost.kill()
        for node in self._ground.cluster.agents:
            await self.lines.disconnect(node)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.records.stop()

    def _begin(self, name: str, work: Work) -> None:
        going = keep_going(name, work, self._clock, self._note_failure)
        self._running.append(asyncio.create_task(going, name=f"{name} {self.name}"))

    def _note_failure(self, name: str) -> None:
        del name
        self._ground.costs.worker_failures += 1

    def _services(self, room: Room, watch: Watch) -> Services:
        records, lines, clock = self.records, self._frosted, self._clock
        planner = Planner(records, room, lines, clock)
        admission = Admission(records, room, watch.protected, POOL_ID, self._config.ha_admission)
        return Services(
            vms=VmService(records, lines, room, clock, POOL_ID, admission, self._rng.randbytes),
            nodes=NodeService(records, room, clock),
            migrations=MigrationService(records, room, clock, planner, Links(records, lines, clock, planner)),
            bulk=BulkMigrationService(records, room, clock, Surveyor(records, room, planner)),
        )

    def _reign(self, term: Term, home: Household, watch: Watch) -> Awaitable[None]:
        self._ground.leads(self.name)

        def makes(led: Records, lines: LedLines) -> Mapping[str, Work]:
            leading = dataclasses.replace(home, records=led)
            return {**workers(leading, lines), **guardians(leading, lines, watch, opener(Seal(self.name)))}

        return reign(term, self.records, self._frosted, self._clock, makes, self._note_failure)
