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
from novacron.client.goals import vm_settles
from tests.system.cluster_cast import Cast, a_cast, begin_move, ended
from tests.system.cluster_site import ClusterSite, a_cluster, needs_cluster
from tests.system.observer import Observer, observed
from tests.system.points import Points, points, thaw

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_cluster]

TARGET = "node-3"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def armed() -> AsyncIterator[Points]:
    async with points() as made:
        yield made


@pytest.fixture(scope="module")
async def site(armed: Points) -> AsyncIterator[ClusterSite]:
    """Its processes look for failpoints."""
    async with a_cluster() as made:
        yield made


@pytest.fixture
async def cast(site: ClusterSite) -> AsyncIterator[Cast]:
    async with a_cast(site) as made:
        yield made


async def strike(cast: Cast, seen: Observer, what: str) -> None:
    site = cast.site
    end, _, part = what.rpartition(" ")
    node = cast.node if end == "source" else TARGET
    match part:
        case "leader":
            site.servers[await site.a_leader()].kill()
        case "agent":
            site.hosts[node].agent.kill()
            site.hosts[node].agent.start_again()
        case "power":
            await asyncio.to_thread(site.hosts[node].power_off)
        case "link":
            site.link(node).cut()
        case "machine":
            os.kill(await seen.process(cast.struck.id, node), signal.SIGKILL)
        case _:
            raise AssertionError(what)


async def ends_well(cast: Cast, begun: migrations.Migration) -> None:
    """It has an end, and says why when that is not the one that was wished for."""
    done = await ended(cast.site, begun.id)
    assert done.state in ("completed", "rolled_back", "cancelled", "failed"), done
    assert done.state == "completed" or done.problem is not None, done


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
        pytest.param("target machine", marks=pytest.mark.chaos),
    ],
)
async def test_a_move_in_which_something_is_lost(cast: Cast, what: str) -> None:
    """Row 14, M3. Wherever it is in the end: it is one, and its record says where."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside, moves=True) as seen:
        begun = await begin_move(cast)
        await strike(cast, seen, what)
        if what == "source power":
            await site.runs_elsewhere(cast.struck)
        await ends_well(cast, begun)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        pytest.param("accept:did", "target machine", marks=pytest.mark.chaos),  # M1: it waits there
        pytest.param("accept:did", "target power", marks=pytest.mark.chaos),
        pytest.param("send:did", "source machine", marks=pytest.mark.chaos),  # M4: both stand still, the source owns
        pytest.param("send:did", "target machine", marks=pytest.mark.chaos),
        pytest.param("send:did", "source power", marks=pytest.mark.chaos),
        pytest.param("send:did", "target power", marks=pytest.mark.chaos),
        pytest.param("commit:did", "source machine", marks=pytest.mark.chaos),  # M5: both stand still, the target owns
        pytest.param("commit:did", "target machine", marks=pytest.mark.chaos),
        pytest.param("commit:did", "source power", marks=pytest.mark.chaos),
        ("commit:did", "target power"),
        pytest.param("take_over:did", "target machine", marks=pytest.mark.chaos),  # M6: it runs at the target
        pytest.param("take_over:did", "target power", marks=pytest.mark.chaos),
        pytest.param("release:began", "source machine", marks=pytest.mark.chaos),  # M7: the source is let go
        pytest.param("release:began", "source power", marks=pytest.mark.chaos),
    ],
)
async def test_a_move_of_which_an_end_is_lost_at_a_step(cast: Cast, armed: Points, place: str, what: str) -> None:
    """Row 14. The leader stands still at that step while it is struck, and goes on; or another has followed it."""
    site = cast.site
    async with observed(site, cast.struck, cast.beside, moves=True) as seen:
        armed.arm(f"conductor.{place}", "freeze")
        wish = migrations.MigrationCreate(vm=cast.struck.id, target_node=TARGET, transport="direct")
        begun = await site.client.do(migrations.create(wish))
        leader = await armed.held(f"conductor.{place}", site.servers.values())
        await strike(cast, seen, what)
        thaw(leader)
        await ends_well(cast, begun)


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
        await site.client.wait_vm(cast.struck.id, vm_settles("stopped"), deadline_s=60.0)
        assert seen.copies[cast.struck.id][-1].pids == {}
        await site.client.do(vms.start(cast.struck.id))
        after = await site.runs(cast.struck)
        await seen.boots(cast.struck.id, str(after.node))
        assert len([one for one in seen.runs[cast.struck.id] if one.first <= 3]) == 1, "it was booted once"
        assert all(way.repeated > 0 for way in site.passages.values())
