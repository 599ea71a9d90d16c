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

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec

from novacron.clock import Clock
from novacron.control.line_listeners import LineListeners
from novacron.control.link import Answer
from novacron.errors import DeadlineExceeded, NodeUnreachable, from_data
from novacron.model.node import NodeUsage
from novacron.testing.fake_driver import FakeWorld
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_pool import SimPool
from novacron.wire.agent import NAME_OF, Call, Reply, Report
from novacron.wire.membership import Question, Standing


class SimCluster(LineListeners):
    """The agents and the lines to them. Implements control.link.Agents, and registers listeners like Link.

    own_pools: each node has a default pool of its own.
    """

    def __init__(
        self, root: Path, clock: Clock, names: Sequence[str], *, transfer_s: float = 0.0, own_pools: bool = False
    ) -> None:
        super().__init__()
        self.clock = clock
        self.world = FakeWorld(clock, transfer_s=transfer_s)
        self.pool = SimPool(root / "pool")
        self.agents = {
            name: SimAgent(
                name,
                number,
                root,
                self.world,
                SimPool(root / name / "pool", f"pool-of-{name}") if own_pools else self.pool,
                self.tell_progress,
                self._answers,
            )
            for number, name in enumerate(names, 1)
        }
        self._by_id = {agent.node_id: agent for agent in self.agents.values()}
        self._lines: dict[str, asyncio.Task[None]] = {}  # node id -> its heartbeat
        self._heard_s: dict[str, float] = {}
        self._usage: dict[str, NodeUsage] = {}
        self._ids = itertools.count(1)

    def __getitem__(self, name: str) -> SimAgent:
        return self.agents[name]

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
        await self.connect(name)

    async def kill(self, name: str) -> None:
        """kill -9 of the agent: it does nothing more; calls to it fail, `on_lost` is told."""
        agent = self.agents[name]
        agent.kill()
        await agent.settled()
        if self._break(agent):
            await self.tell_lost(agent.node_id)

    async def connect(self, name: str) -> None:
        """Open the line of a living agent: Hello, then heartbeats."""
        agent = self.agents[name]
        if not agent.alive or self.is_connected(agent.node_id):
            return
        hello = await agent.hello()
        self._hear(agent.node_id)

        async def send(report: Report) -> None:
            self._hear(agent.node_id)
            self._usage[agent.node_id] = report.usage
            await self.tell_report(agent.node_id, report)

        self._lines[agent.node_id] = asyncio.create_task(agent.heartbeat.run(send), name=f"heartbeat {name}")
        await self.tell_hello(hello)
        if self.terms is not None and agent.takes_part:
            agent.member.met(self.terms, functools.partial(self._ask, agent))

    async def _ask(self, agent: SimAgent, question: Question, deadline_s: float) -> Standing:
        """See agent.member.Ask. What it asked may be written although its line breaks meanwhile."""
        if not self.is_connected(agent.node_id):
            raise NodeUnreachable(f"the line to {agent.name} broke")
        held = self.clock.held() if isinstance(self.clock, HandClock) else contextlib.nullcontext()
        with held:  # the store answers in real time: no node is to be silent because a disk was slow
            standing = await self.answer(agent.node_id, question)
        if standing is None or not self.is_connected(agent.node_id):
            raise DeadlineExceeded(f"no answer within {deadline_s:g} s")
        return standing

    async def disconnect(self, name: str) -> None:
        """Break the line; the agent lives, and what it is doing goes on."""
        agent = self.agents[name]
        if self._break(agent):
            await self.tell_lost(agent.node_id)

    def _break(self, agent: SimAgent) -> bool:
        line = self._lines.pop(agent.node_id, None)
        if line is not None:
            line.cancel()
        for reply in tuple(agent.pending):
            if not reply.done():
                reply.set_exception(NodeUnreachable(f"the line to {agent.name} broke"))
        return line is not None

    def _answers(self, tunnel_address: str, vm_id: str) -> bool:
        """Whether the machine runs on the host with that tunnel address."""
        names = self.world.running(vm_id)
        return any(agent.tunnel_address == tunnel_address and agent.name in names for agent in self.agents.values())

    def _hear(self, node_id: str) -> None:
        self._heard_s[node_id] = self.clock.monotonic_s()

    def heard_ago_s(self, node_id: str) -> float | None:
        """As Link.heard_ago_s."""
        heard_s = self._heard_s.get(node_id)
        return None if heard_s is None else self.clock.monotonic_s() - heard_s

    def usage(self, node_id: str) -> NodeUsage | None:
        """As Link.usage."""
        return self._usage.get(node_id)

    # -- Agents --------------------------------------------------------------------------------------------

    def is_connected(self, node_id: str) -> bool:
        return node_id in self._lines

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float) -> Answer:
        agent = self._by_id.get(node_id)
        if agent is None or not self.is_connected(node_id):
            raise NodeUnreachable(f"node {agent.name if agent else node_id} has no line")
        verb = NAME_OF[type(args)]
        agent.raise_loss(verb, after=False)
        call = Call(
            id=next(self._ids),
            verb=verb,
            args=msgspec.Raw(msgspec.json.encode(args)),
            deadline_ms=int(deadline_s * 1e3),
        )
        reply = await self._reply(agent, call, deadline_s)
        agent.raise_loss(verb, after=True)
        if reply.error is not None:
            raise from_data(reply.error)
        return msgspec.json.decode(reply.result, type=answer)

    async def _reply(self, agent: SimAgent, call: Call, deadline_s: float) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        work = agent.work(call)
        agent.pending.add(reply)

        def ended(done: asyncio.Task[Reply]) -> None:
            if not reply.done() and not done.cancelled():
                reply.set_result(done.result())

        work.add_done_callback(ended)
        timer = asyncio.create_task(_sleep(self.clock, deadline_s))
        try:
            await asyncio.wait((reply, timer), return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                work.cancel()
                raise DeadlineExceeded(f"{call.verb} was not answered within {deadline_s:g} s")
            return reply.result()
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            timer.cancel()
            agent.pending.discard(reply)
            if reply.done() and not reply.cancelled():
                reply.exception()  # the caller may have gone: nobody else will look


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep(seconds)
