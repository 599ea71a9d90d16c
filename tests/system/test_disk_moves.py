"""Machines whose disks lie on their node alone, moved through API and CLI: live, cold, at rest, into another pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import migrations, pools, vms, volumes
from novacron.client.goals import vm_settles
from novacron.errors import InvalidInput, NoRoom
from tests.system.disk_site import END_S, MIB, Site, a_site, needs_nodes
from tests.system.spine import last_tick, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_nodes]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


async def test_disks_go_where_their_machine_goes(site: Site) -> None:
    do, lab = site.do, site.lab
    vm = await site.machine("one", disks=2)
    plan = await do(migrations.plan(migrations.MigrationCreate(vm="one", measure=False)))
    (there,) = [node for node in plan.nodes if node.can]
    assert {move.to_pool for move in there.disks} == {"local"}
    assert any("2 disks are copied" in line for line in there.explanation)

    before, _ = await last_tick(lab, vm.id)
    live = await site.moved(migrations.MigrationCreate(vm="one", target_node="node-2"))
    assert live.figures.disk_bytes is not None
    assert len(live.disks) == 2
    assert live.verdict is not None
    found = {check.name: (check.outcome, check.evidence) for check in live.verdict.checks}
    assert [found[name][0] for name in ("runs", "only_there", "heartbeat", "disks")] == ["passed"] * 4, found
    assert "blocks of 64 KiB are alike on both sides (sampled)" in found["disks"][1]
    await ticks_on(lab, vm.id)
    tick, bad = await last_tick(lab, vm.id)
    assert tick > before
    assert bad == 0
    for disk in vm.disks:
        assert len(site.copies(disk.volume_id)) == 1
        assert (await do(volumes.get(disk.volume_id))).node == "node-2"

    await site.stopped(vm)
    rest = await site.moved(migrations.MigrationCreate(vm="one", target_node="node-1"))
    assert rest.at_rest
    (path,) = site.copies(vm.disks[0].volume_id)
    site.check_content(path)
    await do(vms.start("one"))
    await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    await ticks_on(lab, vm.id)

    await site.moved(migrations.MigrationCreate(vm="one", target_node="node-2", pool="nas"))
    await ticks_on(lab, vm.id)
    seen = await do(vms.get("one"))
    nas = await do(pools.get("nas"))
    assert {disk.pool_id for disk in seen.disks} == {nas.id}
    assert (await do(volumes.get(vm.disks[0].volume_id))).node is None
    shared = await site.moved(migrations.MigrationCreate(vm="one", target_node="node-1"))
    assert shared.disks == []
    await site.stopped(vm)
    (path,) = site.copies(vm.disks[0].volume_id)
    site.check_content(path)


async def test_disks_change_their_pool_while_their_machine_runs_on(site: Site) -> None:
    do, lab = site.do, site.lab
    vm = await site.machine("one", disks=2)
    before = await do(vms.get("one"))
    here = await site.moved(migrations.MigrationCreate(vm="one", pool="nas"))
    assert here.source_node == here.target_node == "node-1"
    assert here.steps_done == ["copy_here", "pivot", "commit", "tidy"]
    await ticks_on(lab, vm.id)
    seen = await do(vms.get("one"))
    assert seen.pid == before.pid
    nas = await do(pools.get("nas"))
    assert {disk.pool_id for disk in seen.disks} == {nas.id}
    for disk in vm.disks:
        assert [path.parent.parent.name for path in site.copies(disk.volume_id)] == ["shared"]
    await site.stopped(vm)
    rest = await site.moved(migrations.MigrationCreate(vm="one", disk_pools={vm.disks[0].volume_id: "local"}))
    assert rest.at_rest
    (path,) = site.copies(vm.disks[0].volume_id)
    assert path.parent.parent.name != "shared"
    site.check_content(path)
    await do(vms.start("one"))
    await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    await ticks_on(lab, vm.id)
    with pytest.raises(NoRoom, match="already"):
        await do(migrations.create(migrations.MigrationCreate(vm="one", disk_pools={vm.disks[0].volume_id: "local"})))


async def test_a_guest_that_is_shut_down_boots_from_its_disks_there(site: Site) -> None:
    vm = await site.machine("one", disks=2)
    cold = await site.moved(migrations.MigrationCreate(vm="one", target_node="node-2", kind="cold"))
    assert "copy_disks" in cold.steps_done
    await ticks_on(site.lab, vm.id)
    for disk in vm.disks:
        assert len(site.copies(disk.volume_id)) == 1


async def test_called_off_nothing_of_it_is_left_there(site: Site) -> None:
    vm = await site.machine("one", disks=2)
    await site.stopped(vm)
    site.fill(vm.disks[1].volume_id, 6)
    await site.do(vms.start("one"))
    await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    slow = migrations.MigrationCreate(vm="one", target_node="node-2", bandwidth_bytes_per_s=1 << 20)
    begun = await site.do(migrations.create(slow))
    async with asyncio.timeout(END_S):
        while True:
            seen = await site.do(migrations.get(begun.id))
            if seen.progress is not None and seen.progress.disk_copied_bytes:
                break
            await asyncio.sleep(0.02)
    assert len(site.copies(vm.disks[0].volume_id)) == 2
    await site.do(migrations.cancel(begun.id))
    ended = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert ended.state == "cancelled"
    await ticks_on(site.lab, vm.id)
    assert len(site.copies(vm.disks[0].volume_id)) == 1
    await site.moved(migrations.MigrationCreate(vm="one", target_node="node-2"))


async def test_what_stands_in_the_way_is_told(site: Site) -> None:
    vm = await site.machine("one")
    other = await site.do(volumes.create(volumes.VolumeCreate(name="other", size_bytes=MIB, pool="nas")))
    wish = migrations.MigrationCreate(vm="one", disk_pools={other.id: "nas"})
    with pytest.raises(InvalidInput) as wrong:
        await site.do(migrations.create(wish))
    assert [reason.subject for reason in wrong.value.reasons] == [f"disk_pools.{other.id}"]
    # a file of that name is there already: it may be the very disk, seen from there too
    (path,) = site.copies(vm.disks[0].volume_id)
    twin = Path(str(path).replace("node-1", "node-2"))
    twin.parent.mkdir(parents=True, exist_ok=True)
    twin.write_bytes(b"precious")
    begun = await site.do(migrations.create(migrations.MigrationCreate(vm="one", target_node="node-2")))
    ended = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert ended.state == "rolled_back"
    assert ended.problem is not None
    assert twin.read_bytes() == b"precious"
    await ticks_on(site.lab, vm.id)
    await site.do(pools.update("nas", pools.PoolUpdate(quota_bytes=2 * MIB)))
    with pytest.raises(NoRoom, match="may promise"):
        await site.do(migrations.create(migrations.MigrationCreate(vm="one", target_node="node-2", pool="nas")))
