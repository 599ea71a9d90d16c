"""Faults of one node in a whole cluster: what they take is started elsewhere, what they do not touch runs on.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer. Rows are
those of the fault matrix; the ones that take long or repeat another's way carry `chaos`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from tests.system.cluster_cast import Cast, a_cast, frozen, parent_of
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster
from tests.system.filters import filtered
from tests.system.observer import observed, untouched

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_cluster]

LINK_ON_S, LINK_OFF_S = 1.5, 0.5


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def site() -> AsyncIterator[ClusterSite]:
    async with a_cluster() as made:
        yield made


@pytest.fixture
async def cast(site: ClusterSite) -> AsyncIterator[Cast]:
    async with a_cast(site) as made:
        yield made


async def test_a_node_without_power(cast: Cast) -> None:
    """Row 5."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        await asyncio.to_thread(site.hosts[cast.node].power_off)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        assert "no heartbeat" in (await site.node_is(cast.node, "fenced")).state_reason


async def test_an_agent_that_stands_still_for_longer_than_its_time(cast: Cast) -> None:
    """Row 2: nobody but the kernel ends its machine, before it runs elsewhere."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        with frozen(site.hosts[cast.node].agent.process.pid):
            after = await site.runs_elsewhere(cast.struck)
            await seen.boots(cast.struck.id, str(after.node))
        assert {} in [one.pids for one in seen.copies[cast.struck.id]]


async def test_agent_guardian_and_machine_stand_still(cast: Cast) -> None:
    """Rows 2 to 4: there is no process left on the node that could do anything, and the kernel ends the machine."""
    site, machine = cast.site, cast.site.host_pid(cast.struck)
    async with observed(site, cast.struck, cast.beside) as seen:
        with frozen(site.hosts[cast.node].agent.process.pid, parent_of(machine), machine):
            after = await site.runs_elsewhere(cast.struck)
            await seen.boots(cast.struck.id, str(after.node))


async def test_a_node_that_is_cut_off(cast: Cast) -> None:
    """Row 7, node from all."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        site.link(cast.node).cut()
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))


async def test_a_node_that_reaches_one_server_only(cast: Cast) -> None:
    """Row 7, asymmetric: that one writes its heartbeats, so nothing happens at all."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        async with filtered(site.hosts[cast.node], "output", "dport", list(site.ports.values())[1:]):
            await seen.lasts(site.heartbeat_s * 20)
            assert (await site.node_is(cast.node, "up")).state == "up"
        assert not untouched(seen.copies[cast.struck.id], seen.runs[cast.struck.id])


async def test_a_node_that_ends_its_machines_and_says_so_is_not_waited_for(cast: Cast) -> None:
    """Row 5, with the agent's own word (R14): its VM is started elsewhere without anybody's waiting for a deadline."""
    site, agent = cast.site, cast.site.hosts[cast.node].agent
    async with observed(site, cast.struck, cast.beside) as seen:
        agent.process.send_signal(signal.SIGPWR)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        assert (await site.node_is(cast.node, "fenced")).state_reason == "its agent ended all its machines and left"
        assert await asyncio.to_thread(agent.process.wait, 10.0) == 0
        assert not [one for one in seen.readings if one.state in ("suspect", "fencing")], "nobody waited for silence"


@pytest.mark.chaos
async def test_a_node_that_is_heard_and_hears_nothing(cast: Cast) -> None:
    """Row 7, one way: what it says arrives, no answer does. Its time ends, and it is started elsewhere in the end."""
    site = cast.site
    silence = filtered(site.hosts[cast.node], "input", "sport", list(site.ports.values()))
    async with observed(site, cast.struck, cast.beside) as seen, silence:
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))


@pytest.mark.chaos
async def test_a_link_that_comes_and_goes(cast: Cast) -> None:
    """Row 8: nobody is fenced for it, and no machine ends."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        for _ in range(6):
            site.link(cast.node).cut()
            await asyncio.sleep(LINK_OFF_S)  # this is the fault
            site.link(cast.node).mend()
            await asyncio.sleep(LINK_ON_S)
        assert not untouched(seen.copies[cast.struck.id], seen.runs[cast.struck.id])
        assert not [one for one in seen.readings if one.state in ("fencing", "fenced")]


@pytest.mark.chaos
async def test_an_agent_killed_again_and_again(cast: Cast) -> None:
    """Row 1: at a fifth of the times its machine may end with it; there is one, and in the end it runs."""
    site = cast.site
    agent = site.hosts[cast.node].agent
    async with observed(site, cast.struck, cast.beside):
        for _ in range(3):
            epoch = await site.epoch(cast.node)
            agent.kill()
            agent.start_again()
            await site.joins_after(cast.node, epoch)


@pytest.mark.chaos
@pytest.mark.parametrize("whom", ["machine", "guardian"])
async def test_a_machine_that_is_killed_is_started_again_where_it_is(cast: Cast, whom: str) -> None:
    """Rows 3 and 4."""
    site, machine = cast.site, cast.site.host_pid(cast.struck)
    async with observed(site, cast.struck, cast.beside) as seen:
        os.kill(machine if whom == "machine" else parent_of(machine), signal.SIGKILL)
        await seen.boots(cast.struck.id, cast.node)
