"""Wall clocks that jump, of an agent and of the server that leads: ownership does not look at them. Row 20.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.system.cluster_cast import Cast, a_cast, nobody_noticed, writing
from tests.system.cluster_site import NODES, SERVERS, ClusterSite, a_cluster, needs_cluster, until
from tests.system.observer import observed
from tests.system.wall_clocks import HOUR_S, TEN_YEARS_S, WallClocks

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    *needs_cluster,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]

JUMPS_S = (HOUR_S, -HOUR_S, TEN_YEARS_S, -TEN_YEARS_S, 0)


class Timed(NamedTuple):
    """A cluster whose servers, and the agent of node-1, have wall clocks of their own."""

    site: ClusterSite
    clocks: WallClocks


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def timed() -> AsyncIterator[Timed]:
    async with a_cluster() as site:
        clocks = WallClocks(site.path)
        for child in (*site.servers.values(), site.hosts[NODES[0]].agent):
            clocks.start_again(child)
        for name in SERVERS:
            await site.ready(name)
        await site.all_up()
        yield Timed(site, clocks)


@pytest.fixture
async def cast(timed: Timed) -> AsyncIterator[Cast]:
    async with a_cast(timed.site) as made:
        yield made


async def test_wall_clocks_that_jump_are_nobodys_time(timed: Timed, cast: Cast) -> None:
    """An hour and ten years, on and back, in the midst of a term: it goes on, as all machines do."""
    site, clocks = timed
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside):
        leader = await site.a_leader()
        for ahead_s in JUMPS_S:
            clocks.set(site.hosts[cast.node].agent, ahead_s)
            clocks.set(site.servers[leader], ahead_s)
            await seen.lasts(site.heartbeat_s * 8)
        nobody_noticed(cast, seen)
        assert await site.a_leader() == leader


@pytest.mark.chaos
async def test_a_leader_ten_years_ahead_waits_as_long_as_any_other(timed: Timed, cast: Cast) -> None:
    """Its clock jumps while it waits for a silent node's time to pass, and back."""
    site, clocks = timed
    async with observed(site, cast.struck, cast.beside) as seen:
        leader = site.servers[await site.a_leader()]
        site.link(cast.node).cut()
        await site.node_is(cast.node, "suspect", "fencing")
        clocks.set(leader, TEN_YEARS_S)
        await site.node_is(cast.node, "fencing", "fenced")
        clocks.set(leader, -TEN_YEARS_S)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        clocks.set(leader, 0)


@pytest.mark.chaos
async def test_an_agent_whose_clock_is_off_says_that_it_is_the_clock(timed: Timed, cast: Cast) -> None:
    """It starts ten years ahead, so that no server's certificate counts for it. Set right, it joins by itself."""
    site, clocks = timed
    agent = site.hosts[cast.node].agent
    async with observed(site, cast.struck, cast.beside) as seen:
        epoch = await site.epoch(cast.node)
        await asyncio.to_thread(clocks.start_again, agent, TEN_YEARS_S)
        await until(lambda: says_clock(timed, cast), "the agent does not name the clock", agent.tail)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        clocks.set(agent, 0)
        await site.joins_after(cast.node, epoch)


async def says_clock(timed: Timed, cast: Cast) -> bool:
    text = timed.site.hosts[cast.node].agent.log.read_text()
    return "by this node's clock" in text and "set the clocks of node and server" in text
