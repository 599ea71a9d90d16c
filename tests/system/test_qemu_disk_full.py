"""A disk that is full: the machine stands still, says for which volume, and goes on by itself; nothing is corrupted."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novacron.lab.guest.build import GuestFiles
from novacron.model.machine import MachineReport, MachineStatus
from tests.system import rom_machine
from tests.system.rom_machine import Hosts, an_id, needs_qemu, until
from tests.system.test_qemu_adjust import hot, with_disks
from tests.system.test_qemu_linux import booted, guest, launch, say

__all__ = ["guest"]
pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.root, needs_qemu]
CLONE_NEWNS, MS_REMOUNT, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 32, 0x4000, 1 << 18, 2
S = MachineStatus
libc = ctypes.CDLL(None, use_errno=True)
SMALL_MIB, ENOUGH_MIB = 2, 64
WRITTEN = 1024  # blocks of 4 KiB, 4 MiB: slow work for an emulated guest


def do(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(path: Path, size_mib: int, flags: int = 0) -> None:
    do(libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", flags, f"size={size_mib}M".encode()))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of SMALL_MIB that this process and its children alone see."""
    with Path("/proc/thread-self/ns/mnt").open() as home:
        if libc.unshare(CLONE_NEWNS):
            pytest.skip("this user may make no mount namespace")
        try:
            do(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
            mount(tmp_path, SMALL_MIB)
            yield tmp_path
            do(libc.umount2(str(tmp_path).encode(), MNT_DETACH))
        finally:
            do(libc.setns(home.fileno(), CLONE_NEWNS))


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


@pytest.mark.parametrize("restarted", [False, True], ids=["watched", "agent-restarted"])
async def test_a_full_disk_stalls_the_machine_until_there_is_room(
    small: Path, hosts: Hosts, guest: GuestFiles, restarted: bool
) -> None:
    host = hosts.new()
    driver = host.driver()
    disk = hot(0, 64)
    plain = with_disks(launch(host, an_id(), guest), small, disk)
    vm_id = await booted(driver, host, plain)
    heard: list[MachineReport] = []
    driver.subscribe(heard.append)
    writing = asyncio.create_task(say_long(plain, f"write sda 0 {WRITTEN} 3"))
    await until(lambda: heard and heard[-1].status is S.STALLED, "the disk is full")
    assert heard[-1].full_volumes == (disk.volume_id,)
    assert disk.volume_id in heard[-1].reason
    assert "no room" in heard[-1].reason
    if restarted:
        await driver.close()
        driver = host.driver()
        (found,) = await driver.adopt(host.run_dirs())
        assert (found.status, found.full_volumes) == (S.STALLED, (disk.volume_id,))
        driver.subscribe(heard.append)
    assert await host.silent(vm_id)
    mount(small, ENOUGH_MIB, MS_REMOUNT)
    await until(lambda: heard[-1].status is S.RUNNING, "it goes on by itself")
    assert await writing == b"ok"
    assert await say(plain, f"compare sda 0 {WRITTEN} 3".encode()) == b"0"
    assert heard[-1].full_volumes == ()


async def test_a_person_may_resume_it_too(small: Path, hosts: Hosts, guest: GuestFiles) -> None:
    host = hosts.new()
    driver = host.driver()
    plain = with_disks(launch(host, an_id(), guest), small, hot(0, 64))
    vm_id = await booted(driver, host, plain)
    heard: list[MachineReport] = []
    driver.subscribe(heard.append)
    writing = asyncio.create_task(say_long(plain, f"write sda 0 {WRITTEN} 3"))
    await until(lambda: heard and heard[-1].status is S.STALLED, "the disk is full")
    mount(small, ENOUGH_MIB, MS_REMOUNT)
    await driver.resume(vm_id)
    assert await writing == b"ok"


async def test_one_that_was_paused_meanwhile_waits_to_be_resumed(small: Path, hosts: Hosts, guest: GuestFiles) -> None:
    host = hosts.new()
    driver = host.driver()
    plain = with_disks(launch(host, an_id(), guest), small, hot(0, 64))
    vm_id = await booted(driver, host, plain)
    heard: list[MachineReport] = []
    driver.subscribe(heard.append)
    writing = asyncio.create_task(say_long(plain, f"write sda 0 {WRITTEN} 3"))
    await until(lambda: heard and heard[-1].status is S.STALLED, "the disk is full")
    await driver.pause(vm_id)
    watchers = driver._fleet.machines[vm_id]._tasks
    mount(small, ENOUGH_MIB, MS_REMOUNT)
    await until(lambda: not watchers, "nobody looks for room any more")
    assert heard[-1].status is S.STALLED
    await driver.resume(vm_id)
    assert await writing == b"ok"


async def say_long(what: rom_machine.Launch, line: str) -> bytes:
    ((_, port),) = what.nics[0].forwards
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line}\n".encode())
    answer = await asyncio.wait_for(reader.readline(), 60)
    writer.close()
    return answer.strip()
