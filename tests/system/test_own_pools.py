"""Nodes without shared storage: image files are fetched, disks lie on the node, machines without disks still move."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from novacron.client import images, migrations, pools, vms
from novacron.client.goals import vm_settles
from novacron.errors import NoRoom
from novacron.lab.lab import open_lab
from novacron.lab.rom import rom
from novacron.model.image import FileRole
from tests.system.spine import last_tick, ticks_on

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]

GIB = 1 << 30
END_S = 60.0


async def test_nodes_fetch_what_machines_need() -> None:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=2, bridged=True, shared_pool=False) as lab:
            do = lab.client.do
            guest = rom(path / "cache", pages_per_tick=2, wss_pages=2048)
            disk = path / "disk.raw"
            disk.write_bytes(os.urandom(1 << 20) * 4)
            for name, role, file in (("ticker", FileRole.FIRMWARE, guest), ("disk", FileRole.DISK, disk)):
                await do(images.create(images.ImageCreate(name=name)))
                await lab.client.upload(name, role, file)
                await do(images.seal(name))
            await do(pools.create(pools.PoolCreate(name="local", driver="directory")))
            async with asyncio.timeout(END_S):
                while sum(one.available for one in (await do(pools.get("local"))).reach) < 2:
                    await asyncio.sleep(0.05)

            one = await do(
                vms.create(vms.VmCreate(name="one", image="disk", root_pool="local", nics=[], node="node-2"))
            )
            seen = await lab.client.wait_vm(one.id, vm_settles("running"), deadline_s=END_S)
            assert seen.disks[0].pool_id != ""

            moving = await do(vms.create(vms.VmCreate(name="moving", image="ticker", memory_mib=32, nics=[])))
            vm = await lab.client.wait_vm(moving.id, vm_settles("running"), deadline_s=END_S)
            await ticks_on(lab, vm.id)
            before, _ = await last_tick(lab, vm.id)
            moved = await do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
            ended = await lab.client.wait_migration(moved.id, deadline_s=END_S)
            assert ended.state == "completed", ended.problem
            await ticks_on(lab, vm.id)
            assert (await last_tick(lab, vm.id))[0] > before

            with pytest.raises(NoRoom) as refused:
                await do(vms.create(vms.VmCreate(name="two", image="disk", nics=[])))
            assert {reason.code for reason in refused.value.reasons} == {"pool.not_shared"}
