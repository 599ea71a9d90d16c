"""Several servers over one store, in one process: each with records, lines and workers of its own, frozen and killed.

What it is to be frozen: novacron.simulation.frost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from novacron.control.ha.protected import Protected
from novacron.control.ha.rescuer import Rescuer
from novacron.control.ha.sights import Sights
from novacron.control.ha.warden import Warden
from novacron.control.leader import Leader
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.links import Links
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.service import MigrationService
from novacron.control.nodes.health import Health
from novacron.control.nodes.observer import Observer
from novacron.control.nodes.registrar import Registrar
from novacron.control.pools.service import ensure_default
from novacron.control.reign import LedLines, reign
from novacron.control.store.base import Store
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.control.supervise import Work
from novacron.control.vms.reconciler import Reconciler
from novacron.control.volumes.worker import VolumeWorker
from novacron.model.leadership import STANDARD, Candidate
from novacron.model.timing import STANDARD as STANDARD_TIMING
from novacron.simulation.frost import Frost, FrostClock, FrostLines, FrostStore
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import POOL_ID
from novacron.wire.membership import Question, Standing, Terms
from tests.sim.house import House


class SimServer:
    """One server's process. `start`, then `freeze` and `thaw`, `kill` or `stop`."""

    def __init__(self, name: str, house: House, store: Store, seed: int, listed: Callable[[], tuple[str, ...]]) -> None:
        """listed: names of the servers that nodes are told of."""
        rng = random.Random(f"{name} {seed}")
        self.name = name
        self.frost = Frost(rng)
        self.clock = FrostClock(house.clock, self.frost)
        self.store = FrostStore(store, self.frost, house.clock)
        self.records = Records(self.store, self.clock, rng)
        self._house = house
        self._inner = house.cluster.another_server()
        self._lines = FrostLines(self._inner, self.frost, self.clock)
        self.leader = Leader(self.store, self.clock, Candidate(name, name, f"{name}-{seed}"), STANDARD)
        self._listed = listed
        self._leading: asyncio.Task[None] | None = None
        self.failures: list[str] = []

    async def start(self) -> None:
        await self.records.start()
        self.sights, self.protected = Sights(self.records, self.clock), Protected(self.records)
        registrar = Registrar(self.records, self.sights, self._listed)

        async def answer(node_id: str, question: Question) -> Standing:
            standing: Standing = await self.frost.around(registrar.answer(node_id, question))
            return standing

        self._inner.on_question(self._terms, answer)
        for agent in self._house.cluster.agents:
            await self._inner.connect(agent)
        self._leading = asyncio.create_task(self.leader.run(self._reign), name=f"leader {self.name}")

    def _terms(self) -> Terms:
        return Terms(server_id=self.name, servers=self._listed(), timing=STANDARD_TIMING)

    def _reign(self, term: Any) -> Awaitable[None]:
        return reign(term, self.records, self._lines, self.clock, self._workers, self.failures.append)

    def _workers(self, records: Records, lines: LedLines) -> Mapping[str, Work]:
        room, clock = self._house.room, self.clock
        planner = Planner(records, room, lines, clock)
        service = MigrationService(records, room, clock, planner, Links(records, lines, clock, planner))
        observer = Observer(records, lines, clock)
        warden = Warden(records, self.sights, self.protected, self.name, clock, STANDARD_TIMING)
        lines.on_hello(observer.hello)
        lines.on_report(observer.report)
        return {
            "reconciler": Reconciler(records, lines, clock).run,
            "conductor": Conductor(records, lines, clock, service).run,
            "observer": observer.run,
            "health": Health(records, lines, clock, self.sights, warden, STANDARD_TIMING).run,
            "warden": warden.run,
            "rescuer": Rescuer(records, self.protected, room, clock, POOL_ID).run,
            "volumes": VolumeWorker(records, lines, clock).run,
        }

    @property
    def leads(self) -> bool:
        """Whether it may act as the leader now; a frozen one believes it until its time has passed."""
        return self.leader.term is not None and self.leader.term.holds()

    async def cut_off(self, agent: str) -> None:
        """Its line to that agent breaks, and stays so."""
        await self._inner.disconnect(agent)

    async def kill(self) -> None:
        """kill -9: its lines break, nothing more of it reaches anybody."""
        self.frost.kill()
        for agent in self._house.cluster.agents:
            await self._inner.disconnect(agent)
        await self._end()

    async def stop(self) -> None:
        """A clean end."""
        await self._end()
        for agent in self._house.cluster.agents:
            await self._inner.disconnect(agent)

    async def _end(self) -> None:
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
            self._leading = None
            await self.records.stop()


class Servers:
    """A house whose work is done by whichever of several servers leads."""

    def __init__(self, house: House, store: Store, seed: int) -> None:
        self.house = house
        self._store = store
        self._seed = seed
        self._begun = 0
        self.running: dict[str, SimServer] = {}

    async def begin(self, name: str) -> SimServer:
        """Start a server of that name, for the first time or again: another process."""
        self._begun += 1
        made = SimServer(name, self.house, self._store, self._seed * 1000 + self._begun, self.listed)
        self.running[name] = made
        await made.start()
        return made

    def listed(self) -> tuple[str, ...]:
        """Who is told to nodes: all that were not ended, as if each server's roster knew at once."""
        return tuple(sorted(self.running))

    def leaders(self) -> list[SimServer]:
        return [one for one in self.running.values() if one.leads]

    async def a_leader(self, other_than: SimServer | None = None) -> SimServer:
        """The server that leads, once one does."""
        await self.house.until(lambda: any(one is not other_than for one in self.leaders()), "a leader")
        return next(one for one in self.leaders() if one is not other_than)

    async def kill(self, server: SimServer) -> None:
        self.running.pop(server.name, None)
        await server.kill()

    async def stop(self, server: SimServer) -> None:
        self.running.pop(server.name, None)
        await server.stop()


@asynccontextmanager
async def servers(
    root: Path, names: str = "xyz", *, transfer_s: float = 0.2, seed: int = 0, nodes: str = "ab", by_line: bool = False
) -> AsyncIterator[Servers]:
    """That many servers on one store, one of them leading; all ended afterwards.

    by_line: nodes are of an older version, which servers judge by whether their lines speak.
    """
    root.mkdir(exist_ok=True)
    clock = HandClock()
    store = await SqliteStore.open(root / "store.db", durable=False)
    records = Records(store, clock, random.Random(seed))
    await records.start()
    await ensure_default(records, clock, POOL_ID)
    cluster = SimCluster(root, clock, list(nodes), transfer_s=transfer_s)
    for agent in cluster.agents.values():
        agent.takes_part = not by_line
    made = Servers(House(records, cluster, clock, root), store, seed)
    cluster.on_question(None, None)  # the servers answer
    try:
        await cluster.start()
        for name in names:
            await made.begin(name)
        await made.a_leader()
        yield made
    finally:
        for server in tuple(made.running.values()):
            server.frost.thaw()
            await made.kill(server)
        await cluster.stop()
        await records.stop()
        await store.close()
