"""Faults of store and servers in a whole cluster: machines that are to be restarted elsewhere run on through all of it.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer. Rows are
those of the fault matrix; the ones that take long or repeat another's way carry `chaos`.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from novacron.client import vms
from novacron.errors import NovaCronError
from tests.system.cluster_cast import Cast, a_cast, frozen, nobody_noticed, writing
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster, until
from tests.system.observer import observed

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_cluster]

OUTAGE_HEARTBEATS = 25
"""Longer than a deadline and all that is waited for before a takeover: whoever had no time from elsewhere would end."""


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


async def refuses(site: ClusterSite, vm: vms.Vm) -> None:
    """Return when no server takes a write any more."""

    async def so() -> bool:
        for reader in site.readers.values():
            try:
                await reader.do(vms.update(vm.id, vms.VmUpdate(description="lost")))
            except NovaCronError:
                continue
            return False
        return True

    await until(so, "writes are taken although there is no majority")


async def test_the_stores_leader_is_killed(cast: Cast) -> None:
    """Row 9: writes go on within moments, and none that was acknowledged is lost."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside) as writer:
        site.etcd.kill(await asyncio.to_thread(site.etcd.leader))
        await writer.goes_on()
        await seen.lasts(site.heartbeat_s * 5)
        nobody_noticed(cast, seen)


async def test_the_stores_majority_is_lost_for_a_while(cast: Cast) -> None:
    """Row 10: no write is taken, machines live on by what all servers promise (R10)."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside):
        for place in (0, 1):
            site.etcd.kill(place)
        await refuses(site, cast.struck)
        await seen.lasts(site.heartbeat_s * OUTAGE_HEARTBEATS)
        nobody_noticed(cast, seen)
        await site.heal()
        nobody_noticed(cast, seen)


@pytest.mark.chaos
async def test_the_whole_store_is_away_for_a_while(cast: Cast) -> None:
    """Row 10, all members stopped at once."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside):
        for place in range(3):
            site.etcd.kill(place)
        await refuses(site, cast.struck)
        await seen.lasts(site.heartbeat_s * OUTAGE_HEARTBEATS)
        await site.heal()
        nobody_noticed(cast, seen)


async def test_the_store_is_away_and_a_node_is_cut_off(cast: Cast) -> None:
    """Rows 7 and 10: no server can promise it time, so its machine ends; once there is a store, it runs elsewhere."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        for place in (0, 1):
            site.etcd.kill(place)
        site.link(cast.node).cut()
        await seen.is_gone(cast.struck.id)
        await seen.lasts_but(cast.struck.id, site.heartbeat_s * 5)
        for place in (0, 1):
            site.etcd.start(place)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))


@pytest.mark.chaos
async def test_a_server_that_leads_is_killed(cast: Cast) -> None:
    """Row 12."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside):
        leader = await site.a_leader()
        site.servers[leader].kill()
        await site.a_leader(leader)
        await seen.lasts(site.heartbeat_s * 10)
        nobody_noticed(cast, seen)


async def test_a_server_that_leads_stands_still_and_comes_back(cast: Cast) -> None:
    """Row 13: 30 s / 5. When it goes on it has been followed, and fences nobody on what it believed."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen, writing(site, cast.beside):
        leader = await site.a_leader()
        with frozen(site.servers[leader].process.pid):
            await site.a_leader(leader)
            await seen.lasts(site.heartbeat_s * 15)
        await site.ready(leader)
        await seen.lasts(site.heartbeat_s * 5)
        nobody_noticed(cast, seen)


async def test_a_leader_and_a_node_are_lost_together(cast: Cast) -> None:
    """Rows 5 and 12: the next leader takes over what the first one had only begun to miss."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside) as seen:
        leader = await site.a_leader()
        site.servers[leader].process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(site.hosts[cast.node].power_off)
        after = await site.runs_elsewhere(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
