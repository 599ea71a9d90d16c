"""Linearizability of VM and node records, through the API of three servers on three etcd members, under faults.

What is promised is written in docs/cluster.md; a history that broke it is printed by the assertion.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.linear.crowd import Actor, Crowd, at_work, judge
from tests.linear.history import Recorder
from tests.linear.register import ABSENT
from tests.linear.ways import NodeWay, VmWay, Way
from tests.system.spine import needs_guest
from tests.system.three_servers import AGENTS, END_S, NAMES, Trio, three_servers

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.alone, needs_etcd, *needs_guest]

VMS = ("lin-1", "lin-2", "lin-3")
NODES = AGENTS[:1]
CLIENTS = 4
PATIENCE_S = 60.0
LONG_FAULTS = int(os.environ.get("NOVACRON_LINEAR_FAULTS", "25"))

Fault = Callable[[Trio, Crowd], Awaitable[None]]


@contextlib.asynccontextmanager
async def crowd_of(trio: Trio) -> AsyncIterator[Crowd]:
    """Clients of VMs, and one of a node; each has connections of its own to every server."""
    recorder = Recorder()
    async with contextlib.AsyncExitStack() as stack:

        def ways(kind: type[VmWay | NodeWay]) -> dict[str, Way]:
            made = {name: kind(trio.address(name), trio.token) for name in NAMES}
            for one in made.values():
                stack.push_async_callback(one.close)
            return dict(made)

        actors = [Actor(f"v{number}", VMS, ways(VmWay), recorder) for number in range(CLIENTS)]
        actors += [Actor(f"n{number}", NODES, ways(NodeWay), recorder) for number in range(2)]
        yield Crowd(actors, recorder)


async def audit(trio: Trio, crowd: Crowd) -> None:
    """In the end every server is asked for everything, so that nothing that was acknowledged can be missing."""
    for keys, actor in ((VMS, crowd.actors[0]), (NODES, crowd.actors[-1])):
        for key in keys:
            for name in NAMES:
                assert await actor.read(key, name, newest=True) is not None, trio.said(name)[-2000:]


async def judged(trio: Trio, faults: list[Fault]) -> None:
    async with crowd_of(trio) as crowd:
        async with at_work(crowd):
            for fault in faults:
                await fault(trio, crowd)
                await crowd.goes_on()
        await audit(trio, crowd)
    print(judge(crowd.recorder.history, lambda key: "" if key in NODES else ABSENT))  # noqa: T201


# -- faults: each is over when it returns ---------------------------------------------------------------------


async def leader_killed(trio: Trio, crowd: Crowd) -> None:
    leader = (await trio.a_leader()).name
    trio.kill(leader)
    await crowd.goes_on()
    await trio.a_leader(leader)
    trio.start_server(leader)
    await trio.ready(leader)


async def leader_stands_still(trio: Trio, crowd: Crowd) -> None:
    leader = (await trio.a_leader()).name
    trio.signal(leader, signal.SIGSTOP)
    try:
        await trio.a_leader(leader)
        await crowd.goes_on()
    finally:
        trio.signal(leader, signal.SIGCONT)


async def follower_ended(trio: Trio, crowd: Crowd) -> None:
    leader = (await trio.a_leader()).name
    name = next(one for one in NAMES if one != leader)
    trio.signal(name, signal.SIGTERM)
    await asyncio.to_thread(trio.processes.pop(name).wait, END_S)
    await crowd.goes_on()
    trio.start_server(name)
    await trio.ready(name)


async def etcd_leader_stands_still(trio: Trio, crowd: Crowd) -> None:
    place = trio.etcd.leader()
    trio.etcd.signal(place, signal.SIGSTOP)
    await crowd.goes_on()
    trio.etcd.signal(place, signal.SIGCONT)
    await trio.etcd.up(place)


async def etcd_leader_killed(trio: Trio, crowd: Crowd) -> None:
    place = trio.etcd.leader()
    trio.etcd.kill(place)
    await crowd.goes_on()
    trio.etcd.start(place)
    await trio.etcd.up(place)


async def etcd_without_majority(trio: Trio, crowd: Crowd) -> None:
    """Until the leader has given up; then they come back."""
    leader = (await trio.a_leader()).name
    said = len(trio.said(leader))
    for place in (0, 1):
        trio.etcd.kill(place)
    async with asyncio.timeout(PATIENCE_S):
        while "this server leads no more" not in trio.said(leader)[said:]:
            await asyncio.sleep(0.05)
    for place in (0, 1):
        trio.etcd.start(place)
    for place in (0, 1):
        await trio.etcd.up(place)


async def both_leaders_killed(trio: Trio, crowd: Crowd) -> None:
    place = trio.etcd.leader()
    trio.etcd.kill(place)
    await leader_killed(trio, crowd)
    trio.etcd.start(place)
    await trio.etcd.up(place)


FAULTS: list[Fault] = [
    leader_killed,
    leader_stands_still,
    follower_ended,
    etcd_leader_stands_still,
    etcd_leader_killed,
    etcd_without_majority,
    both_leaders_killed,
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def test_records_are_linearizable_while_servers_and_members_fail() -> None:
    async with three_servers() as trio:
        await judged(trio, [leader_killed, leader_stands_still, etcd_leader_stands_still, etcd_leader_killed])


@pytest.mark.chaos
async def test_records_are_linearizable_through_many_faults() -> None:
    rng = random.Random(5)
    async with three_servers() as trio:
        await judged(trio, rng.choices(FAULTS, k=LONG_FAULTS))
