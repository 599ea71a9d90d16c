"""VMs rehearsed on other real nodes: the original never notices, the copy lives for itself, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from novacron.client import devices, images, migrations, networks, pools, rehearsals, vms, volumes
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab, open_lab
from novacron.model.image import FileRole
from tests.system.boot_media import disk, ticking_program
from tests.system.disk_site import END_S, MIB, needs_nodes
from tests.system.spine import last_tick, living_copies, restart, ticks_on
from tests.system.test_networks import guest, is_answered, talks, three_nodes, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    *needs_nodes,
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed: no guest can be built"),
    pytest.mark.skipif(not all(map(shutil.which, ("nft", "dnsmasq"))), reason="nft or dnsmasq is not installed"),
]


class Site:
    """Two nodes that share no storage, each with its own part of the pool `local`; images that tick from their disk."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.do = lab.client.do
        self.root = root

    async def furnish(self) -> None:
        """`ticker` starts from its disk as often as one likes, `once` a single time; `twin` writes to two disks."""
        for name in ("ticker", "once", "twin"):
            program = ticking_program(self.root, once=name == "once", twin=name == "twin")
            made = disk(self.root / f"{name}.raw", program)
            await self.do(images.create(images.ImageCreate(name=name)))
            await self.lab.client.upload(name, FileRole.DISK, made)
            await self.do(images.seal(name))
        await self.do(pools.create(pools.PoolCreate(name="local", driver="directory")))
        async with asyncio.timeout(END_S):
            while sum(one.available for one in (await self.do(pools.get("local"))).reach) < 2:
                await asyncio.sleep(0.05)

    async def machine(self, image: str, disks: int = 1) -> vms.Vm:
        """It runs on node-1, with a card on QEMU's own network, and ticks."""
        more = [devices.DiskIn(size_bytes=8 * MIB, pool="local") for _ in range(disks - 1)]
        wish = vms.VmCreate(
            name="web",
            image=image,
            memory_mib=64,
            root_pool="local",
            root_disk_bytes=16 * MIB,
            nics=[devices.NicIn()],
            node="node-1",
            disks=more,
        )
        made = await self.do(vms.create(wish))
        seen = await self.lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(self.lab, seen.id)
        return seen

    async def filled(self, vm: vms.Vm) -> vms.Vm:
        """It, started anew with 8 MiB in its first disk that are its own to copy."""
        await self.do(vms.stop(vm.id, vms.StopRequest(force=True)))
        await self.lab.client.wait_vm(vm.id, vm_settles("stopped"), deadline_s=END_S)
        (path,) = self.root.rglob(f"{vm.disks[0].volume_id}.qcow2")
        owner = path.stat()
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x77 2M 8M", str(path)], check=True)
        os.chown(path, owner.st_uid, owner.st_gid)
        await self.do(vms.start(vm.id))
        seen = await self.lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(self.lab, vm.id)
        return seen

    async def copying(self) -> rehearsals.Rehearsal:
        """A rehearsal of it that has copied something, and has most before it."""
        asked = rehearsals.RehearsalCreate(vm="web", watch_for_s=1, bandwidth_bytes_per_s=1 << 20)
        begun = await self.do(rehearsals.create(asked))
        (disk_id,) = [one.volume_id for one in (await self.do(vms.get(begun.copy_id))).disks]

        def has_come() -> bool:
            return any(path.stat().st_blocks > 4096 for path in self.root.rglob(f"{disk_id}.qcow2"))

        await until(has_come, "something was copied")
        return begun

    async def looked_at(self, rehearsal_id: str, *states: str) -> rehearsals.Rehearsal:
        """It, once it is in one of these states."""
        async with asyncio.timeout(END_S):
            while (seen := await self.do(rehearsals.get(rehearsal_id))).state not in states:
                await asyncio.sleep(0.05)
        return seen

    async def check_nothing_left(self, done: rehearsals.Rehearsal, before: vms.Vm, its: list[volumes.Volume]) -> None:
        """Of the copy; and the original is as it was."""
        assert [one.id for one in (await self.do(vms.search())).items] == [before.id]
        assert (await self.do(networks.search())).items == []
        found = (await self.do(volumes.search())).items
        assert [(one.id, one.node, one.state) for one in found] == [(one.id, one.node, one.state) for one in its]
        assert sorted(path.stem for path in self.root.rglob("*.qcow2") if path.parent.name == "volumes") == sorted(
            one.id for one in its
        )
        assert living_copies(done.copy_id) == []
        now = await self.do(vms.get(before.id))
        same = ("state", "desired", "node", "generation", "pid", "disks", "nics", "task", "problem", "labels")
        assert [getattr(now, name) for name in same] == [getattr(before, name) for name in same]
        node = self.lab.node("node-2")
        await until(
            lambda: not any(name.startswith("nc") for _, name in node.run(socket.if_nameindex)), "its network is gone"
        )


@contextlib.asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=2, bridged=True, shared_pool=False) as lab:
            made = Site(lab, path)
            await made.furnish()
            yield made


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with a_site() as made:
        yield made


class Ticking:
    """How long the original went without a tick at most, as its console shows it, looked at all the while."""

    def __init__(self, lab: Lab, vm_id: str) -> None:
        self._lab = lab
        self._vm_id = vm_id
        self.longest_s = 0.0
        self.ticks = 0

    async def watch(self) -> None:
        clock = asyncio.get_running_loop().time
        seen, at_s = (await last_tick(self._lab, self._vm_id))[0], clock()
        while True:
            tick = (await last_tick(self._lab, self._vm_id))[0]
            if tick > seen:
                self.ticks += tick - seen
                seen, at_s = tick, clock()
            self.longest_s = max(self.longest_s, clock() - at_s)
            await asyncio.sleep(0.02)


def outcomes(done: rehearsals.Rehearsal) -> dict[str, str]:
    assert done.verdict is not None, done
    return {check.name: check.outcome for check in done.verdict.checks}


@pytest.mark.parametrize("disks", [1, 2])
async def test_a_guest_that_writes_and_ticks_is_rehearsed_on_another_node(site: Site, disks: int) -> None:
    do, lab = site.do, site.lab
    vm = await site.machine("ticker", disks)
    its = (await do(volumes.search())).items
    ticking = Ticking(lab, vm.id)
    watching = asyncio.create_task(ticking.watch())
    counted = (await last_tick(lab, vm.id))[0]
    wish = rehearsals.RehearsalCreate(vm="web", target_node="node-2", watch_for_s=2, keep_for_s=600)
    begun = await do(rehearsals.create(wish))
    kept = await site.looked_at(begun.id, "keeping", "failed")
    found = outcomes(kept)
    assert {found[name] for name in ("planned", "copied", "runs", "heartbeat", "console")} == {"passed"}, kept.verdict
    assert kept.figures.copied_bytes
    copy = await do(vms.get(kept.copy_id))
    assert (copy.node, copy.name, [nic.mac for nic in copy.nics]) == (
        "node-2",
        kept.copy_name,
        [nic.mac for nic in vm.nics],
    )
    await ticks_on(lab, copy.id)  # it counts on from what the original had written …
    assert (await last_tick(lab, copy.id))[0] > counted
    async with asyncio.timeout(END_S):  # … and each goes on for itself
        while (await last_tick(lab, copy.id))[0] == (await last_tick(lab, vm.id))[0]:
            await asyncio.sleep(0.05)
    for one in (copy, vm):
        assert len(living_copies(one.id)) == 1
    await do(rehearsals.cancel(begun.id))
    done = await lab.client.wait_rehearsal(begun.id, deadline_s=END_S)
    assert done.state == "passed"
    watching.cancel()
    assert ticking.ticks > 20
    assert ticking.longest_s < 2.0, ticking.longest_s  # eighteen a second, on a busy machine
    await site.check_nothing_left(done, vm, its)
    await ticks_on(lab, vm.id)
    moved = await do(migrations.create(migrations.MigrationCreate(vm="web", target_node="node-2")))
    ended = await lab.client.wait_migration(moved.id, deadline_s=END_S)
    assert ended.state == "completed", ended.problem  # nothing of the rehearsal stands in the way of the real thing


async def test_the_copies_of_several_disks_are_of_one_moment(site: Site) -> None:
    vm = await site.machine("twin", 2)
    for _ in range(3):
        wish = rehearsals.RehearsalCreate(vm="web", watch_for_s=1, keep_for_s=600)
        begun = await site.do(rehearsals.create(wish))
        kept = await site.looked_at(begun.id, "keeping", "failed")
        assert kept.state == "keeping", kept.verdict
        count, lag = await last_tick(site.lab, kept.copy_id)
        assert count > 64
        assert lag in (0, 1)  # each count went to the first disk, then to the second
        await site.do(rehearsals.cancel(begun.id))
        await site.lab.client.wait_rehearsal(begun.id, deadline_s=END_S)
    await ticks_on(site.lab, vm.id)


async def test_a_copy_that_does_not_boot_fails(site: Site) -> None:
    vm = await site.machine("once")
    its = (await site.do(volumes.search())).items
    wish = rehearsals.RehearsalCreate(vm="web", boot_within_s=6, watch_for_s=1)
    begun = await site.do(rehearsals.create(wish))
    done = await site.lab.client.wait_rehearsal(begun.id, deadline_s=END_S)
    assert done.state == "failed"
    assert outcomes(done)["console"] == "failed", done.verdict
    await site.check_nothing_left(done, vm, its)
    await ticks_on(site.lab, vm.id)


@pytest.mark.parametrize("who", ["server", "node-1", "node-2"])
async def test_a_process_killed_while_it_copies_leaves_nothing(site: Site, who: str) -> None:
    vm = await site.filled(await site.machine("ticker"))
    its = (await site.do(volumes.search())).items
    begun = await site.copying()
    await restart(site.lab, who)
    done = await site.lab.client.wait_rehearsal(begun.id, deadline_s=END_S)
    assert done.state in ("passed", "failed")
    await site.check_nothing_left(done, vm, its)
    await ticks_on(site.lab, vm.id)


async def test_a_target_that_hangs_holds_up_nobody(site: Site) -> None:
    vm = await site.filled(await site.machine("ticker"))
    its = (await site.do(volumes.search())).items
    begun = await site.copying()
    ticking = Ticking(site.lab, vm.id)
    watching = asyncio.create_task(ticking.watch())
    (pid,) = living_copies(begun.copy_id)
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(END_S):
        while ticking.ticks < 60:
            await asyncio.sleep(0.05)
    assert (await site.do(rehearsals.get(begun.id))).state == "copying"
    await site.do(rehearsals.cancel(begun.id))
    done = await site.lab.client.wait_rehearsal(begun.id, deadline_s=END_S)
    assert done.state == "cancelled"
    watching.cancel()
    assert ticking.longest_s < 2.0, ticking.longest_s
    await site.check_nothing_left(done, vm, its)


async def test_a_copy_reaches_nobody_and_nobody_reaches_it() -> None:
    async with three_nodes() as lab:
        one = await guest(lab, "one", "node-1", "10.20.0.2", "talk")
        await guest(lab, "two", "node-2", "10.20.0.3", "talk")
        assert await talks(lab, "node-1", one) == "one"
        wish = rehearsals.RehearsalCreate(vm="one", target_node="node-2", watch_for_s=1, keep_for_s=600)
        begun = await lab.client.do(rehearsals.create(wish))
        async with asyncio.timeout(END_S):
            while (seen := await lab.client.do(rehearsals.get(begun.id))).state not in ("keeping", "failed"):
                await asyncio.sleep(0.05)
        assert seen.state == "keeping", seen.verdict
        copy = await lab.client.do(vms.get(seen.copy_id))
        assert copy.nics[0].mac == one.nics[0].mac
        answered: Callable[[], bool] = lambda: is_answered("10.20.0.2")  # noqa: E731
        assert await asyncio.to_thread(lab.node("node-1").run, answered)
        # It has given itself the very address, and serves; with the original silent nobody answers, from any side.
        async with asyncio.timeout(END_S):
            while "GUEST READY" not in (await lab.client.do(vms.console_log(copy.id))).text:
                await asyncio.sleep(0.1)
        await lab.client.do(vms.pause("one"))
        await lab.client.wait_vm("one", vm_settles("paused"))
        for node in ("node-1", "node-2"):
            assert not await asyncio.to_thread(lab.node(node).run, answered), node
        await lab.client.do(vms.resume("one"))
        await lab.client.wait_vm("one", vm_settles("running"))
        assert await talks(lab, "node-1", one) == "one"
        await lab.client.do(rehearsals.cancel(begun.id))
        assert (await lab.client.wait_rehearsal(begun.id, deadline_s=END_S)).state == "passed"
        assert [net.name for net in (await lab.client.do(networks.search())).items] == ["web"]
