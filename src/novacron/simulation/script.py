"""The scenario's events, each done at its virtual time and, where it passes, undone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, assert_never

from novacron.clock import Clock
from novacron.control.store.kinds import BULK_MIGRATIONS
from novacron.control.store.records import Records
from novacron.model.bulk_migration import is_bulk_final
from novacron.simulation.chronicle import Chronicle
from novacron.simulation.fleet import Fleet
from novacron.simulation.scenario import (
    AnyEvent,
    Arrivals,
    Create,
    Drain,
    Migrate,
    Partition,
    PowerLoss,
    Scenario,
    ServerCrash,
    Start,
    Stop,
    VmGroup,
)
from novacron.simulation.users import Users

Act = Coroutine[Any, Any, None]


class Script:
    """`run` ends when the scenario's time has passed; what is still going on is then called off."""

    def __init__(
        self, scenario: Scenario, fleet: Fleet, users: Users, records: Records, clock: Clock, chronicle: Chronicle
    ) -> None:
        self._scenario = scenario
        self._fleet = fleet
        self._users = users
        self._records = records
        self._clock = clock
        self._chronicle = chronicle
        self._groups: dict[str, VmGroup] = {group.name: group for group in scenario.vms}
        self._acts: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """:raise Exception: what an act failed of that is no refusal."""
        for number, event in enumerate(self._scenario.events):
            self._begin(self._at(number, event))
        ending = asyncio.create_task(self._sleep(self._scenario.duration_s), name="the end")
        try:
            while not ending.done():
                done, _ = await asyncio.wait({ending, *self._acts}, return_when=asyncio.FIRST_COMPLETED)
                self._acts -= done
                for act in done:
                    act.result()
            for act in self._acts:
                if act.done():
                    act.result()
        finally:
            left = {ending, *self._acts}
            for act in left:
                act.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _begin(self, act: Act) -> None:
        self._acts.add(asyncio.create_task(act, name="act"))

    async def _sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)

    async def _at(self, number: int, event: AnyEvent) -> None:
        await self._clock.sleep(event.at_s)
        await self._do(number, event)

    async def _do(self, number: int, event: AnyEvent) -> None:
        match event:
            case PowerLoss():
                await self._power(event)
            case Partition():
                await self._partition(event)
            case ServerCrash():
                await self._crash(event)
            case Drain():
                await self._drain(event)
            case Create():
                for _ in range(event.count):
                    await self._users.create(self._groups[event.group])
            case Arrivals():
                await self._arrivals(event, random.Random(f"{self._scenario.seed} {number}"))  # noqa: S311 (no secret)
            case Start() | Stop() | Migrate():
                await self._ask(event)
            case _:
                assert_never(event)

    async def _power(self, event: PowerLoss) -> None:
        nodes = self._scenario.nodes_of(event.nodes)
        for node in nodes:
            self._chronicle.tell("fault", node, "loses its power")
            await self._fleet.take_power(node)
        if event.for_s is not None:
            await self._clock.sleep(event.for_s)
            for node in nodes:
                self._chronicle.tell("fault", node, "has power again")
                await self._fleet.give_power(node)

    async def _partition(self, event: Partition) -> None:
        nodes = self._scenario.nodes_of(event.nodes)
        for node in nodes:
            self._chronicle.tell("fault", node, "is cut off from all others")
            await self._fleet.cut_off(node)
        await self._clock.sleep(event.for_s)
        for node in nodes:
            self._chronicle.tell("fault", node, "reaches the others again")
            await self._fleet.mend(node)

    async def _crash(self, event: ServerCrash) -> None:
        self._chronicle.tell("fault", event.server, "is killed")
        await self._fleet.crash_server(event.server)
        if event.for_s is not None:
            await self._clock.sleep(event.for_s)
            self._chronicle.tell("fault", event.server, "starts again")
            await self._fleet.start_server(event.server)

    async def _drain(self, event: Drain) -> None:
        for node in self._scenario.nodes_of(event.nodes):
            self._chronicle.tell("request", node, "is to be emptied")
            await self._ended(await self._users.drain(node, event.max_concurrent))
            if event.maintenance_s is None:
                continue
            await self._clock.sleep(event.maintenance_s)
            self._chronicle.tell("request", node, "is to get its VMs back")
            await self._ended(await self._users.bring_back(node, event.max_concurrent))

    async def _arrivals(self, event: Arrivals, rng: random.Random) -> None:
        """Each waits for the one before it, as requests of one client do."""
        end_s = self._chronicle.now_s + event.for_s
        while True:
            await self._clock.sleep(rng.expovariate(event.per_minute / 60))
            if self._chronicle.now_s >= end_s:
                return
            stays_s = rng.expovariate(1 / event.lifetime_s) if event.lifetime_s is not None else None
            name = await self._users.create(self._groups[event.group])
            if name and stays_s is not None:
                self._begin(self._leave(name, stays_s))

    async def _leave(self, name: str, after_s: float) -> None:
        await self._clock.sleep(after_s)
        await self._users.delete(name)

    async def _ask(self, event: Start | Stop | Migrate) -> None:
        for name in self._users.vms_of(event.vms, self._groups):
            match event:
                case Start():
                    await self._users.start(name)
                case Stop():
                    await self._users.stop(name)
                case Migrate():
                    await self._users.migrate(name, event.to)

    async def _ended(self, bulk_id: str) -> None:
        """Until that bulk migration has ended; at once when it was refused."""

        def is_over() -> bool:
            stored = self._records.get(BULK_MIGRATIONS, bulk_id)
            return not bulk_id or (stored is not None and is_bulk_final(stored.record))

        await changed_until(self._records, is_over)


async def changed_until(records: Records, so: Callable[[], bool]) -> None:
    """Wait for the change of a record by which something is so; at once when it is."""
    looked = asyncio.Event()
    stop = records.subscribe(lambda _seen: looked.set())
    try:
        while not so():
            looked.clear()
            await looked.wait()
    finally:
        stop()
