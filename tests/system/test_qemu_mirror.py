"""Disks mirrored between two real QEMUs under TLS: alike to the byte, and the source as before when it goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Layer
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import QemuDriver, mirror, tls
from novacron.agent.drivers.qemu.devices import disk_id
from novacron.agent.drivers.qemu.exports import close_exports
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.mirror import Order
from novacron.agent.drivers.qemu.refill import Refill
from novacron.errors import MigrationFailed
from novacron.model.machine import Disk, MachineStatus
from tests.system import rom_machine
from tests.system.rom_machine import an_id

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.system, rom_machine.needs_qemu, needs_qemu_img]

SIZE = 64 << 20
MIGRATION = "01890000-0000-7000-8000-0000000000aa"
HERE = "127.0.0.1"
FEATURES: tuple[str, ...] = ()


def tool(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def disk(launch: Launch, folder: Path, volume_id: str, base: Path | None) -> Launch:
    """The launch with one more disk, made empty or as a child of `base`."""
    path = folder / f"{volume_id}.qcow2"
    over = ("-b", str(base), "-F", "raw") if base else ()
    tool("qemu-img", "create", "-q", "-f", "qcow2", *over, str(path), str(SIZE))
    if launch.uid is not None:
        os.chown(path, launch.uid, launch.uid)
    layers = (Layer(FileAt(base), "raw"),) if base else ()
    file = DiskFile(volume_id=volume_id, source=FileAt(path), format="qcow2", backing=layers)
    own = Disk(volume_id=volume_id, size_bytes=SIZE, backing_digest="0" * 64 if base else "")
    spec = msgspec.structs.replace(launch.spec, disks=(*launch.spec.disks, own))
    return msgspec.structs.replace(launch, spec=spec, disks=(*launch.disks, file))


class Pair:
    """A machine that runs, and one that waits for it with disks of its own."""

    def __init__(self, hosts: rom_machine.Hosts, layered: bool) -> None:
        self.here, self.there = hosts.new(), hosts.new()
        self.vm_id, self.volumes = an_id(), (an_id(), an_id())
        self.base: Path | None = None
        if layered:
            self.base = self.here.root.parent / "base.raw"
            self.base.write_bytes(b"\x5a" * (8 << 20) + bytes(SIZE - (8 << 20)))
        self.one, self.other = self.here.driver(), self.there.driver()

    async def begin(self) -> None:
        launches = []
        for host in (self.here, self.there):
            launch = host.launch(self.vm_id)
            for volume_id in self.volumes:
                launch = disk(launch, host.root, volume_id, self.base)
            launches.append(launch)
        self.write_outside(self.here, 0, "-P 0x11 1M 5M")
        await self.one.start(launches[0])
        reception = await self.other.accept(
            launches[1], Awaited(migration_id=MIGRATION, host=HERE, receives=self.volumes)
        )
        assert reception.disks is not None
        self.to = reception.disks
        self.source, self.target = self.machine(self.one), self.machine(self.other)
        await self.mirror()

    async def mirror(self) -> None:
        order = Order(migration_id=MIGRATION, to=self.to, volume_ids=self.volumes, features=FEATURES)
        await mirror.begin(self.source, order)

    def machine(self, driver: QemuDriver) -> Machine:
        return driver._fleet.machines[self.vm_id]

    def path(self, host: rom_machine.Host, number: int) -> str:
        return str(host.root / f"{self.volumes[number]}.qcow2")

    def write_outside(self, host: rom_machine.Host, number: int, what: str) -> None:
        tool("qemu-io", "-f", "qcow2", "-c", f"write {what}", self.path(host, number))

    async def write(self, number: int, what: str) -> None:
        """A write by the running machine, through the same layers as its guest's."""
        command = f'qemu-io -d /machine/peripheral/{disk_id(self.volumes[number])}/virtio-backend "write {what}"'
        told = await self.source.door().execute("human-monitor-command", {"command-line": command})
        assert told == ""  # it says on its own output what it wrote, and here what went wrong

    async def ready(self) -> list[mirror.Copied]:
        seen: list[mirror.Copied] = []
        await Refill(self.source, 0, 20).run(self.volumes, seen.append)  # begun again, it goes on
        await asyncio.wait_for(mirror.ready(self.source, self.volumes, seen.append, FEATURES, 20), 30)
        return seen

    async def end_both(self) -> None:
        for machine in (self.source, self.target):
            await machine.kill()

    def check_alike(self) -> None:
        for number in range(len(self.volumes)):
            tool("qemu-img", "compare", self.path(self.here, number), self.path(self.there, number))


@contextlib.asynccontextmanager
async def pair(*, layered: bool) -> AsyncIterator[Pair]:
    async with rom_machine.hosts() as hosts:
        made = Pair(hosts, layered)
        await made.begin()
        yield made


@pytest.mark.parametrize("layered", [False, True], ids=["whole", "own part"])
async def test_alike_to_the_byte_with_all_that_was_written_meanwhile(layered: bool) -> None:
    async with pair(layered=layered) as p:
        await p.write(1, "-P 0x22 10M 3M")
        seen = await p.ready()
        assert seen[-1].done_bytes == seen[-1].total_bytes > 0
        await p.write(0, "-P 0x33 2M 1M")
        await p.write(1, "-z 11M 1M")
        await p.one.pause(p.vm_id)
        await mirror.finish(p.source, p.volumes)
        assert await mirror.jobs(p.source.door()) == []
        await close_exports(p.target)
        await p.end_both()
        p.check_alike()
        for number, what in ((0, "-P 0x33 2M 1M"), (1, "-P 0x22 10M 1M"), (1, "-P 0 11M 1M"), (1, "-P 0x22 12M 1M")):
            tool("qemu-io", "-f", "qcow2", "-c", f"read {what}", p.path(p.there, number))
        if layered:  # what both have in their image did not travel
            assert sum(Path(p.path(p.there, n)).stat().st_blocks for n in (0, 1)) * 512 < 20 << 20


async def test_who_asks_again_joins_what_goes_on() -> None:
    async with pair(layered=False) as p:
        before = {job.id for job in await mirror.jobs(p.source.door())}
        await p.mirror()
        assert {job.id for job in await mirror.jobs(p.source.door())} == before
        await p.ready()


async def test_a_target_that_dies_leaves_the_source_as_it_was() -> None:
    async with pair(layered=False) as p:
        await p.ready()
        await p.target.kill()
        await p.write(0, "-P 0x44 20M 1M")  # noticed by the mirror, not by the guest
        await rom_machine.until(lambda: "concluded" in p.source.jobs.values(), "the mirror's end")
        with pytest.raises(MigrationFailed):
            await p.ready()
        await mirror.drop(p.source)
        assert await mirror.jobs(p.source.door()) == []
        await p.write(0, "-P 0x55 21M 1M")
        assert (await p.source.refresh()).status is MachineStatus.RUNNING


async def test_dropped_it_can_begin_again() -> None:
    async with pair(layered=False) as p:
        await mirror.drop(p.source)
        await mirror.drop(p.source)
        await p.mirror()
        await p.ready()
        await p.one.pause(p.vm_id)
        await mirror.finish(p.source, p.volumes)
        await close_exports(p.target)
        await p.end_both()
        p.check_alike()


async def test_a_stranger_fills_no_disk() -> None:
    async with pair(layered=False) as p:
        await mirror.drop(p.source)
        p.to = msgspec.structs.replace(p.to, key_hex=tls.new_key())
        with pytest.raises(MigrationFailed):
            await p.mirror()
