"""The acceleration verdict: proven by a guest in long mode, or told why not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu import accelerator
from novacron.agent.drivers.qemu.accelerator import PROVEN, choose, rom, run_rom
from novacron.clock import SystemClock
from novacron.lab.rom import assemble

pytestmark = pytest.mark.anyio
QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64 here")
SOURCE = Path(accelerator.__file__).with_name("longmode.S")


@pytest.mark.skipif(shutil.which("as") is None, reason="no binutils here")
def test_the_bytes_are_the_source_assembled() -> None:
    assert rom() == assemble(SOURCE)


@needs_qemu
@pytest.mark.system
async def test_the_rom_reaches_long_mode(tmp_path: Path) -> None:
    assert await run_rom(Path(str(QEMU)), "tcg", tmp_path) == PROVEN
    assert list(tmp_path.iterdir()) == []


@needs_qemu
@pytest.mark.system
async def test_a_processor_without_long_mode_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = bytearray(rom())
    spoiled[spoiled.index(bytes.fromhex("0d00010000"))] = 0x3D  # `or $0x100` (EFER.LME) becomes a compare
    monkeypatch.setattr(accelerator, "rom", lambda: bytes(spoiled))
    monkeypatch.setattr(accelerator, "DEADLINE_S", 0.5)
    assert await run_rom(Path(str(QEMU)), "tcg", tmp_path) != PROVEN


@needs_qemu
@pytest.mark.system
async def test_a_refused_accelerator_is_told_in_qemus_words(tmp_path: Path) -> None:
    assert "no-such" in await run_rom(Path(str(QEMU)), "no-such", tmp_path)


async def verdict(tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch, wish: str = "auto") -> object:
    async def run(binary: Path, name: str, cache_dir: Path) -> str:
        assert name == "kvm"
        return answers.pop(0)

    monkeypatch.setattr(accelerator, "run_rom", run)
    return await choose(wish, Path("/qemu"), tmp_path, "key", SystemClock())


@pytest.fixture
def trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose KVM looks fine from outside."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "DEVICE", device)
    monkeypatch.setattr(accelerator, "PARAVIRTUAL_MODULE", tmp_path / "absent")
    return tmp_path / "cache"


async def test_kvm_is_used_where_a_guest_ran(trying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await verdict(trying, [PROVEN], monkeypatch)
    assert isinstance(found, accelerator.Accelerator)
    assert (found.name, "long mode" in found.reason) == ("kvm", True)
    assert await verdict(trying, [], monkeypatch) == found  # kept for this boot


async def test_kvm_that_hangs_a_guest_is_not_used(trying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await verdict(trying, ["it did not get there within 3 s"], monkeypatch)
    assert isinstance(found, accelerator.Accelerator)
    assert (found.name, "did not get there" in found.reason) == ("tcg", True)


async def test_another_boot_is_tried_anew(trying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await verdict(trying, ["it hung"], monkeypatch)
    monkeypatch.setattr(accelerator.process, "boot_id", lambda: "another")
    found = await verdict(trying, [PROVEN], monkeypatch)
    assert isinstance(found, accelerator.Accelerator)
    assert found.name == "kvm"


async def test_the_paravirtual_module_is_enough_to_know(trying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "PARAVIRTUAL_MODULE", trying.parent)
    found = await verdict(trying, [], monkeypatch)
    assert isinstance(found, accelerator.Accelerator)
    assert (found.name, "kvm_pvm" in found.reason, found.probe_ms) == ("tcg", True, 0.0)


async def test_without_the_device_there_is_nothing_to_try(trying: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "DEVICE", trying / "absent")
    found = await verdict(trying, [], monkeypatch)
    assert isinstance(found, accelerator.Accelerator)
    assert (found.name, "does not exist" in found.reason) == ("tcg", True)


@pytest.mark.parametrize("wish", ["kvm", "tcg"])
async def test_an_order_is_obeyed(trying: Path, monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    found = await verdict(trying, [], monkeypatch, wish)
    assert isinstance(found, accelerator.Accelerator)
    assert found.name == wish


@needs_qemu
@pytest.mark.system
@pytest.mark.skipif(not Path("/sys/module/kvm_pvm").exists(), reason="this host has no kvm_pvm")
@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm is not ours to open")
async def test_on_a_host_with_kvm_pvm_it_is_tcg(tmp_path: Path) -> None:
    found = await choose("auto", Path(str(QEMU)), tmp_path, "key", SystemClock())
    assert (found.name, "kvm_pvm" in found.reason) == ("tcg", True)
