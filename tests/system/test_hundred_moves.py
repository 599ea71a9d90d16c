"""A Linux that checks its memory and its disks under load moves there and back a hundred times, and finds no error.

NOVACRON_MOVES: how often. Half of them take a disk along that lies on the node alone, half find it in a shared pool.
"""

from __future__ import annotations

import io
import os
import shutil
from itertools import cycle, islice

import pytest

from novacron.agent.drivers.qemu.postcopy_probe import FEATURE
from novacron.client import devices, migrations, nodes, vms
from novacron.client.goals import vm_settles
from novacron.lab.conversation import Talker
from novacron.lab.demo import IMAGE, upload
from novacron.lab.guest.build import build
from novacron.lab.guest.line import PORT
from novacron.lab.screen import Screen
from novacron.lab.span import bridged
from tests.system.disk_site import END_S, MIB, Site, a_site, needs_nodes
from tests.system.postcopy_setting import postcopy_allowed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.chaos,
    *needs_nodes,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no qemu-system-x86_64 here"),
]

MOVES = int(os.environ.get("NOVACRON_MOVES", "100"))
DIRTY = "dirty 20 16"  # MiB/s, over MiB
BLOCKS = 256  # of 4 KiB, written anew with another content before each move and compared after it
DISK = "vda"
WAYS = {"live": ("live", "precopy"), "hybrid": ("live", "hybrid"), "warm": ("warm", None)}


async def booted(site: Site, talker: Talker, pool: str) -> vms.Vm:
    """The lab's Linux, with a disk in that pool."""
    way = bridged()
    wish = vms.VmCreate(
        name="linux",
        image=IMAGE,
        memory_mib=160,
        node="node-1",
        nics=[way.nic],
        # Without page-table isolation QEMU 7.2 under TCG would lose writes unseen: see test_busy_guest.
        kernel_cmdline=f"nopti {way.words}",
        disks=[devices.DiskIn(size_bytes=8 * MIB, pool=pool)],
    )
    made = await site.do(vms.create(wish))
    talker.move(way.address, PORT)
    vm = await site.lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
    await talker.answered()
    assert await talker.ask(DIRTY) == "ok"
    return vm


async def ways_here(site: Site) -> list[str]:
    facts = (await site.do(nodes.get("node-1"))).facts
    assert facts is not None
    return [way for way in WAYS if way != "hybrid" or any(FEATURE in driver.features for driver in facts.drivers)]


async def moved(site: Site, talker: Talker, vm: vms.Vm, way: str, number: int) -> vms.Vm:
    """Once, with another content of its disk; the guest finds what it wrote, in memory and on disk."""
    before = await talker.status()
    assert await talker.ask(f"write {DISK} {number % 4 * BLOCKS} {BLOCKS} {number}") == "ok"
    kind, strategy = WAYS[way]
    target = next(node for node in site.lab.nodes if node != vm.node)
    story = f"move {number}, {way}, to {target}"
    wish = migrations.MigrationCreate(vm=vm.id, target_node=target, kind=kind, strategy=strategy, measure=False)
    begun = await site.do(migrations.create(wish))
    done = await site.lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed", (story, done.problem)
    after = await talker.status()
    assert (after.boot_id, after.pages_bad) == (before.boot_id, 0), story
    assert after.pages_written > before.pages_written, story
    assert await talker.ask("check") == "0", story
    for seed in range(max(0, number - 3), number + 1):
        assert await talker.ask(f"compare {DISK} {seed % 4 * BLOCKS} {BLOCKS} {seed}") == "0", (story, seed)
    return await site.do(vms.get(vm.id))


@pytest.mark.parametrize("pool", ["nas", "local"])
async def test_there_and_back_without_an_error(pool: str) -> None:
    with postcopy_allowed():
        async with a_site() as site:
            assert site.lab.fabric
            await upload(site.lab, build(), Screen(io.StringIO()))
            talker = await Talker.start(site.lab.fabric.fabric)
            try:
                vm = await booted(site, talker, pool)
                for number, way in enumerate(islice(cycle(await ways_here(site)), MOVES // 2)):
                    vm = await moved(site, talker, vm, way, number)
                (disk,) = vm.disks
                assert len(site.copies(disk.volume_id)) == 1
            finally:
                await talker.close()
