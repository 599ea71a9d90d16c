"""Faults while a VM that is restarted elsewhere moves: one copy goes on, whatever dies at either end or leads.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer. Rows are
those of the fault matrix; the ones that take long or repeat another's way carry `chaos`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, vms
from tests.system.cluster_cast import Cast, a_cast, begin_move, ended
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster
from tests.system.observer import observed

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_cluster]

TARGET = "node-3"


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


async def strike(cast: Cast, what: str) -> None:
    site, source = cast.site, cast.node
    match what.split():
        case ["leader"]:
            site.servers[await site.a_leader()].kill()
        case [end, "agent"]:
            child = site.hosts[source if end == "source" else TARGET].agent
            child.kill()
            child.start_again()
        case [end, "power"]:
            await asyncio.to_thread(site.hosts[source if end == "source" else TARGET].power_off)
        case [end, "link"]:
            site.link(source if end == "source" else TARGET).cut()
        case ["source", "machine"]:
            os.kill(site.host_pid(cast.struck), signal.SIGKILL)
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    "what",
    [
        "leader",
        "source power",
        pytest.param("target power", marks=pytest.mark.chaos),
        pytest.param("source agent", marks=pytest.mark.chaos),
        pytest.param("target agent", marks=pytest.mark.chaos),
        pytest.param("source link", marks=pytest.mark.chaos),
        pytest.param("target link", marks=pytest.mark.chaos),
        pytest.param("source machine", marks=pytest.mark.chaos),
    ],
)
async def test_a_move_in_which_something_is_lost(cast: Cast, what: str) -> None:
    """Row 14. Wherever it is in the end: it is one, and its record says where."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside, moves=True):
        begun = await begin_move(cast)
        await strike(cast, what)
        if what == "source power":
            await site.runs_elsewhere(cast.struck)
        done = await ended(site, begun.id)
        assert done.state in ("completed", "rolled_back", "cancelled", "failed"), done
        assert done.state == "completed" or done.problem is not None, done


async def test_what_is_said_comes_late_and_twice(cast: Cast) -> None:
    """Row 16: every word between agents and servers is said twice and comes late; everything is done once."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside, moves=True) as seen:
        for way in site.passages.values():
            way.bends.delay_s, way.bends.repeat = 0.05, True
        wish = migrations.MigrationCreate(vm=cast.struck.id, target_node=TARGET)
        moved = await ended(site, (await site.client.do(migrations.create(wish))).id)
        assert moved.state == "completed", moved
        await site.client.do(vms.stop(cast.struck.id, vms.StopRequest(force=True)))
        await site.client.wait_vm(cast.struck.id, "stopped", deadline_s=60.0)
        assert seen.copies[cast.struck.id][-1].pids == {}
        await site.client.do(vms.start(cast.struck.id))
        after = await site.runs(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        assert len([one for one in seen.runs[cast.struck.id] if one.first <= 3]) == 1, "it was booted once"
        assert all(way.repeated > 0 for way in site.passages.values())
