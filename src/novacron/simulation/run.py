"""A scenario played from its first to its last second: the cluster set up, the script run, everything taken down."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from novacron.clock import Clock
from novacron.control.store.kinds import IMAGES, MEMBERS, NODES, VMS
from novacron.control.store.records import Records
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import DeadlineExceeded
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.membership import MemberState
from novacron.simulation.chronicle import Chronicle
from novacron.simulation.fleet import Fleet
from novacron.simulation.idle import loop_on
from novacron.simulation.reading import IMAGE
from novacron.simulation.scenario import Scenario
from novacron.simulation.script import Script, changed_until
from novacron.simulation.server import Costs, Ground
from novacron.simulation.summary import Measured, Report, summarised
from novacron.simulation.users import Users
from novacron.simulation.world import PacedWorld
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster

SET_UP_WITHIN_S = 600.0


def simulate(scenario: Scenario, root: Path, real: Clock) -> Report:
    """Play it. root: an empty directory of its own, for the store and what nodes keep; real: for what it took.

    :raise DeadlineExceeded: nodes or VMs were not up in time. :raise NovaCronError: the cluster could not be set up.
    """
    clock = HandClock()
    with asyncio.Runner(loop_factory=loop_on(clock)) as runner:
        return runner.run(_Play(scenario, root, clock, real).play())


class _Play:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, root: Path, clock: HandClock, real: Clock) -> None:
        self._scenario = scenario
        self._root = root
        self._clock = clock
        self._real = real
        self._costs = Costs()
        self._chronicle = Chronicle(clock)
        self._world = PacedWorld(clock, scenario.link_mib_per_s * (1 << 20), self._chronicle.watch)

    async def play(self) -> Report:
        """See simulate."""
        async with self._opened() as (fleet, records):
            users = Users(fleet, self._world, records, self._clock, self._chronicle)
            await self._set_up(fleet, users, records)
            self._chronicle.begin()
            began_s, began_cpu_s = self._real.monotonic_s(), _cpu_s()
            await Script(self._scenario, fleet, users, records, self._clock, self._chronicle).run()
            measured = Measured(
                nodes=len(self._scenario.node_names()),
                servers=self._scenario.servers,
                names=self._chronicle.vms,
                ends_s=self._clock.monotonic_s(),
                wall_s=self._real.monotonic_s() - began_s,
                cpu_s=_cpu_s() - began_cpu_s,
                violations=tuple(self._world.violations),
            )
            return Report(
                scenario=self._scenario.name,
                seed=self._scenario.seed,
                timeline=tuple(self._chronicle.entries),
                summary=summarised(self._chronicle, self._costs, measured),
            )

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Fleet, Records]]:
        """The cluster, not yet started, and the records as somebody sees them who only looks."""
        (self._root / "pool").mkdir()
        store = await SqliteStore.open(self._root / "store.db", durable=False)
        records = Records(store, self._clock, random.Random(f"{self._scenario.seed}"))  # noqa: S311 (no secret)
        ground = Ground(
            root=self._root,
            store=store,
            clock=self._clock,
            cluster=SimCluster(self._root, self._clock, self._scenario.node_names(), world=self._world),
            alone=self._scenario.servers == 1,
            seed=self._scenario.seed,
            leads=lambda name: self._chronicle.tell("server", name, "leads"),
            costs=self._costs,
        )
        fleet = Fleet(self._scenario, ground)
        try:
            await records.start()
            stop = self._chronicle.follow(records)
            yield fleet, records
            stop()
        finally:
            await fleet.close()
            await records.stop()
            await store.close()

    async def _set_up(self, fleet: Fleet, users: Users, records: Records) -> None:
        """Servers, nodes with their labels, and the VMs that are there from the start."""
        await records.create(IMAGES, self._image(records))
        await fleet.start()
        parts = sum(group.count for group in self._scenario.nodes if group.fence_class != "none")

        def nodes_are_up() -> bool:
            joined = sum(one.record.state is MemberState.UP for one in records.all(MEMBERS))
            return joined == parts and len(records.all(NODES)) == len(self._scenario.node_names())

        await self._in_time(changed_until(records, nodes_are_up), "nodes")
        for nodes in self._scenario.nodes:
            for name in nodes.names():
                await users.label(nodes, name)
        for group in self._scenario.vms:
            for _ in range(group.count):
                await users.create(group)
        await self._in_time(
            changed_until(records, lambda: all(one.record.task is None for one in records.all(VMS))), "VMs"
        )

    async def _in_time(self, until: Awaitable[None], what: str) -> None:
        """:raise DeadlineExceeded"""
        waiting = asyncio.ensure_future(until)
        late = asyncio.ensure_future(self._clock.sleep(SET_UP_WITHIN_S))
        try:
            await asyncio.wait({waiting, late}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise DeadlineExceeded(f"the scenario's {what} were not up within {SET_UP_WITHIN_S:g} virtual seconds")
            await waiting
        finally:
            for task in (waiting, late):
                task.cancel()
            await asyncio.gather(waiting, late, return_exceptions=True)

    def _image(self, records: Records) -> Image:
        now = self._clock.wall()
        return Image(
            id=records.new_id(),
            name=IMAGE,
            state=ImageState.READY,
            created_at=now,
            updated_at=now,
            files=(ImageFile(role=FileRole.FIRMWARE, digest="0" * 64, size_bytes=65536),),
        )


def _cpu_s() -> float:
    """That this process has used so far."""
    used = os.times()
    return used.user + used.system
