"""The QEMU driver moving machines with their disks: every way, alike to the byte, and back when it goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch, Layer
from novacron.agent.drivers.handoff import Awaited, Reception
from novacron.agent.drivers.qemu import mirror
from novacron.agent.drivers.qemu.devices import disk_id
from novacron.agent.drivers.qemu.machine import Machine
from novacron.agent.drivers.qemu.process import find_in
from novacron.errors import DriverError, MigrationFailed, NovaCronError
from novacron.model.machine import Disk, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Goals, Progress, Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_machine import Host, Hosts, an_id, kill, needs_qemu, until
from tests.system.rom_move import LOOPBACK, Move, link, nothing
from tests.system.test_qemu_mirror import needs_qemu_img, tool

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu, needs_qemu_img]
S = MachineStatus
SIZE = 64 << 20
SLOW = Goals(bandwidth_bytes_per_s=2 << 20)


class DiskMove(Move):
    """A machine with two disks of its own on each side; the first stands on an image both have."""

    def __init__(self, hosts: Hosts, pages: int = 0, stall_s: float = 30.0) -> None:
        super().__init__(hosts, pages, stall_s)
        self.volumes = (an_id(), an_id())
        self.base = self.one.root.parent / "base.raw"
        self.base.write_bytes(b"\x5a" * (8 << 20) + bytes(SIZE - (8 << 20)))
        for number in range(2):
            for host in (self.one, self.other):
                over = ("-b", str(self.base), "-F", "raw") if number == 0 else ()
                tool("qemu-img", "create", "-q", "-f", "qcow2", *over, str(self.path(host, number)), str(SIZE))
        for number, what in ((0, "-P 0x11 1M 5M"), (1, "-P 0x12 30M 6M")):
            tool("qemu-io", "-f", "qcow2", "-c", f"write {what}", str(self.path(self.one, number)))

    def path(self, host: Host, number: int) -> Path:
        return host.root.parent / f"{host.root.name}-{self.volumes[number]}.qcow2"

    def launch(self, host: Host) -> Launch:
        plain = host.launch(self.vm_id, pages=self.pages, wss=4096 if self.pages else 0)
        files = tuple(
            DiskFile(
                volume_id=volume_id,
                source=FileAt(self.path(host, number)),
                format="qcow2",
                backing=(Layer(FileAt(self.base), "raw"),) if number == 0 else (),
            )
            for number, volume_id in enumerate(self.volumes)
        )
        disks = tuple(
            Disk(volume_id=volume_id, size_bytes=SIZE, backing_digest="0" * 64 if number == 0 else "")
            for number, volume_id in enumerate(self.volumes)
        )
        spec = msgspec.structs.replace(plain.spec, disks=disks)
        return msgspec.structs.replace(plain, spec=spec, disks=files)

    async def prepare(self) -> Reception:
        await self.source.start(self.launch(self.one))
        await self.one.ticking(self.vm_id)
        return await self.await_it()

    async def await_it(self) -> Reception:
        return await self.target.accept(
            self.launch(self.other), Awaited(migration_id=self.migration_id, host=LOOPBACK, receives=self.volumes)
        )

    async def copy(self, to: Reception, goals: Goals = Goals()) -> int:  # noqa: B008 (frozen)
        assert to.disks is not None
        return await self.source.copy_disks(self.vm_id, self.migration_id, to.disks, self.volumes, goals, nothing)

    async def send_all(self, to: Reception, tactics: Tactics, goals: Goals = Goals()) -> None:  # noqa: B008 (frozen)
        await self.source.send(self.vm_id, self.migration_id, to, goals, nothing, tactics, self.volumes)

    async def copying(self) -> None:
        await until(lambda: len(self.machine().jobs) == len(self.volumes), "the copying of both disks")

    def machine(self) -> Machine:
        return self.source._fleet.machines[self.vm_id]

    async def write(self, number: int, what: str, *, at_target: bool = False) -> None:
        """A write by the running machine, through the same layers as its guest's."""
        driver = self.target if at_target else self.source
        device = f"/machine/peripheral/{disk_id(self.volumes[number])}/virtio-backend"
        line = f'qemu-io -d {device} "write {what}"'
        monitor = driver._fleet.machines[self.vm_id].door()
        assert await monitor.execute("human-monitor-command", {"command-line": line}) == ""

    def check_alike(self) -> None:
        for number in range(2):
            tool("qemu-img", "compare", str(self.path(self.one, number)), str(self.path(self.other, number)))

    def holds(self, host: Host, number: int, what: str) -> None:
        tool("qemu-io", "-f", "qcow2", "-c", f"read {what}", str(self.path(host, number)))

    async def end(self, host: Host) -> None:
        driver = self.source if host is self.one else self.target
        await driver.stop(self.vm_id, StopMode.FORCED, 0.0)


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


WAYS = {
    "live": Tactics(),
    "warm": Tactics(stands_still=True),
    "postcopy": Tactics(strategy=Strategy.POSTCOPY),
}


@pytest.mark.parametrize("way", WAYS)
async def test_disks_arrive_with_all_that_was_written(hosts: Hosts, way: str) -> None:
    with postcopy_allowed():
        move = DiskMove(hosts, pages=50)
        to = await move.prepare()
        assert to.disks is not None
        assert to.disks.layered == move.volumes[:1]
        copied = await move.copy(to)
        assert copied >= 11 << 20
        await move.write(0, "-P 0x21 2M 1M")
        await move.write(1, "-P 0x22 40M 1M")
        await move.send_all(to, WAYS[way])
        await move.source.open_postcopy(move.vm_id, move.migration_id)
        await move.take_over()
        assert (await move.source.fetch_rest(move.vm_id, move.migration_id, nothing)).done
        await move.finish()
        await move.write(1, "-P 0x23 50M 1M", at_target=True)
        await move.end(move.other)
        for number, what in (
            *((0, "-P 0x21 2M 1M"), (0, "-P 0x11 3M 3M"), (0, "-P 0x5a 7M 1M")),
            *((1, "-P 0x22 40M 1M"), (1, "-P 0x12 30M 6M"), (1, "-P 0x23 50M 1M")),
        ):
            move.holds(move.other, number, what)
        # what both have in their image did not travel
        assert move.path(move.other, 0).stat().st_blocks * 512 < 12 << 20


async def test_a_guest_that_is_shut_down_boots_from_what_was_copied(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    await move.copy(to)
    await move.write(1, "-P 0x31 41M 1M")
    report = await move.source.halt(move.vm_id, move.migration_id, move.volumes, 0.3)
    assert report.status is S.STOPPED
    await move.source.halt(move.vm_id, move.migration_id, move.volumes, 0.3)  # asked again
    await move.target.settle(move.vm_id, move.migration_id)
    await move.target.settle(move.vm_id, move.migration_id)
    assert move.at_target() is S.ABSENT
    move.check_alike()
    await move.target.start(move.launch(move.other))
    await move.other.ticking(move.vm_id)


async def test_the_disks_of_a_machine_at_rest(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.await_it()
    opened = await move.source.open_disks(move.launch(move.one), move.migration_id)
    assert opened.status is S.PAUSED
    assert (await move.source.open_disks(move.launch(move.one), move.migration_id)).pid == opened.pid
    await move.copy(to)
    await move.source.halt(move.vm_id, move.migration_id, move.volumes, 0.0)
    await move.target.settle(move.vm_id, move.migration_id)
    assert move.one.console(move.vm_id) == move.other.console(move.vm_id) == b""
    move.check_alike()


async def test_a_machine_that_ended_before_its_disks_were_alike_is_not_moved(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    copying = asyncio.create_task(move.copy(to, SLOW))
    await move.copying()
    kill(move.one.pids()[0])
    await until(lambda: move.at_source() is S.CRASHED, "its end")
    with pytest.raises(MigrationFailed):
        await move.source.halt(move.vm_id, move.migration_id, move.volumes, 1.0)
    with pytest.raises(NovaCronError):  # as it is seen: the process gone, its monitor lost, the copy called off
        await copying


async def test_what_is_not_alike_is_not_sent(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    with pytest.raises(MigrationFailed):
        await move.send_all(to, Tactics())
    await move.copy(to)
    await mirror.drop(move.machine())
    with pytest.raises(MigrationFailed):
        await move.send_all(to, Tactics())
    await move.one.ticking(move.vm_id)


async def test_taken_back_while_it_copies_it_can_begin_again(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    copying = asyncio.create_task(move.copy(to, SLOW))
    await move.copying()
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    with pytest.raises((MigrationFailed, DriverError)):  # it may have been about to say that it had begun
        await copying
    assert await mirror.jobs(move.machine().door()) == []
    await move.copy(to)
    await move.send_all(to, Tactics())
    await move.take_over()
    await move.finish()


async def test_an_agent_that_comes_anew_joins_the_copying(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    goals = Goals(bandwidth_bytes_per_s=8 << 20)
    copying = asyncio.create_task(move.copy(to, goals))
    await move.copying()
    copying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await copying
    before = {job.id for job in await mirror.jobs(move.machine().door())}
    await move.restart_source()
    assert {job.id for job in await mirror.jobs(move.machine().door())} == before
    await move.copy(to, goals)
    await move.send_all(to, Tactics())
    await move.take_over()
    await move.finish()


@pytest.mark.parametrize("moment", ["copying", "alike", "sending"])
async def test_a_target_that_dies_leaves_the_source_and_its_disks(hosts: Hosts, moment: str) -> None:
    move = DiskMove(hosts, pages=50)
    to = await move.prepare()
    work: asyncio.Task[object]
    if moment == "copying":
        work = asyncio.create_task(move.copy(to, SLOW))
        await move.copying()
    else:
        await move.copy(to)
        work = asyncio.create_task(move.send_all(to, Tactics(), SLOW))
        if moment == "sending":
            await until(lambda: move.state(move.source) == "active", "the stream")
    kill(move.other.pids()[0])
    with pytest.raises(MigrationFailed):
        await work
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.RUNNING
    await move.write(1, "-P 0x41 42M 1M")
    await move.one.ticking(move.vm_id)
    assert await mirror.jobs(move.machine().door()) == []
    await move.end(move.one)
    move.holds(move.one, 1, "-P 0x41 42M 1M")


async def test_a_link_that_hangs_is_given_up_and_the_guest_writes_on(hosts: Hosts) -> None:
    async with link() as between:
        move = DiskMove(hosts, stall_s=1.0)
        to = await move.prepare()
        assert to.disks is not None
        through = await between.lead_to(Reception(host=to.disks.host, port=to.disks.port))
        led = msgspec.structs.replace(to, disks=msgspec.structs.replace(to.disks, port=through.port))
        copying = asyncio.create_task(move.copy(led, SLOW))
        await move.copying()
        before = between.carried
        await until(lambda: between.carried > before, "more of the disks")
        between.stall()
        with pytest.raises(MigrationFailed):
            await asyncio.wait_for(copying, 20)
        await asyncio.wait_for(move.source.reclaim(move.vm_id, move.migration_id), 15)
        await asyncio.wait_for(move.write(1, "-P 0x51 43M 1M"), 5)
        await move.one.ticking(move.vm_id)


async def test_progress_is_told(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    to = await move.prepare()
    seen: list[Progress] = []
    goals = Goals(bandwidth_bytes_per_s=16 << 20)
    assert to.disks is not None
    await move.source.copy_disks(move.vm_id, move.migration_id, to.disks, move.volumes, goals, seen.append)
    assert [one.disk_copied_bytes for one in seen] == sorted(one.disk_copied_bytes for one in seen)
    assert seen[-1].disk_copied_bytes == seen[-1].disk_total_bytes > 0
    assert find_in(move.one.root / move.vm_id, move.vm_id) is not None


# -- within one node ---------------------------------------------------------------------------------------------


def elsewhere(move: DiskMove) -> tuple[tuple[DiskFile, ...], MachineSpec]:
    """The machine's disks in the files of its other host, as if that were another pool of this one."""
    launch = move.launch(move.other)
    there = tuple(msgspec.structs.replace(disk, pool_id="elsewhere") for disk in launch.spec.disks)
    return launch.disks, msgspec.structs.replace(launch.spec, disks=there)


async def test_disks_change_their_place_under_a_machine_that_runs(hosts: Hosts) -> None:
    move = DiskMove(hosts, pages=50)
    await move.source.start(move.launch(move.one))
    await move.one.ticking(move.vm_id)
    files, wanted = elsewhere(move)
    assert await move.source.copy_here(move.vm_id, move.migration_id, files, Goals(), nothing) >= 11 << 20
    await move.write(0, "-P 0x21 2M 1M")
    for _ in range(2):
        assert (await move.source.pivot(move.vm_id, move.migration_id, wanted)).status is S.RUNNING
    await move.write(1, "-P 0x22 40M 1M")
    for number in range(2):
        tool("qemu-io", "-f", "qcow2", "-c", "write -P 0xee 50M 1M", str(move.path(move.one, number)))  # nobody has it
    await move.one.ticking(move.vm_id, 100)
    # and back, as another move does; the names of its parts have changed meanwhile
    for number in range(2):
        move.path(move.one, number).unlink()
        over = ("-b", str(move.base), "-F", "raw") if number == 0 else ()
        tool("qemu-img", "create", "-q", "-f", "qcow2", *over, str(move.path(move.one, number)), str(SIZE))
    launch, again = move.launch(move.one), an_id()
    await move.source.copy_here(move.vm_id, again, launch.disks, Goals(), nothing)
    await move.source.pivot(move.vm_id, again, launch.spec)
    await move.write(1, "-P 0x23 41M 1M")
    move.check()
    await move.end(move.one)
    for number, what in ((0, "-P 0x21 2M 1M"), (0, "-P 0x11 3M 3M"), (0, "-P 0x5a 7M 1M")):
        move.holds(move.one, number, what)
    for what in ("-P 0x22 40M 1M", "-P 0x23 41M 1M", "-P 0x12 30M 6M"):
        move.holds(move.one, 1, what)


async def test_moved_within_its_node_it_still_moves_to_another(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    await move.source.start(move.launch(move.one))
    files, wanted = elsewhere(move)
    await move.source.copy_here(move.vm_id, move.migration_id, files, Goals(), nothing)
    await move.source.pivot(move.vm_id, move.migration_id, wanted)
    third = DiskMove(hosts)
    third.vm_id, third.volumes, third.base = move.vm_id, move.volumes, move.base
    for number in range(2):
        over = ("-b", str(move.base), "-F", "raw") if number == 0 else ()
        tool("qemu-img", "create", "-q", "-f", "qcow2", *over, str(third.path(third.other, number)), str(SIZE))
    to = await third.await_it()
    assert to.disks is not None
    await move.source.copy_disks(move.vm_id, third.migration_id, to.disks, move.volumes, Goals(), nothing)
    await move.source.send(move.vm_id, third.migration_id, to, Goals(), nothing, Tactics(), move.volumes)
    await third.take_over()
    await third.other.ticking(move.vm_id)
    await third.end(third.other)
    third.holds(third.other, 1, "-P 0x12 30M 6M")


async def test_taken_back_within_its_node_it_works_with_what_it_had(hosts: Hosts) -> None:
    move = DiskMove(hosts)
    await move.source.start(move.launch(move.one))
    files, wanted = elsewhere(move)
    copying = asyncio.create_task(move.source.copy_here(move.vm_id, move.migration_id, files, SLOW, nothing))
    await move.copying()
    with pytest.raises(MigrationFailed):
        await move.source.pivot(move.vm_id, move.migration_id, wanted)
    await move.source.reclaim(move.vm_id, move.migration_id)
    with pytest.raises((MigrationFailed, DriverError)):
        await copying
    await move.write(1, "-P 0x24 42M 1M")
    await move.source.copy_here(move.vm_id, move.migration_id, files, Goals(), nothing)
    await move.restart_source()
    await move.source.pivot(move.vm_id, move.migration_id, wanted)
    await move.write(1, "-P 0x25 43M 1M")
    await move.end(move.one)
    for what in ("-P 0x24 42M 1M", "-P 0x25 43M 1M"):
        move.holds(move.other, 1, what)
