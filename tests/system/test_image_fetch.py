"""A machine whose disk lies in another pool than the shared one: its node brings the image file there first."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from novacron.client import images, pools, vms
from novacron.client.goals import vm_settles
from novacron.model.image import FileRole
from tests.system.spine import END_S, a_lab, needs_guest, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]

MIB = 1 << 20


async def test_a_node_has_what_its_machines_disk_stands_on(tmp_path: Path) -> None:
    content = b"\xeb\x63" + os.urandom(3 * MIB - 2)
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "disk").write_bytes(content)
    async with a_lab() as lab:
        nova = lab.client
        place = lab.path.parent / "local"  # where machines' users may pass
        place.mkdir(mode=0o711)
        (firmware,) = (await nova.do(images.get("ticker"))).files
        made = await nova.do(images.create(images.ImageCreate(name="ticker-disk")))
        source = next(path for path in lab.path.rglob(firmware.digest) if path.is_file())
        await nova.upload(made.id, FileRole.FIRMWARE, source)
        await nova.upload(made.id, FileRole.DISK, tmp_path / "disk")
        await nova.do(images.seal(made.id))
        await nova.do(pools.create(pools.PoolCreate(name="local", driver="directory", options={"path": str(place)})))
        async with asyncio.timeout(END_S):
            while len((await nova.do(pools.get("local"))).reach) < 2:
                await asyncio.sleep(0.05)
        wish = vms.VmCreate(name="far", image="ticker-disk", memory_mib=32, nics=[], root_pool="local")
        vm = await nova.do(vms.create(wish))
        await nova.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
        kept = place / "images" / digest
        assert kept.read_bytes() == content
        assert [path.name for path in (place / "images").iterdir()] == [digest]
        await ticks_on(lab, vm.id)
        await nova.do(vms.delete(vm.id, force=True))
        await nova.wait_vm_gone(vm.id, deadline_s=END_S)
