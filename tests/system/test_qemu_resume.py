"""A copy of disks that was cut off goes on where it was, between real QEMUs, while the machine writes all the time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import msgspec
import pytest

from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu import refill
from novacron.agent.drivers.qemu.trail import name
from novacron.errors import MigrationFailed
from novacron.model.machine import MachineStatus
from novacron.model.migration import COPY_LOST, Goals, Progress, Tactics
from tests.system import rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu, until
from tests.system.rom_move import LOOPBACK, Link, link
from tests.system.test_qemu_disks import DiskMove
from tests.system.test_qemu_mirror import needs_qemu_img, tool

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu, needs_qemu_img]
MIB = 1 << 20
SIZE, FILLED = 256 * MIB, 240 * MIB
SPEED = Goals(bandwidth_bytes_per_s=192 * MIB)


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


class Resumed(DiskMove):
    """Its second disk is large and nearly full; it writes to three parts of both."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts)
        self.dice = random.Random(7)
        for host in (self.one, self.other):
            self.blank(host)
        tool("qemu-io", "-f", "qcow2", "-c", f"write -P 0x61 0 {FILLED}", str(self.path(self.one, 1)))

    def blank(self, host: Host) -> None:
        self.path(host, 1).unlink()
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(self.path(host, 1)), str(SIZE))

    async def write_on(self) -> None:
        while True:
            for number, mib in ((0, 0), (1, 8), (1, 232)):  # what comes early, and late, and what was blank
                what = f"-P {self.dice.randrange(1, 255)} {mib * 1024 + self.dice.randrange(4000) * 4}k 4k"
                await self.write(number, what)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        work = asyncio.create_task(self.write_on())
        try:
            yield
            assert not work.done(), "it stopped writing"
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def cut_off(self, between: Link, to: Reception) -> int:
        """Copied over the link until that is cut, half way or more; both sides taken back. The bytes that came."""
        assert to.disks is not None
        led = await between.lead_to(Reception(host=to.disks.host, port=to.disks.port))
        there = msgspec.structs.replace(to.disks, port=led.port)
        seen: list[Progress] = []
        half = asyncio.Event()

        def tell(progress: Progress) -> None:
            seen.append(progress)
            if progress.disk_copied_bytes > 0.6 * FILLED:
                half.set()

        copying = asyncio.create_task(
            self.source.copy_disks(self.vm_id, self.migration_id, there, self.volumes, SPEED, tell)
        )
        await asyncio.wait_for(half.wait(), 60)
        await between.cut(refuse=True)
        with pytest.raises(MigrationFailed):
            await copying
        await self.source.reclaim(self.vm_id, self.migration_id)
        assert await self.target.settle(self.vm_id, self.migration_id)
        return seen[-1].disk_copied_bytes

    async def again(self) -> Reception:
        """Another migration, whose target says what it has."""
        before, self.migration_id = self.migration_id, an_id()
        to = await self.target.accept(
            self.launch(self.other), Awaited(migration_id=self.migration_id, host=LOOPBACK, receives=self.volumes)
        )
        assert to.disks is not None
        disks = msgspec.structs.replace(to.disks, resumed=self.volumes, resumes=before)
        return msgspec.structs.replace(to, disks=disks)


async def arrive(move: Resumed, to: Reception) -> None:
    await move.send_all(to, Tactics())
    await move.take_over()
    await move.finish()
    await move.end(move.other)
    move.check_alike()


async def test_what_came_is_not_copied_again_and_nothing_is_missing(hosts: Hosts) -> None:
    move = Resumed(hosts)
    to = await move.prepare()
    assert to.disks is not None
    assert to.disks.resumable == move.volumes
    async with link() as between, move.writing():
        await move.write(1, "-P 0x71 1M 256k")
        came = await move.cut_off(between, to)
        assert came > FILLED // 2
        await move.write(1, "-P 0x72 2M 256k")  # where it had come
        await move.write(0, "-P 0x73 40M 64k")
        to = await move.again()
        copied = await move.copy(to)
        assert 0 < copied < 0.75 * FILLED
    await move.write(1, "-P 0x74 3M 256k")
    await arrive(move, to)
    for number, what in ((1, "-P 0x72 2M 256k"), (0, "-P 0x73 40M 64k"), (1, "-P 0x74 3M 256k")):
        move.holds(move.other, number, what)


async def test_cut_off_again_it_goes_on_again(hosts: Hosts) -> None:
    move = Resumed(hosts)
    to = await move.prepare()
    async with move.writing():
        async with link() as between:
            await move.cut_off(between, to)
        to = await move.again()
        assert to.disks is not None
        nowhere = msgspec.structs.replace(to.disks, port=1)
        with pytest.raises(MigrationFailed):  # the link is still broken
            await move.source.copy_disks(move.vm_id, move.migration_id, nowhere, move.volumes, SPEED, lambda _: None)
        await move.source.reclaim(move.vm_id, move.migration_id)
        assert await move.target.settle(move.vm_id, move.migration_id)
        await move.write(1, "-P 0x75 4M 256k")
        to = await move.again()
        assert await move.copy(to) < 0.75 * FILLED
    await arrive(move, to)


async def test_what_is_written_all_the_time_comes_when_the_guest_stands_still(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "TRIES", 1)
    move = Resumed(hosts)
    to = await move.prepare()
    async with link() as between:
        await move.cut_off(between, to)
    to = await move.again()

    async def at_one_place() -> None:
        while True:
            for number in range(2):
                await move.write(number, f"-P {move.dice.randrange(1, 255)} 5M 4k")

    for _ in range(5):  # of the last batch, which is small, until one was written to meanwhile
        work = asyncio.create_task(at_one_place())
        await move.copy(to)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        if len(move.machine().record.hot) == 2:
            break
        await move.source.reclaim(move.vm_id, move.migration_id)
    assert move.machine().record.hot == dict.fromkeys(move.volumes, (80,))
    await arrive(move, to)


async def test_without_its_trail_nothing_is_taken_for_come(hosts: Hosts) -> None:
    move = Resumed(hosts)
    to = await move.prepare()
    async with link() as between:
        await move.cut_off(between, to)
    node = f"v{move.volumes[1].replace('-', '')[-30:]}"
    gone = {"node": node, "name": name(move.migration_id)}
    await move.machine().door().execute("block-dirty-bitmap-remove", gone)
    to = await move.again()
    with pytest.raises(MigrationFailed) as refused:
        await move.copy(to)
    assert [reason.code for reason in refused.value.reasons] == [COPY_LOST]
    await move.one.ticking(move.vm_id)


async def test_a_target_that_was_killed_is_not_said_to_have_closed_its_disks(hosts: Hosts) -> None:
    move = Resumed(hosts)
    await move.prepare()
    rom_machine.kill(move.other.pids()[0])
    await until(lambda: move.at_target() is MachineStatus.CRASHED, "its end")
    assert not await move.target.settle(move.vm_id, move.migration_id)
