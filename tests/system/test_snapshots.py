"""Snapshots of real machines: what was in memory and on disk comes back, byte for byte, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu.command import VARS_FILE
from novacron.agent.drivers.qemu.firmware import find_uefi
from novacron.errors import DriverError, StateConflict, Unsupported
from novacron.model.machine import Firmware, MachineReport, MachineStatus, StopMode
from novacron.model.migration import Goals
from novacron.model.snapshot import Consistency
from tests.system import rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, kill, needs_qemu, until, with_spec

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
S = MachineStatus


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


def img(tool: str, *words: str) -> str:
    return subprocess.run([tool, *words], check=True, capture_output=True, text=True).stdout


def write(path: Path, pattern: int, at: str = "0", length: str = "4M") -> None:
    img("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} {length}", str(path))


def holds(path: Path, pattern: int, at: str = "0", length: str = "4M") -> bool:
    said = img("qemu-io", "-f", "qcow2", "-c", f"read -P {pattern} {at} {length}", str(path))
    return "Pattern verification failed" not in said


def points(path: Path) -> dict[str, int]:
    """Names of the snapshots in a disk → what their memory takes."""
    told: dict[str, Any] = json.loads(img("qemu-img", "info", "-U", "--output=json", str(path)))
    return {one["name"]: one["vm-state-size"] for one in told.get("snapshots", [])}


class Subject:
    """A machine of two qcow2 disks that ticks and checks its memory."""

    def __init__(self, host: Host, disks: int = 2, form: str = "qcow2") -> None:
        self.host, self.driver, self.vm_id = host, host.driver(), an_id()
        self.form = form
        self.paths = [host.root.parent / f"{an_id()}.{form}" for _ in range(disks)]
        for path in self.paths:
            img("qemu-img", "create", "-q", "-f", form, str(path), "64M")

    def launch(self, host: Host | None = None) -> Launch:
        disks = tuple(DiskFile(volume_id=path.stem, source=FileAt(path), format=self.form) for path in self.paths)
        made = (host or self.host).launch(self.vm_id, pages=20, wss=2048)
        return msgspec.structs.replace(made, disks=disks)

    async def start(self) -> None:
        await self.driver.start(self.launch())
        await self.host.ticking(self.vm_id)

    async def stop(self) -> None:
        await self.driver.stop(self.vm_id, StopMode.FORCED, 0)

    async def new_agent(self) -> None:
        await self.driver.close()
        self.driver = self.host.driver()
        await self.driver.adopt(self.host.run_dirs())

    def seq(self) -> int:
        return self.host.ticks(self.vm_id)[-1][0]

    def status(self) -> MachineStatus:
        report = self.driver.report(self.vm_id)
        assert report is not None
        return report.status

    async def whole(self) -> None:
        """Nothing of any disk is corrupt."""
        for path in self.paths:
            found = subprocess.run(["qemu-img", "check", "-q", str(path)], check=False)
            assert found.returncode in (0, 3), path  # 3: only leaked space


@pytest.fixture
async def subject(hosts: Hosts) -> Subject:
    return Subject(hosts.new())


async def test_disks_of_a_running_machine_are_taken_together_and_while_it_ticks(subject: Subject) -> None:
    for path in subject.paths:
        write(path, 1)
    await subject.start()
    taken = await subject.driver.take_snapshot(subject.vm_id, first := an_id())
    assert taken.consistency is Consistency.CRASH
    assert [points(path) for path in subject.paths] == [{first: 0}, {first: 0}]
    await subject.host.ticking(subject.vm_id)
    again = await subject.driver.take_snapshot(subject.vm_id, first)
    assert (again.consistency, [points(path) for path in subject.paths]) == (Consistency.CRASH, [{first: 0}] * 2)
    await subject.stop()
    for path in subject.paths:
        write(path, 2)
        img("qemu-img", "snapshot", "-q", "-a", first, str(path))
        assert holds(path, 1)


@pytest.mark.parametrize("memory", [False, True])
async def test_a_snapshot_of_one_disk_alone_is_never_left(subject: Subject, memory: bool) -> None:
    img("qemu-img", "snapshot", "-q", "-c", snapshot := an_id(), str(subject.paths[1]))
    write(subject.paths[1], 7)
    await subject.start()
    await subject.driver.take_snapshot(subject.vm_id, snapshot, memory=memory)  # the one disk's was of another moment
    await subject.stop()
    for path in subject.paths:
        assert snapshot in points(path)
    img("qemu-img", "snapshot", "-q", "-a", snapshot, str(subject.paths[1]))
    assert holds(subject.paths[1], 7)


async def test_what_was_in_memory_goes_on_from_the_snapshot(subject: Subject) -> None:
    write(subject.paths[0], 1)
    await subject.start()
    before = subject.seq()
    taken = await subject.driver.take_snapshot(subject.vm_id, snapshot := an_id(), memory=True)
    assert taken.consistency is Consistency.MEMORY
    assert taken.memory_bytes > 100_000
    assert taken.stood_still_ms > 0
    assert subject.status() is S.RUNNING
    after = subject.seq()
    await subject.host.ticking(subject.vm_id, 50)
    gone_by = subject.seq()
    await subject.stop()
    write(subject.paths[0], 2)
    read = len(subject.host.ticks(subject.vm_id))
    report = await subject.driver.restore(subject.launch(), snapshot)
    assert report.status is S.RUNNING
    await subject.host.ticking(subject.vm_id, 30)
    seen = subject.host.ticks(subject.vm_id)[read:]
    assert before <= seen[0][0] <= after + 2 < gone_by
    assert [seq for seq, _ in seen] == list(range(seen[0][0], seen[0][0] + len(seen)))
    assert all(bad == 0 for _, bad in seen)
    await subject.stop()
    assert holds(subject.paths[0], 1)
    await subject.whole()


async def test_deleting_the_middle_one_while_it_runs_leaves_the_others_content(subject: Subject) -> None:
    path = subject.paths[0]
    first, second, third = an_id(), an_id(), an_id()
    for number, snapshot in enumerate((first, second, third), 1):
        write(path, number)
        for each in subject.paths:
            img("qemu-img", "snapshot", "-q", "-c", snapshot, str(each))
    await subject.start()
    await subject.driver.take_snapshot(subject.vm_id, with_memory := an_id(), memory=True)
    await subject.driver.delete_snapshot(subject.vm_id, second)
    await subject.driver.delete_snapshot(subject.vm_id, second)
    assert set(points(path)) == {first, third, with_memory}
    await subject.driver.delete_snapshot(subject.vm_id, with_memory)
    await subject.host.ticking(subject.vm_id)
    assert set(points(path)) == {first, third}
    await subject.stop()
    for snapshot, number in ((first, 1), (third, 3), (first, 1)):  # a tree: from one branch to the other and back
        img("qemu-img", "snapshot", "-q", "-a", snapshot, str(path))
        assert holds(path, number)
    await subject.whole()


async def test_memory_needs_a_disk_it_can_lie_in(hosts: Hosts) -> None:
    bare, raw = Subject(hosts.new(), disks=0), Subject(hosts.new(), disks=1, form="raw")
    for subject, why in ((bare, "it has no disk"), (raw, "not qcow2")):
        await subject.start()
        with pytest.raises(Unsupported, match=why) as refused:
            await subject.driver.take_snapshot(subject.vm_id, an_id(), memory=True)
        assert refused.value.reasons[0].remedy
        await subject.host.ticking(subject.vm_id)


async def test_what_lies_elsewhere_is_taken_while_the_guest_stands(hosts: Hosts) -> None:
    subject = Subject(hosts.new(), disks=1, form="raw")
    await subject.start()
    stood: list[bool] = []

    async def beside() -> None:
        stood.append(await subject.host.silent(subject.vm_id))

    taken = await subject.driver.take_snapshot(subject.vm_id, an_id(), beside=beside)
    assert stood == [True]
    assert taken.stood_still_ms >= 100

    async def broken() -> None:
        raise DriverError("the pool is gone")

    with pytest.raises(DriverError, match="the pool is gone"):
        await subject.driver.take_snapshot(subject.vm_id, an_id(), beside=broken)
    await subject.host.ticking(subject.vm_id)
    assert subject.status() is S.RUNNING


async def test_a_paused_machine_stays_paused(subject: Subject) -> None:
    await subject.start()
    await subject.driver.pause(subject.vm_id)
    taken = await subject.driver.take_snapshot(subject.vm_id, an_id(), memory=True)
    assert taken.consistency is Consistency.MEMORY
    assert taken.stood_still_ms == 0
    await until(lambda: subject.status() is S.PAUSED, "pause")
    assert await subject.host.silent(subject.vm_id)


async def test_an_agent_that_dies_while_memory_is_saved_is_followed_by_one_that_finishes(subject: Subject) -> None:
    await subject.start()
    snapshot = an_id()
    work = asyncio.create_task(subject.driver.take_snapshot(subject.vm_id, snapshot, memory=True))
    await until(lambda: subject.status() is S.PAUSED or work.done(), "the guest to stand still")
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await subject.new_agent()
    await until(lambda: subject.status() is S.RUNNING, "the new agent to see it run")
    taken = await subject.driver.take_snapshot(subject.vm_id, snapshot, memory=True)
    assert taken.memory_bytes > 100_000
    assert all(snapshot in points(path) for path in subject.paths)
    await subject.host.ticking(subject.vm_id)


async def test_a_qemu_killed_while_it_saves_leaves_whole_disks(subject: Subject) -> None:
    write(subject.paths[0], 5)
    await subject.start()
    snapshot = an_id()
    report = subject.driver.report(subject.vm_id)
    assert report is not None
    work = asyncio.create_task(subject.driver.take_snapshot(subject.vm_id, snapshot, memory=True))
    await until(lambda: subject.status() is not S.RUNNING or work.done(), "the guest to stand still")
    kill(report.pid)
    await asyncio.gather(work, return_exceptions=True)
    await until(lambda: subject.status() is S.CRASHED, "its end")
    await subject.whole()
    assert holds(subject.paths[0], 5)
    await subject.start()
    await subject.driver.delete_snapshot(subject.vm_id, snapshot)
    assert all(snapshot not in points(path) for path in subject.paths)


async def test_a_machine_cannot_be_restored_beside_itself_nor_from_what_is_not_there(subject: Subject) -> None:
    await subject.start()
    await subject.driver.take_snapshot(subject.vm_id, of_disks := an_id())
    with pytest.raises(StateConflict):
        await subject.driver.restore(subject.launch(), of_disks)
    await subject.stop()
    for snapshot in (of_disks, an_id()):
        with pytest.raises(Unsupported):
            await subject.driver.restore(subject.launch(), snapshot)
        assert subject.host.pids() == []


async def test_a_machine_that_moved_takes_its_snapshots_along(hosts: Hosts) -> None:
    subject, other = Subject(hosts.new()), hosts.new()
    target = other.driver()
    await subject.start()
    await subject.driver.take_snapshot(subject.vm_id, snapshot := an_id(), memory=True)
    migration = an_id()
    to = await target.accept(subject.launch(other), Awaited(migration_id=migration, host="127.0.0.1"))
    await subject.driver.send(subject.vm_id, migration, to, Goals(), lambda _: None)
    await target.take_over(subject.vm_id, migration, 2)
    await subject.driver.release(subject.vm_id, migration)
    await target.verify(subject.vm_id)
    taken = await target.take_snapshot(subject.vm_id, second := an_id(), memory=True)
    assert taken.consistency is Consistency.MEMORY
    assert set(points(subject.paths[0])) == {snapshot, second}
    await target.stop(subject.vm_id, StopMode.FORCED, 0)
    for one in (snapshot, second):
        before = len(other.ticks(subject.vm_id))
        report: MachineReport = await target.restore(subject.launch(other), one)
        assert report.status is S.RUNNING
        await other.ticking(subject.vm_id, 30)
        assert all(bad == 0 for _, bad in other.ticks(subject.vm_id)[before:])
        await target.stop(subject.vm_id, StopMode.FORCED, 0)


@pytest.mark.skipif(find_uefi() is None, reason="OVMF is not installed")
async def test_firmware_variables_come_back_with_memory(subject: Subject) -> None:
    """They lie beside the machine, not in its disks: what is in its flash memory is written there when it is loaded."""

    def launch() -> Launch:
        made = with_spec(subject.launch(), firmware=Firmware.UEFI, memory_mib=128)
        return msgspec.structs.replace(made, firmware=None)

    variables = launch().run_dir / VARS_FILE
    await subject.driver.start(launch())
    taken = await subject.driver.take_snapshot(subject.vm_id, snapshot := an_id(), memory=True)
    assert taken.consistency is Consistency.MEMORY
    then = variables.read_bytes()
    await subject.stop()
    variables.write_bytes(b"\xff" * len(then))
    report = await subject.driver.restore(launch(), snapshot)
    assert report.status is S.RUNNING
    await until(lambda: variables.read_bytes()[:64] == then[:64], "the variables to be written back")
    await subject.driver.delete_snapshot(subject.vm_id, snapshot)
