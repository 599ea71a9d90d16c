"""A store of yesterday: nobody acts on it, no machine is started from it, and a person is told what to do. Row 11.

Three etcd members, three servers, three nodes, real QEMU, a fifth of the usual times, and an outside observer.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from novacron.client import migrations, vms
from novacron.client.asynchronous import AsyncClient
from novacron.control.store.identity import SEEN_FILE
from novacron.errors import NovaCronError
from novacron.lab.processes import Child
from tests.etcd_members import Members
from tests.system.cluster_cast import Cast, a_cast, cleared, ended
from tests.system.cluster_site import SERVERS, ClusterSite, a_cluster, end_vm, needs_cluster, until
from tests.system.observer import Observer, in_order, observed, untouched

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.chaos, *needs_cluster]

TARGET = "node-3"
COPY_S = 60.0
HEARTBEATS = 25
OF_AN_OLD_LEADER, OF_AN_OLD_GENERATION = "is followed by one of revision", "does not count here"
SECONDS = 10
"""For so long servers may act on the wrong store: the guest ticks 18 times in each."""


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


async def disks_kept(etcd: Members, folder: Path) -> None:
    """As they are now, of all members, which stand still for it."""
    await asyncio.to_thread(copied, stopped(etcd), folder)
    await started(etcd)


async def disks_put_back(etcd: Members, folder: Path, kept: Path | None = None) -> None:
    """The members go on from what was kept. kept: where their disks go as they are now."""
    homes = stopped(etcd)
    if kept is not None:
        await asyncio.to_thread(copied, homes, kept)
    await asyncio.to_thread(subprocess.run, ["rm", "-r", *homes], check=True, timeout=COPY_S)
    await asyncio.to_thread(copied, [folder / home.name for home in homes], homes[0].parent)
    await started(etcd)


def stopped(etcd: Members) -> list[Path]:
    """Where their disks are."""
    for place in range(len(etcd.ports)):
        etcd.kill(place)
    return [etcd.home(place) for place in range(len(etcd.ports))]


def copied(homes: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", *homes, folder], check=True, timeout=COPY_S)


async def started(etcd: Members) -> None:
    etcd.start_all()
    await asyncio.gather(*(etcd.up(place) for place in range(len(etcd.ports))))


async def moved(site: ClusterSite, vm: vms.Vm) -> vms.Vm:
    """What the store of yesterday does not know: it runs on another node, under the next generation."""
    wish = migrations.MigrationCreate(vm=vm.id, target_node=TARGET, transport="direct")
    done = await ended(site, (await site.client.do(migrations.create(wish))).id)
    assert done.state == "completed", done
    after = await site.runs(vm)
    assert (after.node, after.generation) == (TARGET, vm.generation + 1)
    return after


async def says_what_the_store_is(site: ClusterSite, name: str, vm_id: str) -> None:
    """Return when that server refuses a write with what happened to the store; it asks each member first."""
    address = f"http://127.0.0.1:{site.ports[name]}"
    async with AsyncClient(address, site.token, answer_within_s=20.0, tries=1) as patient:

        async def so() -> bool:
            try:
                await patient.do(vms.update(vm_id, vms.VmUpdate(description="on what was")))
            except NovaCronError as refused:
                return any(one.code == "store.restored" for one in refused.reasons)
            return False

        await until(so, f"{name} does not say what the store is", site.servers[name].tail)


async def test_disks_of_the_store_that_are_put_back_under_running_servers(cast: Cast, tmp_path: Path) -> None:
    """Same cluster, same addresses: each server refuses what it hears, gives nodes time, and goes on with today's."""
    site, etcd = cast.site, cast.site.etcd
    async with observed(site, cast.struck, cast.beside, moves=True) as seen:
        await disks_kept(etcd, tmp_path / "yesterday")
        await site.all_up()
        after = await moved(site, cast.struck)
        pids, boots = dict(seen.copies[after.id][-1].pids), len(seen.runs[after.id])
        await disks_put_back(etcd, tmp_path / "yesterday", kept=tmp_path / "today")
        for name in SERVERS:
            await says_what_the_store_is(site, name, after.id)
        await seen.lasts(site.heartbeat_s * HEARTBEATS)
        assert (seen.copies[after.id][-1].pids, len(seen.runs[after.id])) == (pids, boots)
        await disks_put_back(etcd, tmp_path / "today")
        await site.all_up()
        nobody_was_fenced(seen)
        assert (await site.client.do(vms.get(after.id))).generation == after.generation


def nobody_was_fenced(seen: Observer) -> None:
    assert not [one for one in seen.readings if one.state in ("fencing", "fenced")]


async def test_a_store_of_yesterday_is_refused_at_the_start_and_taken_by_force_starts_no_second_copy(
    site: ClusterSite, tmp_path: Path
) -> None:
    """The VM has no policy, so it runs on without any server. The node that yesterday names has seen it go."""
    etcd = site.etcd
    await cleared(site)
    wish = vms.VmCreate(name="plain", image="ticker", memory_mib=32, nics=[], node="node-1")
    plain = await site.runs(await site.client.do(vms.create(wish)))
    await disks_kept(etcd, tmp_path / "yesterday")
    await site.all_up()
    after = await moved(site, plain)
    async with looking(site, after) as seen:
        await restarted(site)  # what a server has seen of its store it notes when it starts
        for name in SERVERS:
            site.servers[name].kill()
        await disks_kept(etcd, tmp_path / "today")
        await disks_put_back(etcd, tmp_path / "yesterday")
        for name in SERVERS:
            await refuses_to_start(site, name)
            (site.path / name / SEEN_FILE).rename(tmp_path / name)
        await restarted(site)  # by force, and nobody has looked where VMs run
        await is_refused_by_its_node(site, after)
        await seen.ticks(after.id, 18 * SECONDS)
        for name in SERVERS:
            site.servers[name].kill()
            (tmp_path / name).replace(site.path / name / SEEN_FILE)
        await disks_put_back(etcd, tmp_path / "today")
        await restarted(site)
        await site.heal()
        await in_order(site, seen)
        assert not untouched(seen.copies[after.id], seen.runs[after.id])
    await end_vm(site, plain.id)


async def is_refused_by_its_node(site: ClusterSite, vm: vms.Vm) -> None:
    """The records name the node it left, as of the generation before. Told to start it there, that node heeds no leader
    of yesterday; and when its agent has forgotten leaders, it does not heed that generation.
    """
    read: list[vms.Vm] = []

    async def is_lost() -> bool:
        read[:] = [await site.client.do(vms.get(vm.id))]
        return read[0].problem is not None

    await until(is_lost, "its node is not said to have lost it", lambda: read)
    assert read[0].generation < vm.generation, read
    agent = site.hosts[str(read[0].node)].agent
    await site.client.do(vms.start(vm.id))
    await until(lambda: says(site.servers.values(), OF_AN_OLD_LEADER), "no leader is refused", agent.tail)
    agent.kill()
    agent.start_again()
    await until(lambda: says([agent], OF_AN_OLD_GENERATION), "no generation is refused", agent.tail)


async def says(children: Iterable[Child], words: str) -> bool:
    return any(words in child.log.read_text(errors="replace") for child in children)


@contextlib.asynccontextmanager
async def looking(site: ClusterSite, vm: vms.Vm) -> AsyncIterator[Observer]:
    """At its processes and its guest only: what servers say goes back here."""
    observer = Observer(site, [vm.id])
    task = asyncio.create_task(observer.watch())
    try:
        await observer.ticks(vm.id)
        yield observer
    except BaseException:
        sys.stderr.write(site.last_words())
        raise
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def restarted(site: ClusterSite) -> None:
    """Every server, one after the other, and all nodes are up there."""
    for name in SERVERS:
        site.servers[name].kill()
        site.servers[name].start_again()
        await site.ready(name)
    await site.all_up()


async def refuses_to_start(site: ClusterSite, name: str) -> None:
    """It ends by itself, and says why and what to do."""
    server = site.servers[name]
    told = server.log.stat().st_size
    server.start_again()
    assert await asyncio.to_thread(server.process.wait, COPY_S) != 0
    said = server.log.read_bytes()[told:].decode()
    assert "is older than it was" in said
    assert "see that no VM runs where its records do not say" in said
