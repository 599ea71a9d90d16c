"""A host that stands still as a whole, all its processes and its agent with them, and goes on: row 6, no watchdog.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.system.cluster_cast import Cast, a_cast, nobody_noticed
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster
from tests.system.freezer import kind, standing
from tests.system.observer import observed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    *needs_cluster,
    pytest.mark.skipif(kind() is None, reason="this machine has no cgroup freezer"),
]

SHORT_S = 1.0  # 5 s / 5
WINDOW_TICKS = 2
"""What a copy may tick that goes on before its overdue end reaches it: 18 ticks are a second. See decision 0026."""


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


@pytest.mark.chaos
async def test_a_host_that_stands_still_for_a_moment_is_left_alone(cast: Cast) -> None:
    """It has time left when it goes on: same processes, no boot, no fence."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        for _ in range(3):
            with standing(site.hosts[cast.node]):
                await asyncio.sleep(SHORT_S)  # this is the fault
            await seen.lasts(site.heartbeat_s * 3)
        nobody_noticed(cast, seen)


async def test_a_host_that_goes_on_after_its_time_ends_what_ran_there_before_anything_else(cast: Cast) -> None:
    """Its VM runs elsewhere by then. The kernel timers are overdue: what goes on is ended as it goes on."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside, moves=True, behind=WINDOW_TICKS) as seen:
        epoch = await site.epoch(cast.node)
        with standing(site.hosts[cast.node]):
            after = await site.runs_elsewhere(cast.struck)
            await seen.boots(cast.struck.id, str(after.node))
        await seen.is_alone(cast.struck.id)
        await site.joins_after(cast.node, epoch)
