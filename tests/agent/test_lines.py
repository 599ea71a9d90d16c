"""An agent with lines to two servers: both hear it, either may ask, and the newer leader's word goes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.agent.dial import dialer
from novacron.agent.heartbeat import Heartbeat
from novacron.agent.line import Line
from novacron.agent.works import Works
from novacron.clock import SystemClock
from novacron.control.link import Link
from novacron.errors import NotLeading
from novacron.model.machine import MachineReport, MachineSpec, MachineStatus
from novacron.model.migration import Progress
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_cluster import SimCluster
from novacron.wire import agent as wire
from tests.agent.waiting import until
from tests.control.serving import SECRET, on_loopback, serving

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-0000000000aa"
START = wire.Start(spec=MachineSpec(vm_id=VM, generation=1, vcpus=1, memory_mib=64))
STOP = wire.Stop(vm_id=VM, generation=1)


class Place:
    """Two servers and an agent; `gate` holds back what it is asked."""

    def __init__(self, agent: SimAgent, links: list[Link]) -> None:
        self.agent = agent
        self.one, self.two = links
        self.lines: list[Line] = []
        self.performed: list[str] = []
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def perform(self, call: wire.Call) -> wire.Reply:
        self.performed.append(call.verb)
        try:
            await self.gate.wait()
            return await self.agent.verbs.perform(call)
        except asyncio.CancelledError:
            self.cancelled.append(call.verb)
            raise

    async def ask(self, link: Link, verb: wire.Start | wire.Stop, term: int) -> MachineReport:
        return await link.call(self.agent.node_id, verb, MachineReport, deadline_s=20, term=term)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    clock = SystemClock()
    cluster = SimCluster(tmp_path, HandClock(), ["n"])
    made = Place(cluster["n"], [Link(clock, SECRET, "9.9") for _ in range(2)])
    await made.agent.boot()
    works = Works(made.perform)
    async with contextlib.AsyncExitStack() as stack:
        for link in (made.one, made.two):
            address = await stack.enter_async_context(serving(link, on_loopback()))
            heartbeat = Heartbeat(made.agent.machines, made.agent, clock)
            hello = functools.partial(made.agent.hello, heartbeat)
            dial, rng, member = dialer(address, SECRET), random.Random(1), made.agent.member
            made.lines.append(Line(dial, works, heartbeat, hello, clock, rng, member))
        running = [asyncio.create_task(line.run()) for line in made.lines]
        await until(lambda: all(link.is_connected(made.agent.node_id) for link in (made.one, made.two)))
        yield made
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    await cluster.stop()


async def test_both_hear_it_and_either_may_ask(place: Place) -> None:
    heard: dict[str, list[MachineStatus]] = {"one": [], "two": []}
    told: list[str] = []
    for name, link in (("one", place.one), ("two", place.two)):
        link.on_report(lambda _, report, name=name: heard[name].extend(m.status for m in report.machines))
        link.on_progress("m", lambda _, name=name: told.append(name))
    assert (await place.ask(place.one, START, 1)).status is MachineStatus.RUNNING
    await until(lambda: all(MachineStatus.RUNNING in statuses for statuses in heard.values()))
    for line in place.lines:
        line.announce(wire.MigrationProgress(migration_id="m", progress=Progress(at=SystemClock().wall())))
    await until(lambda: sorted(told) == ["one", "two"])
    stop = wire.Stop(vm_id=VM, generation=1, deadline_s=1)
    assert (await place.two.call(place.agent.node_id, stop, MachineReport, deadline_s=20)).status


async def test_who_begins_to_listen_is_told_what_was_said_before(place: Place) -> None:
    await place.ask(place.one, START, 1)
    reasons: list[str] = []
    stop = place.two.on_report(lambda _, report: reasons.extend(m.reason for m in report.machines))
    place.agent.host.crash(VM, "gone")
    await until(lambda: "gone" in reasons)
    stop()
    hellos: list[wire.Hello] = []
    place.two.on_hello(hellos.append)
    place.two.greet()
    await until(lambda: bool(hellos))
    (machine,) = hellos[0].machines
    assert (machine.vm_id, machine.reason) == (VM, "gone")


async def test_a_new_leader_joins_what_the_old_one_asked_for(place: Place) -> None:
    place.gate.clear()
    old = asyncio.create_task(place.ask(place.one, START, 1))
    await until(lambda: place.performed == ["machine.start"])
    new = asyncio.create_task(place.ask(place.two, START, 2))
    await until(lambda: len(place.two._lines[place.agent.node_id].pending) == 1)
    await until(lambda: place.agent is not None and not old.done())
    place.gate.set()
    assert (await new).status is MachineStatus.RUNNING
    assert place.performed == ["machine.start"]
    old.cancel()
    await asyncio.gather(old, return_exceptions=True)


async def test_the_old_leader_neither_holds_nor_ends_it(place: Place) -> None:
    place.gate.clear()
    old = asyncio.create_task(place.ask(place.one, START, 1))
    await until(lambda: place.performed == ["machine.start"])
    new = asyncio.create_task(place.ask(place.two, START, 2))
    await until(lambda: len(place.two._lines[place.agent.node_id].pending) == 1)
    with pytest.raises(NotLeading):
        await place.ask(place.one, STOP, 1)
    assert place.cancelled == []
    new.cancel()
    await until(lambda: place.cancelled == ["machine.start"])
    old.cancel()
    await asyncio.gather(old, new, return_exceptions=True)


async def test_a_late_order_of_an_old_leader_is_refused(place: Place) -> None:
    await place.ask(place.two, START, 2)
    with pytest.raises(NotLeading, match="revision 1 is followed"):
        await place.ask(place.one, STOP, 1)
    assert place.agent.machines.reports()[0].status is MachineStatus.RUNNING
    assert (await place.ask(place.one, START, 0)).status is MachineStatus.RUNNING, "a person's request has no term"
