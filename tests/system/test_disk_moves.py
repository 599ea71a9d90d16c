"""Machines whose disks lie on their node alone, moved through API and CLI: live, cold, at rest, into another pool."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import images, migrations, pools, vms, volumes
from novacron.client.vms import Vm
from novacron.errors import InvalidInput, NoRoom
from novacron.lab.lab import Lab, open_lab
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

MIB = 1 << 20
END_S = 90.0


class Site:
    """Two nodes that share no storage, with a pool `local` of their own each, and one they share."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.do = lab.client.do
        self.root = root
        self.data = os.urandom(MIB) * 4

    async def furnish(self) -> None:
        guest = rom(self.root / "cache", pages_per_tick=2, wss_pages=2048)
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

    async def machine(self, name: str, *, disks: int = 1) -> Vm:
        """It runs on node-1, from an image, with a second disk that is empty."""
        wish = vms.VmCreate(
            name=name,
            image="guest",
            memory_mib=32,
            root_pool="local",
            nics=[],
            node="node-1",
            disks=[vms.DiskIn(size_bytes=8 * MIB, pool="local") for _ in range(disks - 1)],
        )
        made = await self.do(vms.create(wish))
        seen = await self.lab.client.wait_vm(made.id, "running", deadline_s=END_S)
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
        await self.lab.client.wait_vm(vm.id, "stopped", deadline_s=END_S)

    def fill(self, volume_id: str, mib: int) -> None:
        """So much is to be copied."""
        (path,) = self.copies(volume_id)
        owner = path.stat()
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 0x77 1M {mib}M", str(path)], check=True)
        os.chown(path, owner.st_uid, owner.st_gid)

    def check_content(self, path: Path) -> None:
        """It is whole, and still begins with what its image holds."""
        subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
        raw = self.root / "out.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
        assert raw.read_bytes()[: len(self.data)] == self.data
        raw.unlink()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=2, bridged=True, shared_pool=False) as lab:
            made = Site(lab, path)
            await made.furnish()
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
    await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
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
    await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    await ticks_on(lab, vm.id)
    with pytest.raises(NoRoom, match="already"):
        await do(migrations.create(migrations.MigrationCreate(vm="one", disk_pools={vm.disks[0].volume_id: "local"})))


@pytest.mark.slow  # the ROM guest knows no power button: it is waited for in vain
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
    await site.lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
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
