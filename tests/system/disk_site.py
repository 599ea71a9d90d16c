"""Two nodes of a lab whose machines' disks lie on the node alone, or in a pool they share."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from novacron.client import devices, images, migrations, pools, vms
from novacron.client.goals import vm_settles
from novacron.client.vms import Vm
from novacron.lab.lab import Lab, open_lab
from novacron.lab.rom import rom
from novacron.model.image import FileRole
from tests.system.spine import ticks_on

MIB = 1 << 20
END_S = 90.0

needs_nodes = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed"),
]


class Site:
    """Two nodes that share no storage, with a pool `local` of their own each, and one they share, `nas`."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.do = lab.client.do
        self.root = root
        self.data = os.urandom(MIB) * 4

    async def furnish(self, pages: int = 2) -> None:
        """Its image `guest` ticks, writes so many pages in a tick and knows the power button."""
        guest = rom(self.root / "cache", pages_per_tick=pages, wss_pages=2048, button=True)
        disk = self.root / "disk.raw"
        disk.write_bytes(self.data)
        await self.do(images.create(images.ImageCreate(name="guest")))
        await self.lab.client.upload("guest", FileRole.FIRMWARE, guest)
        await self.lab.client.upload("guest", FileRole.DISK, disk)
        await self.do(images.seal("guest"))
        shared = self.root / "shared"
        shared.mkdir(mode=0o755)
        await self.do(pools.create(pools.PoolCreate(name="local", driver="directory")))
        await self.do(
            pools.create(pools.PoolCreate(name="nas", driver="directory", shared=True, options={"path": str(shared)}))
        )
        async with asyncio.timeout(END_S):
            for name in ("local", "nas"):
                while sum(one.available for one in (await self.do(pools.get(name))).reach) < 2:
                    await asyncio.sleep(0.05)

    async def machine(self, name: str, *, disks: int = 1, pool: str = "local", disk_mib: int = 8) -> Vm:
        """It runs on node-1, from an image; what disks it has beside its first are empty, and of that size."""
        wish = vms.VmCreate(
            name=name,
            image="guest",
            memory_mib=32,
            root_pool=pool,
            nics=[],
            node="node-1",
            disks=[devices.DiskIn(size_bytes=disk_mib * MIB, pool=pool) for _ in range(disks - 1)],
        )
        made = await self.do(vms.create(wish))
        seen = await self.lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(self.lab, seen.id)
        return seen

    async def moved(self, wish: migrations.MigrationCreate) -> migrations.Migration:
        begun = await self.do(migrations.create(wish))
        ended = await self.lab.client.wait_migration(begun.id, deadline_s=END_S)
        assert ended.state == "completed", ended.problem
        return ended

    def copies(self, volume_id: str) -> list[Path]:
        """Every file of that volume there is, on any node."""
        return sorted(self.root.rglob(f"{volume_id}.qcow2"))

    async def stopped(self, vm: Vm) -> None:
        await self.do(vms.stop(vm.id, vms.StopRequest(force=True)))
        await self.lab.client.wait_vm(vm.id, vm_settles("stopped"), deadline_s=END_S)

    def fill(self, volume_id: str, mib: int) -> None:
        """So much is to be copied."""
        (path,) = self.copies(volume_id)
        owner = path.stat()
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0x77 1M {mib}M", str(path)], check=True)
        os.chown(path, owner.st_uid, owner.st_gid)

    async def filled(self, vm: Vm) -> bytes:
        """Its second disk holds noise, which is returned; it is stopped for that and runs again."""
        await self.stopped(vm)
        (path,) = self.copies(vm.disks[1].volume_id)
        owner, noise, raw = path.stat(), os.urandom(8 * MIB), self.root / "noise.raw"
        raw.write_bytes(noise)
        subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
        os.chown(path, owner.st_uid, owner.st_gid)
        raw.unlink()
        await self.do(vms.start(vm.id))
        await self.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(self.lab, vm.id)
        return noise

    def content(self, path: Path) -> bytes:
        """What a disk holds that nobody writes to now, also while a machine has it open."""
        raw = self.root / "out.raw"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(path), str(raw)], check=True)
        held = raw.read_bytes()
        raw.unlink()
        return held

    def check_content(self, path: Path) -> None:
        """It is whole, and still begins with what its image holds."""
        subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
        assert self.content(path)[: len(self.data)] == self.data


@asynccontextmanager
async def a_site(pages: int = 2) -> AsyncIterator[Site]:
    """Furnished, and gone afterwards with everything in it."""
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=2, bridged=True, shared_pool=False) as lab:
            made = Site(lab, path)
            await made.furnish(pages)
            yield made
