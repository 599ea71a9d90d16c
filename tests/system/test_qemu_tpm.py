"""A TPM and UEFI variables that belong to a machine: they outlive its process and its node, and move with it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import QemuDriver, tpm
from novacron.agent.drivers.qemu.firmware import find_uefi
from novacron.model.machine import Firmware, MachineStatus, StopMode
from novacron.model.migration import Goals
from tests.system import rom_machine
from tests.system.rom_machine import NOBODY, Host, Hosts, an_id, needs_qemu, until, with_spec
from tests.system.test_qemu_adjust import moved

pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.root, needs_qemu]
needs_swtpm = pytest.mark.skipif(not tpm.is_installed(), reason="swtpm is not installed")
needs_ovmf = pytest.mark.skipif(find_uefi(secure=True) is None, reason="OVMF with Secure Boot is not installed")
BOOT_S = 60.0


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts(NOBODY) as made:
        yield made


def keeping(host: Host, launch: Launch) -> Launch:
    """With a directory beside its volumes, which all hosts share."""
    keep = host.root.parent / "machines" / launch.spec.vm_id
    keep.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep.parent.chmod(0o711)
    os.chown(keep, NOBODY, NOBODY)
    return msgspec.structs.replace(launch, keep=keep)


def state(launch: Launch) -> Path:
    assert launch.keep is not None
    return launch.keep / tpm.current(launch.keep) / "tpm2-00.permall"


def folders(launch: Launch) -> list[str]:
    assert launch.keep is not None
    return sorted(path.name for path in launch.keep.iterdir() if path.is_dir())


async def chip_is_gone(driver: QemuDriver, vm_id: str) -> None:
    chip = driver._fleet.machines[vm_id].tpm
    assert chip is not None
    assert await chip.wait(10)


def chips(host: Host) -> set[int]:
    """Processes of TPMs of this host's machines."""
    beside = str(host.root.parent).encode()
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"swtpm" in words.split(b"\0")[0] and beside in words:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


@needs_swtpm
async def test_a_machine_has_a_tpm_of_its_own_as_its_own_user(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    assert tpm.FEATURE in (await driver.probe()).features
    plain = keeping(host, with_spec(host.launch(an_id(), memory_mib=128), tpm=True))
    vm_id = plain.spec.vm_id
    await driver.start(plain)
    await host.ticking(vm_id)
    machine = driver._fleet.machines[vm_id]
    assert [chip["model"] for chip in await machine.door().execute("query-tpm")] == ["tpm-crb"]
    assert machine.tpm is not None
    assert Path(f"/proc/{machine.tpm.identity.pid}").stat().st_uid == NOBODY
    assert (state(plain).stat().st_uid, state(plain).parent.stat().st_mode & 0o777) == (NOBODY, 0o700)
    await driver.stop(vm_id, StopMode.FORCED, 0)
    await chip_is_gone(driver, vm_id)
    seed = state(plain).read_bytes()
    assert seed
    await driver.start(plain)  # the same TPM as before
    assert driver._fleet.machines[vm_id].status is MachineStatus.RUNNING
    assert state(plain).read_bytes()[:64] == seed[:64]


@needs_swtpm
async def test_it_ends_with_the_machine_also_when_no_agent_watches(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    plain = keeping(host, with_spec(host.launch(an_id(), memory_mib=128), tpm=True))
    await driver.start(plain)
    (mine,) = chips(host)
    await driver.close()
    driver = host.driver()
    await driver.adopt(host.run_dirs())
    await host.ticking(plain.spec.vm_id)
    assert mine in chips(host)
    (pid,) = host.pids()
    rom_machine.kill(pid)
    await until(lambda: mine not in chips(host) or _is_zombie(mine), "the TPM's end")


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@needs_swtpm
async def test_nothing_is_left_of_one_whose_machine_dies_at_its_start(hosts: Hosts) -> None:
    host = hosts.new()
    driver = host.driver()
    plain = keeping(host, with_spec(host.launch(an_id(), memory_mib=128), tpm=True))
    empty = plain.run_dir / "empty.rom"
    empty.touch()
    with pytest.raises(Exception, match="did not start"):
        await driver.start(msgspec.structs.replace(plain, firmware=empty))
    assert chips(host) == set()


@needs_swtpm
async def test_a_tpm_moves_with_its_machine(hosts: Hosts) -> None:
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()
    plain = keeping(one, with_spec(one.launch(an_id(), memory_mib=128), tpm=True))
    vm_id = plain.spec.vm_id
    await source.start(plain)
    await one.ticking(vm_id)
    before = state(plain).read_bytes()
    there = keeping(other, with_spec(other.launch(vm_id, memory_mib=128), tpm=True))
    await moved(vm_id, source, target, there)
    await other.ticking(vm_id)
    assert len(await target._fleet.machines[vm_id].door().execute("query-tpm")) == 1
    assert folders(there) == ["tpm-2"]  # the only one, and the one that counts
    assert len(state(there).read_bytes()) == len(before)
    back = keeping(one, with_spec(one.launch(vm_id, memory_mib=128, generation=2), tpm=True))
    migration_id = an_id()
    await source.accept(back, Awaited(migration_id=migration_id, host="127.0.0.1"))
    assert folders(there) == ["tpm-2", "tpm-3"]
    await source.discard(vm_id, migration_id)  # a move that is called off leaves nothing
    assert folders(there) == ["tpm-2"]
    await target.stop(vm_id, StopMode.FORCED, 0)
    await chip_is_gone(target, vm_id)
    await source.start(back)  # and with that state it starts wherever it is started
    await one.ticking(vm_id)
    assert folders(there) == ["tpm-2"]


@needs_swtpm
async def test_a_move_that_is_taken_back_leaves_the_source_with_its_own_tpm(hosts: Hosts) -> None:
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()
    plain = keeping(one, with_spec(one.launch(an_id(), memory_mib=128), tpm=True))
    vm_id, migration_id = plain.spec.vm_id, an_id()
    await source.start(plain)
    there = keeping(other, with_spec(other.launch(vm_id, memory_mib=128), tpm=True))
    to = await target.accept(there, Awaited(migration_id=migration_id, host="127.0.0.1"))
    await source.send(vm_id, migration_id, to, Goals(), lambda _: None)
    await target.discard(vm_id, migration_id)
    await source.reclaim(vm_id, migration_id)
    await one.ticking(vm_id)
    assert folders(plain) == ["tpm"]
    assert tpm.current(there.keep or Path()) == "tpm"


@needs_ovmf
@pytest.mark.parametrize("secure", [False, True], ids=["uefi", "secure-boot"])
async def test_uefi_variables_outlive_the_node_and_move(hosts: Hosts, secure: bool) -> None:
    one, other = hosts.new(), hosts.new()
    source, target = one.driver(), other.driver()

    def launch(host: Host, vm_id: str) -> Launch:
        plain = with_spec(host.launch(vm_id, memory_mib=256), firmware=Firmware.UEFI, secure_boot=secure)
        return keeping(host, msgspec.structs.replace(plain, firmware=None))

    plain = launch(one, an_id())
    vm_id = plain.spec.vm_id
    await source.start(plain)
    assert plain.keep is not None
    variables = plain.keep / "vars.fd"
    template = find_uefi(secure=secure)
    assert template is not None
    await until(lambda: variables.read_bytes() != template.variables.read_bytes(), "the firmware writes", BOOT_S)
    await moved(vm_id, source, target, launch(other, vm_id))
    await target.stop(vm_id, StopMode.FORCED, 0)
    written = variables.read_bytes()
    assert written != template.variables.read_bytes()
    await source.start(plain)
    await source.stop(vm_id, StopMode.FORCED, 0)
    assert len(variables.read_bytes()) == len(written)
