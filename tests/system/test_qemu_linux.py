"""The QEMU driver with a guest that has a kernel: it shuts down when asked, and its end is known whoever watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from novacron.agent.drivers.base import Launch, NicPlug
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import QemuDriver
from novacron.agent.drivers.qemu.status import GUEST_SHUTDOWN
from novacron.lab.failure import LabFailed
from novacron.lab.guest.build import GuestFiles, build
from novacron.model.machine import BootFiles, MachineKind, MachineStatus, StopMode
from novacron.model.migration import Goals
from tests.ports import free_port
from tests.system import rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu, until, with_spec

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
S = MachineStatus
BOOT_S = 60.0


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


@pytest.fixture(scope="module")
def guest() -> GuestFiles:
    try:
        return build()
    except LabFailed as failed:
        pytest.skip(f"the Linux guest cannot be built here: {failed}")


def launch(host: Host, vm_id: str, guest: GuestFiles, kind: MachineKind = MachineKind.Q35) -> Launch:
    plain = host.launch(vm_id, memory_mib=128)
    plain = with_spec(plain, machine=kind, boot=BootFiles(cmdline=guest.cmdline))
    nic = NicPlug(nic_id="n", mac="52:54:00:12:34:56", forwards=((7007, free_port()),))
    return msgspec.structs.replace(plain, firmware=None, kernel=guest.kernel, initrd=guest.initrd, nics=(nic,))


async def booted(driver: QemuDriver, host: Host, what: Launch) -> str:
    vm_id = what.spec.vm_id
    await driver.start(what)
    await until(lambda: b"NOVACRON GUEST READY" in host.console(vm_id), "the guest's service", BOOT_S)
    return vm_id


async def say(what: Launch, line: bytes) -> bytes:
    ((_, port),) = what.nics[0].forwards
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(line + b"\n")
    answer = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return answer.strip()


async def test_asked_to_stop_the_guest_shuts_down(hosts: Hosts, guest: GuestFiles) -> None:
    host = hosts.new()
    driver = host.driver()
    vm_id = await booted(driver, host, launch(host, an_id(), guest))
    report = await driver.stop(vm_id, StopMode.GRACEFUL, 20)
    assert (report.status, report.reason) == (S.STOPPED, GUEST_SHUTDOWN)
    assert host.pids() == []


async def test_a_paused_guest_is_woken_to_shut_down(hosts: Hosts, guest: GuestFiles) -> None:
    host = hosts.new()
    driver = host.driver()
    vm_id = await booted(driver, host, launch(host, an_id(), guest))
    await driver.pause(vm_id)
    report = await driver.stop(vm_id, StopMode.GRACEFUL, 20)
    assert (report.status, report.reason) == (S.STOPPED, GUEST_SHUTDOWN)


async def test_a_guest_that_powers_off_is_stopped_not_crashed_also_when_no_agent_watches(
    hosts: Hosts, guest: GuestFiles
) -> None:
    host = hosts.new()
    driver = host.driver()
    what = launch(host, an_id(), guest)
    vm_id = await booted(driver, host, what)
    await driver.close()
    assert await say(what, b"poweroff") == b"ok"
    driver = host.driver()
    await driver.adopt(host.run_dirs())

    def ended() -> bool:
        report = driver.report(vm_id)
        return report is not None and report.status is S.STOPPED

    await until(ended, "the guest's end")
    report = driver.report(vm_id)
    assert report is not None
    assert (report.reason, report.pid) == (GUEST_SHUTDOWN, 0)
    assert host.pids() == []


async def test_a_microvm_boots_and_moves(hosts: Hosts, guest: GuestFiles) -> None:
    one, other, migration_id = hosts.new(), hosts.new(), an_id()
    source, target = one.driver(), other.driver()
    what = launch(one, an_id(), guest, MachineKind.MICROVM)
    vm_id = await booted(source, one, what)
    assert (await say(what, b"echo here")).endswith(b"here")
    there = launch(other, vm_id, guest, MachineKind.MICROVM)
    to = await target.accept(there, Awaited(migration_id=migration_id, host="127.0.0.1"))
    await source.send(vm_id, migration_id, to, Goals(), lambda _: None)
    await target.take_over(vm_id, migration_id, 2)
    await source.release(vm_id, migration_id)
    assert (await say(there, b"echo there")).endswith(b"there")
