"""CD-ROM drives on either bus: firmware starts from them, media change as it runs, and the machine moves with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import Launch, Medium
from novacron.agent.drivers.qemu import QemuDriver
from novacron.agent.drivers.qemu.firmware import find_uefi
from novacron.agent.drivers.qemu.look import look
from novacron.agent.drivers.qemu.record import FILE
from novacron.model.machine import DriveBus, Firmware, Media
from tests.system import boot_media, rom_machine
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu, until, with_spec
from tests.system.test_qemu_adjust import moved

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu]
needs_ovmf = pytest.mark.skipif(find_uefi(secure=False) is None, reason="OVMF is not installed")
BOOT_S = 90.0
both = pytest.mark.parametrize("bus", list(DriveBus))


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


def with_drive(launch: Launch, bus: DriveBus, path: Path | None, firmware: Firmware = Firmware.AUTO) -> Launch:
    """The launch with one drive and what is in it, started from that."""
    media = (Media(id="m", digest="d" * 64 if path else "", slot=2, bus=bus),)
    plain = with_spec(launch, media=media, firmware=firmware)
    return msgspec.structs.replace(plain, firmware=None, media=(Medium(id="m", path=path, bus=bus),))


async def says(host: Host, vm_id: str, word: str) -> None:
    """Return when it has said it three times more."""
    begun, line = len(host.console(vm_id)), f"{word}\r\n".encode()
    await until(lambda: host.console(vm_id)[begun:].count(line) > 3, f"{word!r} of {vm_id}", BOOT_S)


async def holds(driver: QemuDriver, launch: Launch) -> str:
    seen = await look(driver._fleet.machines[launch.spec.vm_id], launch.spec)
    assert seen.drives.keys() == {"cd-m"}
    return seen.drives["cd-m"]


@both
@pytest.mark.parametrize("firmware", [Firmware.BIOS, pytest.param(Firmware.UEFI, marks=needs_ovmf)])
async def test_firmware_starts_from_it_its_disc_changes_and_it_moves(
    hosts: Hosts, tmp_path: Path, bus: DriveBus, firmware: Firmware
) -> None:
    one, other = hosts.new(), hosts.new()
    first, second = (boot_media.disc(tmp_path / f"{name}.iso", name) for name in ("first", "second"))
    vm_id, driver = an_id(), one.driver()
    launch = with_drive(one.launch(vm_id, memory_mib=256), bus, first, firmware)
    await driver.start(launch)
    await says(one, vm_id, "first")

    for path in (None, second, first, second):
        done = await driver.adjust(with_drive(launch, bus, path, firmware))
        assert done.pending == ()
        assert await holds(driver, launch) == (str(path) if path else "")

    there = with_drive(other.launch(vm_id, memory_mib=256), bus, second, firmware)
    target = other.driver()
    await moved(vm_id, driver, target, there)
    await says(other, vm_id, "first")
    assert await holds(target, there) == str(second)
    empty = await target.adjust(with_drive(there, bus, None, firmware))
    assert (empty.pending, await holds(target, there)) == ((), "")


async def test_a_machine_that_was_started_before_drives_had_a_bus_is_adopted_and_moves(
    hosts: Hosts, tmp_path: Path
) -> None:
    one, other = hosts.new(), hosts.new()
    disc, vm_id = boot_media.disc(tmp_path / "old.iso", "old"), an_id()
    driver, launch = one.driver(), with_drive(one.launch(vm_id, memory_mib=256), DriveBus.SATA, disc)
    await driver.start(launch)
    await driver.close()
    noted = launch.run_dir / FILE
    record = json.loads(noted.read_bytes())
    assert record["spec"]["media"][0].pop("bus") == "sata"
    noted.write_text(json.dumps(record))

    driver = one.driver()
    await driver.adopt(one.run_dirs())
    await says(one, vm_id, "old")
    done = await driver.adjust(launch)
    assert (done.pending, done.now.media) == ((), launch.spec.media)
    there, target = with_drive(other.launch(vm_id, memory_mib=256), DriveBus.SATA, disc), other.driver()
    await moved(vm_id, driver, target, there)
    await says(other, vm_id, "old")
