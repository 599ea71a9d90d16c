"""The bandwidth of a migration changed while it streams: memory directly and through proxies, and disks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, vms
from novacron.client.goals import vm_settles
from novacron.errors import Conflict
from novacron.lab.lab import Lab
from tests.system.disk_site import Site, a_site, needs_nodes
from tests.system.spine import END_S, a_lab, a_vm, begin_slowly, last_tick, needs_guest, restart, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]
PAGES, WSS = 32, 8192
CRAWL = 32 << 10  # bytes/s: at this pace each of these moves would take minutes


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with a_lab(pages=PAGES, wss_pages=WSS) as made:
        yield made


async def flowing(lab: Lab, begun: migrations.Migration) -> migrations.Migration:
    async with asyncio.timeout(END_S):
        while begun.progress is None or not (begun.progress.transferred_bytes or begun.progress.disk_copied_bytes):
            assert not begun.is_final, begun.problem
            begun = await lab.client.do(migrations.get(begun.id))
    return begun


async def completed(lab: Lab, vm: vms.Vm, begun: migrations.Migration) -> migrations.Migration:
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed", done.problem
    await ticks_on(lab, vm.id)
    return done


async def test_a_direct_stream_that_crawls_is_let_go(lab: Lab) -> None:
    async with a_vm(lab, 64) as vm:
        begun = await flowing(lab, await begin_slowly(lab, vm))
        assert begun.transport == "direct"
        changed = await lab.client.do(migrations.set_bandwidth(begun.id, 0))
        assert changed.bandwidth_bytes_per_s == 0
        done = await completed(lab, vm, begun)
        assert any("bandwidth changed by" in words for words in done.explanation)
        with pytest.raises(Conflict, match="still to stream"):
            await lab.client.do(migrations.set_bandwidth(begun.id, 1 << 20))


async def test_a_direct_stream_is_slowed_down(lab: Lab) -> None:
    async with a_vm(lab, 64) as vm:
        wish = migrations.MigrationCreate(vm=vm.id, transport="direct", bandwidth_bytes_per_s=2 << 20)
        begun = await flowing(lab, await lab.client.do(migrations.create(wish)))
        await lab.client.do(migrations.set_bandwidth(begun.id, CRAWL))
        async with asyncio.timeout(END_S):
            while begun.progress is None or not 0 < begun.progress.rate_bytes_per_s < 8 * CRAWL:
                assert not begun.is_final, begun.problem
                begun = await lab.client.do(migrations.get(begun.id))
        await lab.client.do(migrations.set_bandwidth(begun.id, 0))
        await completed(lab, vm, begun)


async def test_it_holds_over_a_server_and_a_source_that_begin_anew(lab: Lab) -> None:
    async with a_vm(lab, 64) as vm:
        begun = await flowing(lab, await begin_slowly(lab, vm))
        await restart(lab, "server")
        await restart(lab, begun.source_node)
        await lab.client.do(migrations.set_bandwidth(begun.id, 0))
        await completed(lab, vm, begun)


async def test_a_proxied_stream_that_crawls_is_let_go(lab: Lab) -> None:
    async with a_vm(lab, 64) as vm:
        async with asyncio.timeout(END_S):
            while (await last_tick(lab, vm.id))[0] <= WSS // PAGES:  # until it has written to all it ever writes to
                await asyncio.sleep(0.05)
        rate = 1 << 10  # its pages hold one number each
        wish = migrations.MigrationCreate(vm=vm.id, kind="warm", transport="proxy", bandwidth_bytes_per_s=rate)
        begun = await flowing(lab, await lab.client.do(migrations.create(wish)))
        await lab.client.do(migrations.set_bandwidth(begun.id, 0))
        assert (await completed(lab, vm, begun)).transport == "proxy"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


@needs_nodes[0]
@needs_nodes[1]
@needs_nodes[2]
async def test_disks_that_crawl_are_let_go(site: Site) -> None:
    vm = await site.machine("one", disks=2)
    await site.stopped(vm)
    site.fill(vm.disks[1].volume_id, 6)
    await site.do(vms.start("one"))
    await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    slow = migrations.MigrationCreate(vm="one", target_node="node-2", bandwidth_bytes_per_s=CRAWL, may_pause=True)
    begun = await flowing(site.lab, await site.do(migrations.create(slow)))
    assert begun.steps_done == ["accept"]
    await site.do(migrations.set_bandwidth(begun.id, 0))
    await completed(site.lab, vm, begun)
