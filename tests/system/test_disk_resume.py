"""A move whose link was cut leaves what came of its disks: the next goes on with it, or it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, vms
from novacron.client.goals import vm_settles
from novacron.client.migrations import Migration
from novacron.client.vms import Vm
from tests.system.disk_site import END_S, MIB, Site, a_site, needs_nodes
from tests.system.spine import ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_nodes]
WISH = migrations.MigrationCreate(vm="one", target_node="node-2", verify_disks="full")
FILLED_MIB = 64
"""QEMU has 16 MiB on the way at once."""
REPORTED_S = 120.0
"""Nodes tell all they have every 30 s; on a loaded machine it is worked off later than that."""


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


async def cut_off(site: Site) -> tuple[Vm, Migration]:
    """A VM of whose disks about half came when the link was cut: the migration that failed then; the link is back."""
    vm = await site.machine("one", disks=2, disk_mib=80)
    await site.stopped(vm)
    site.fill(vm.disks[1].volume_id, FILLED_MIB)
    await site.do(vms.start(vm.id))
    await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    await ticks_on(site.lab, vm.id)
    slow = migrations.MigrationCreate(vm="one", target_node="node-2", bandwidth_bytes_per_s=12 * MIB)
    begun = await site.do(migrations.create(slow))
    pair = site.lab.between("node-1", "node-2")
    async with asyncio.timeout(END_S):
        while True:
            seen = await site.do(migrations.get(begun.id))
            if seen.progress is not None and seen.progress.disk_copied_bytes > FILLED_MIB * MIB // 2:
                break
            await asyncio.sleep(0.02)
    pair.cut()
    ended = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    pair.mend()
    assert ended.state == "rolled_back", ended.problem
    await ticks_on(site.lab, vm.id)
    return vm, ended


async def test_the_next_goes_on_with_what_came(site: Site) -> None:
    vm, failed = await cut_off(site)
    seen = await site.do(vms.get(vm.id))
    assert seen.node == "node-1"
    for disk in vm.disks:
        assert len(site.copies(disk.volume_id)) == 2
    again = await site.moved(WISH)
    assert again.figures.disk_bytes is not None
    assert 0 < again.figures.disk_bytes < FILLED_MIB * MIB // 2
    assert any(f"went on from what came with migration {failed.id}" in line for line in again.explanation)
    assert again.verdict is not None
    assert {check.name: check.outcome for check in again.verdict.checks}["disks"] == "passed"
    await ticks_on(site.lab, vm.id)
    for disk in vm.disks:
        assert len(site.copies(disk.volume_id)) == 1
    await site.stopped(vm)
    site.check_content(site.copies(vm.disks[0].volume_id)[0])


async def test_started_anew_its_disks_are_copied_anew(site: Site) -> None:
    vm, _ = await cut_off(site)
    await site.stopped(vm)
    await site.do(vms.start(vm.id))
    await site.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    again = await site.moved(WISH)
    assert again.figures.disk_bytes is not None
    assert again.figures.disk_bytes >= FILLED_MIB * MIB
    assert any("copied anew" in line for line in again.explanation)
    await ticks_on(site.lab, vm.id)
    assert len(site.copies(vm.disks[1].volume_id)) == 1


async def test_what_came_goes_with_its_vm(site: Site) -> None:
    vm, _ = await cut_off(site)
    await site.stopped(vm)
    await site.do(vms.delete(vm.id))
    async with asyncio.timeout(REPORTED_S):
        while any(site.copies(disk.volume_id) for disk in vm.disks):
            await asyncio.sleep(0.1)
