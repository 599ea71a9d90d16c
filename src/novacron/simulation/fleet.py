"""The simulated cluster: nodes and servers over one store, and what befalls them."""

from __future__ import annotations

import itertools
import random
from collections import Counter

from novacron.errors import Unavailable
from novacron.model.ha import FenceClass
from novacron.model.timing import STANDARD
from novacron.simulation.scenario import Scenario
from novacron.simulation.server import Ground, Server
from novacron.simulation.world import PacedDriver


class Fleet:
    """`start`, then faults, then `close`. A fault that strikes twice is over when both are."""

    def __init__(self, scenario: Scenario, ground: Ground) -> None:
        self._scenario = scenario
        self._ground = ground
        self._cluster = ground.cluster
        self._servers: dict[str, Server] = {}
        self._dark: Counter[str] = Counter()  # nodes without power
        self._apart: Counter[str] = Counter()  # nodes that reach nobody
        self._lives = itertools.count(1)
        for group in scenario.nodes:
            for name in group.names():
                agent = self._cluster[name]
                agent.cpu_count, agent.memory_mib = group.cpus, group.memory_mib
                agent.fence_class = FenceClass[group.fence_class.upper()]
                agent.takes_part = agent.fence_class is not FenceClass.NONE
                agent.driver_type = PacedDriver

    async def start(self) -> None:
        """Everything up, nodes at moments of their own, so that their heartbeats are spread."""
        rng = random.Random(f"{self._scenario.seed}")  # noqa: S311 (no secret)
        apart_s = 2 * STANDARD.heartbeat_s / len(self._cluster.agents)
        for agent in self._cluster.agents.values():
            await agent.boot()
            await self._ground.clock.sleep(rng.uniform(0, apart_s))
        for name in self._scenario.server_names():
            await self.start_server(name)

    async def close(self) -> None:
        """End every process; nothing of them is left."""
        for name in tuple(self._servers):
            await self.crash_server(name)
        await self._cluster.stop()

    def a_server(self) -> Server:
        """One that answers. :raise Unavailable: none does."""
        for server in self._servers.values():
            return server
        raise Unavailable("no server answers")

    async def crash_server(self, name: str) -> None:
        """One that is down already stays so."""
        server = self._servers.pop(name, None)
        if server is not None:
            await server.kill()

    async def start_server(self, name: str) -> None:
        """One that runs already runs on."""
        if name not in self._servers:
            made = Server(name, self._ground, next(self._lives))
            self._servers[name] = made
            await made.start([node for node in self._cluster.agents if self._is_reached(node)])

    async def take_power(self, node: str) -> None:
        """All on it is gone at once."""
        self._dark[node] += 1
        if self._dark[node] == 1:
            agent = self._cluster[node]
            agent.kill()
            agent.host.reboot()
            await self._cluster.kill(node)

    async def give_power(self, node: str) -> None:
        """It boots, with nothing running on it."""
        self._dark[node] -= 1
        if not self._dark[node]:
            await self._cluster[node].boot()
            await self._connect(node)

    async def cut_off(self, node: str) -> None:
        """It reaches no server and no other node."""
        self._apart[node] += 1
        if self._apart[node] == 1:
            for other in self._others(node):
                self._cluster.world.cut(node, other)
            for server in tuple(self._servers.values()):
                await server.lines.disconnect(node)

    async def mend(self, node: str) -> None:
        """It reaches everybody again who is not cut off himself."""
        self._apart[node] -= 1
        if not self._apart[node]:
            for other in self._others(node):
                if not self._apart[other]:
                    self._cluster.world.heal(node, other)
            await self._connect(node)

    def _others(self, node: str) -> list[str]:
        return [other for other in self._cluster.agents if other != node]

    def _is_reached(self, node: str) -> bool:
        return not self._apart[node] and not self._dark[node]

    async def _connect(self, node: str) -> None:
        if self._is_reached(node):
            for server in tuple(self._servers.values()):
                await server.lines.connect(node)
