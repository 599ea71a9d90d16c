"""One server's lines to simulated agents: calls with deadlines, losses and breaks; each line has its own heartbeat."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from novacron.agent.heartbeat import Heartbeat
from novacron.clock import Clock
from novacron.control.line_listeners import LineListeners, Picture
from novacron.control.link import Answer
from novacron.errors import DeadlineExceeded, NodeUnreachable, from_data
from novacron.model.node import NodeUsage
from novacron.testing.sim_agent import SimAgent
from novacron.wire.agent import NAME_OF, Call, Hello, Reply, Report
from novacron.wire.membership import Question, Standing, Terms

NEVER_MS = 3_600_000
"""An agent counts a call's time by the real clock; here the caller alone does, by the hand-wound one."""


class SimLine:
    """An open line: its heartbeat, who waits for replies, and what the node has said."""

    def __init__(self, hello: Hello) -> None:
        self.beating: asyncio.Task[None]
        self.left: Callable[[], None] | None = None
        self.pending: set[asyncio.Future[Reply]] = set()
        self.picture = Picture(hello)


class SimLines(LineListeners):
    """The lines that one server has. Implements control.reign.Lines, and registers listeners like Link."""

    def __init__(self, agents: Mapping[str, SimAgent], clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.agents = agents
        self._by_id = {agent.node_id: agent for agent in agents.values()}
        self._lines: dict[str, SimLine] = {}  # by node id
        self._telling: set[asyncio.Task[Any]] = set()  # what goes on although nobody waits for it
        self._heard_s: dict[str, float] = {}
        self._usage: dict[str, NodeUsage] = {}
        self._ids = itertools.count(1)

    def waits_for(self, name: str) -> bool:
        """Whether a call to the node is under way."""
        line = self._lines.get(self.agents[name].node_id)
        return line is not None and bool(line.pending)

    async def connect(self, name: str) -> None:
        """Open the line of a living agent: Hello, then heartbeats."""
        agent = self.agents[name]
        if not agent.alive or self.is_connected(agent.node_id):
            return
        heartbeat = Heartbeat(agent.machines, agent, agent.host.world.clock, lambda: tuple(agent.networks.known))
        hello = await agent.hello(heartbeat)
        self._hear(agent.node_id)
        self._lines[agent.node_id] = line = SimLine(hello)

        async def send(report: Report) -> None:
            self._hear(agent.node_id)
            self._usage[agent.node_id] = report.usage
            line.picture.take(report)
            await self.tell_report(agent.node_id, report)

        line.beating = asyncio.create_task(heartbeat.run(send), name=f"heartbeat {name}")
        await self.tell_hello(hello)
        terms = self.terms()
        if terms is not None and agent.takes_part:
            line.left = self._admit(agent, line, terms)

    def _admit(self, agent: SimAgent, line: SimLine, terms: Terms) -> Callable[[], None]:
        """What a node does with the terms it is told; returned is what it does when the line breaks."""

        async def ask(question: Question, deadline_s: float) -> Standing:
            return await self._ask(agent, line, question, deadline_s)

        agent.member.met(terms, ask)
        return functools.partial(agent.member.lost, terms.server_id, ask)

    async def _ask(self, agent: SimAgent, line: SimLine, question: Question, deadline_s: float) -> Standing:
        """See agent.member.Ask. What it asked may be written although its line breaks meanwhile."""
        if self._lines.get(agent.node_id) is not line:
            raise NodeUnreachable(f"the line to {agent.name} broke")
        answering = asyncio.create_task(self.answer(agent.node_id, question))
        self._telling.add(answering)
        answering.add_done_callback(self._telling.discard)
        timer = asyncio.create_task(_sleep(self.clock, deadline_s))
        await asyncio.wait({answering, timer}, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        standing = answering.result() if answering.done() else None
        if standing is None or self._lines.get(agent.node_id) is not line:
            raise DeadlineExceeded(f"no answer within {deadline_s:g} s")
        return standing

    def greet(self) -> None:
        """As Link.greet."""
        for line in self._lines.values():
            telling = asyncio.create_task(self.tell_hello(line.picture.hello()))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def disconnect(self, name: str) -> None:
        """Break the line; the agent lives, and what it is doing goes on."""
        agent = self.agents[name]
        if self._break(agent):
            await self.tell_lost(agent.node_id)

    def _break(self, agent: SimAgent) -> bool:
        line = self._lines.pop(agent.node_id, None)
        if line is None:
            return False
        line.beating.cancel()
        if line.left is not None:
            line.left()
        agent.works.abandon(line)
        for reply in tuple(line.pending):
            if not reply.done():
                reply.set_exception(NodeUnreachable(f"the line to {agent.name} broke"))
        return True

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

    async def call(
        self, node_id: str, args: msgspec.Struct, answer: type[Answer], *, deadline_s: float, term: int = 0
    ) -> Answer:
        agent = self._by_id.get(node_id)
        if agent is None or not self.is_connected(node_id):
            raise NodeUnreachable(f"node {agent.name if agent else node_id} has no line to this server")
        verb = NAME_OF[type(args)]
        agent.raise_loss(verb, after=False)
        call = Call(
            id=next(self._ids),
            verb=verb,
            args=msgspec.Raw(msgspec.json.encode(args)),
            deadline_ms=NEVER_MS,
            term=term,
        )
        reply = await self._reply(agent, call, deadline_s)
        agent.raise_loss(verb, after=True)
        if reply.error is not None:
            raise from_data(reply.error)
        return msgspec.json.decode(reply.result, type=answer)

    async def _reply(self, agent: SimAgent, call: Call, deadline_s: float) -> Reply:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        line = self._lines[agent.node_id]
        line.pending.add(reply)

        async def respond(answer: Reply) -> None:
            if not reply.done():
                reply.set_result(answer)

        await agent.works.take(line, call, respond)
        timer = asyncio.create_task(_sleep(self.clock, deadline_s))
        try:
            await asyncio.wait((reply, timer), return_when=asyncio.FIRST_COMPLETED)
            if not reply.done():
                agent.works.cancel(line, call.id)
                raise DeadlineExceeded(f"{call.verb} was not answered within {deadline_s:g} s")
            return reply.result()
        except asyncio.CancelledError:
            agent.works.cancel(line, call.id)
            raise
        finally:
            timer.cancel()
            line.pending.discard(reply)
            if reply.done() and not reply.cancelled():
                reply.exception()  # the caller may have gone: nobody else will look


async def _sleep(clock: Clock, seconds: float) -> None:
    await clock.sleep(seconds)
