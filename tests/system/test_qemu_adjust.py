"""Hardware changed while QEMU runs: disks and cards come and go, and the machine still moves."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import QemuDriver, devices
from novacron.agent.drivers.qemu.look import look
from novacron.model.machine import HOT_SLOT, Disk, MachineStatus, Qos
from novacron.model.migration import Goals
from tests.system import rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
MIB = 1 << 20


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return tmp_path


def with_disks(launch: Launch, pool: Path, *disks: Disk) -> Launch:
    """The launch with these disks, made when missing."""
    files = []
    for disk in disks:
        path = pool / f"{disk.volume_id}.qcow2"
        if not path.exists():
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(disk.size_bytes)], check=True)
        files.append(DiskFile(volume_id=disk.volume_id, source=FileAt(path), format="qcow2"))
    spec = msgspec.structs.replace(launch.spec, disks=disks)
    return msgspec.structs.replace(launch, spec=spec, disks=tuple(files))


def hot(number: int, size_mib: int = 1) -> Disk:
    return Disk(volume_id=an_id(), size_bytes=size_mib * MIB, slot=HOT_SLOT + number)


def board(number: int) -> Disk:
    return Disk(volume_id=an_id(), size_bytes=MIB, slot=number)


async def started(host: Host, pool: Path, *disks: Disk) -> tuple[QemuDriver, Launch]:
    driver = host.driver()
    launch = with_disks(host.launch(an_id(), memory_mib=128), pool, *disks)
    await driver.start(launch)
    await host.ticking(launch.spec.vm_id)
    return driver, launch


async def names(driver: QemuDriver, launch: Launch) -> set[str]:
    machine = driver._fleet.machines[launch.spec.vm_id]
    seen = await look(machine, launch.spec)
    assert {f"v{volume.replace('-', '')[-30:]}" for volume in seen.disks} <= seen.nodes
    left = [node for node in seen.nodes if node.startswith("v")]
    assert len(left) == len(seen.disks), "a node was left open"
    return set(seen.disks)


async def moved(vm_id: str, source: QemuDriver, target: QemuDriver, there: Launch) -> None:
    migration_id = an_id()
    to = await target.accept(there, Awaited(migration_id=migration_id, host="127.0.0.1"))
    await source.send(vm_id, migration_id, to, Goals(), lambda _: None)
    await target.take_over(vm_id, migration_id, 2)
    await target.verify(vm_id)
    await source.release(vm_id, migration_id)


async def test_disks_come_and_go_and_the_machine_moves_with_what_it_then_has(hosts: Hosts, pool: Path) -> None:
    one, other = hosts.new(), hosts.new()
    root, a, b, c = board(1), hot(0), hot(1), hot(2)
    driver, launch = await started(one, pool, root)
    vm_id = launch.spec.vm_id
    for disks in ((root, a), (root, a, b), (root, a, b, c), (root, a, c), (root, c)):
        done = await driver.adjust(with_disks(launch, pool, *disks))
        assert (done.pending, set(done.now.disks)) == ((), set(disks))
        assert await names(driver, launch) == {disk.volume_id for disk in disks}
    target = other.driver()
    there = with_disks(other.launch(vm_id, memory_mib=128), pool, *done.now.disks)
    await moved(vm_id, driver, target, there)
    await other.ticking(vm_id)
    assert await names(target, there) == {root.volume_id, c.volume_id}
    done = await target.adjust(with_disks(there, pool, root, a))  # and goes on adjusting there
    assert (done.pending, set(done.now.disks)) == ((), {root, a})


async def test_asked_again_it_finds_its_work_done_also_after_another_agent_came(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    root, more = board(1), hot(0)
    driver, launch = await started(host, pool, root)
    wished = with_disks(launch, pool, root, more)
    first = await driver.adjust(wished)
    assert await driver.adjust(wished) == first
    await driver.close()
    driver = host.driver()
    await driver.adopt(host.run_dirs())
    assert (await driver.adjust(wished)).now == first.now
    assert (await driver.adjust(with_disks(launch, pool, root))).now.disks == (root,)


async def test_what_an_agent_left_half_done_is_finished(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    root, more, never = board(1), hot(0), hot(1)
    driver, launch = await started(host, pool, root)
    wished = with_disks(launch, pool, root, more, never)
    machine = driver._fleet.machines[launch.spec.vm_id]
    for file in wished.disks[1:]:  # it died after it had opened them
        await machine.door().execute("blockdev-add", devices.storage(file))
    done = await driver.adjust(with_disks(launch, pool, root, more))
    assert done.pending == ()
    assert await names(driver, launch) == {root.volume_id, more.volume_id}


async def test_a_disk_on_the_board_stays_until_the_end_and_so_it_is_said(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    root, second = board(1), board(2)
    driver, launch = await started(host, pool, root, second)
    done = await driver.adjust(with_disks(launch, pool, root))
    assert [(reason.code, reason.subject) for reason in done.pending] == [("board.leaves_at_end", second.volume_id)]
    assert set(done.now.disks) == {root, second}
    assert done.report.status is MachineStatus.RUNNING


async def test_a_small_machine_takes_nothing_while_it_runs(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    driver = host.driver()
    launch = with_disks(host.launch(an_id(), memory_mib=32), pool, board(1))
    await driver.start(launch)
    done = await driver.adjust(with_disks(launch, pool, *launch.spec.disks, board(2)))
    assert [reason.code for reason in done.pending] == ["plug.waits"]
    assert done.now.disks == launch.spec.disks


async def test_a_disk_grows_and_is_limited_as_it_runs(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    root, more = board(1), hot(0)
    driver, launch = await started(host, pool, root, more)
    qos = Qos(iops=100, bytes_per_s=MIB)
    wished = tuple(msgspec.structs.replace(disk, size_bytes=4 * MIB, qos=qos) for disk in (root, more))
    done = await driver.adjust(with_disks(launch, pool, *wished))
    assert (done.pending, set(done.now.disks)) == ((), set(wished))
    runs = await look(driver._fleet.machines[launch.spec.vm_id], launch.spec)
    assert {(seen.size_bytes, seen.qos) for seen in runs.disks.values()} == {(4 * MIB, qos)}
    free = tuple(msgspec.structs.replace(disk, qos=Qos()) for disk in wished)
    assert set((await driver.adjust(with_disks(launch, pool, *free))).now.disks) == set(free)
    smaller = tuple(msgspec.structs.replace(disk, size_bytes=MIB) for disk in free)
    runs = await look(driver._fleet.machines[launch.spec.vm_id], launch.spec)
    await driver.adjust(with_disks(launch, pool, *smaller))
    assert {seen.size_bytes for seen in runs.disks.values()} == {4 * MIB}  # never smaller


async def test_limits_hold_from_the_start_and_travel(hosts: Hosts, pool: Path) -> None:
    one, other = hosts.new(), hosts.new()
    disk = msgspec.structs.replace(hot(0), qos=Qos(iops=7))
    driver, launch = await started(one, pool, disk)
    target = other.driver()
    there = with_disks(other.launch(launch.spec.vm_id, memory_mib=128), pool, disk)
    await moved(launch.spec.vm_id, driver, target, there)
    runs = await look(target._fleet.machines[launch.spec.vm_id], there.spec)
    assert [seen.qos for seen in runs.disks.values()] == [disk.qos]


async def test_a_disk_that_cannot_be_opened_is_a_reason_and_leaves_nothing(hosts: Hosts, pool: Path) -> None:
    host = hosts.new()
    root, bad, good = board(1), hot(0), hot(1)
    driver, launch = await started(host, pool, root)
    wished = with_disks(launch, pool, root, bad, good)
    (pool / f"{bad.volume_id}.qcow2").write_bytes(b"no image")
    done = await driver.adjust(wished)
    assert [(reason.code, reason.subject) for reason in done.pending] == [("qemu.refused", bad.volume_id)]
    assert set(done.now.disks) == {root, good}
    assert await names(driver, launch) == {root.volume_id, good.volume_id}
