"""N agents in one process, without sockets: production Machines, Mover, Verbs and Heartbeat on FakeDrivers.

clock = HandClock()
cluster = SimCluster(tmp_path, clock, ["node-a", "node-b"])
cluster.on_hello(health.hello); cluster.on_report(health.report); cluster.on_lost(health.lost)   # as with Link
await cluster.start()
reconciler = Reconciler(records, cluster, clock)        # a SimCluster is an `Agents`
a = cluster["node-a"]                                   # a.node_id, a.host (FakeHost), a.machines
a.lose("machine.start")                                 # the line breaks before the call arrives …
a.lose("machine.start", after=True)                     # … or once it is done; `error=` makes it another trouble
await cluster.disconnect("node-a"); await cluster.connect("node-a")     # calls under way go on at the agent
cluster.kill("node-a"); await cluster.boot("node-a")    # kill -9 of the agent: machines run on, are adopted
a.host.fail("start", MachineDied("...")); a.host.crash(vm_id)           # see FakeHost
await clock.advance(10)
assert cluster.world.violations == []
await cluster.stop()
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from novacron.clock import Clock
from novacron.testing.fake_driver import FakeWorld
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_lines import SimLines
from novacron.testing.sim_pool import SimPool
from novacron.wire.agent import MigrationProgress


class SimCluster(SimLines):
    """The agents, and the lines of one server to them; `another_server` has lines of its own.

    own_pools: each node has a default pool of its own. world: instead of one whose streams take `transfer_s`.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        names: Sequence[str],
        *,
        transfer_s: float = 0.0,
        own_pools: bool = False,
        world: FakeWorld | None = None,
    ) -> None:
        self.world = world or FakeWorld(clock, transfer_s=transfer_s)
        self.pool = SimPool(root / "pool")
        self._others: list[SimLines] = []
        agents = {
            name: SimAgent(
                name,
                number,
                root,
                self.world,
                SimPool(root / name / "pool", f"pool-of-{name}") if own_pools else self.pool,
                self._announce,
                self._answers,
            )
            for number, name in enumerate(names, 1)
        }
        super().__init__(agents, clock)

    def __getitem__(self, name: str) -> SimAgent:
        return self.agents[name]

    def another_server(self) -> SimLines:
        """The lines of one more server, not yet open."""
        made = SimLines(self.agents, self.clock)
        self._others.append(made)
        return made

    def _announce(self, frame: MigrationProgress) -> None:
        for lines in (self, *self._others):
            lines.tell_progress(frame)

    # -- lives ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Boot every agent and open its line."""
        for name in self.agents:
            await self.boot(name)

    async def stop(self) -> None:
        """End all agents. Machines are not touched."""
        for name in self.agents:
            await self.kill(name)
        await self.world.close()

    async def boot(self, name: str) -> None:
        """Start the agent of a node, adopt what runs there, open its line."""
        await self.agents[name].boot()
        for lines in (self, *self._others):
            await lines.connect(name)

    async def kill(self, name: str) -> None:
        """kill -9 of the agent: it does nothing more; calls to it fail, `on_lost` is told."""
        agent = self.agents[name]
        agent.kill()
        await agent.settled()
        for lines in (self, *self._others):
            await lines.disconnect(name)

    def _answers(self, tunnel_address: str, vm_id: str) -> bool:
        """Whether the machine runs on the host with that tunnel address."""
        names = self.world.running(vm_id)
        return any(agent.tunnel_address == tunnel_address and agent.name in names for agent in self.agents.values())
