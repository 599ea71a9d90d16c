"""Whether this host's KVM really runs machines. That /dev/kvm opens proves nothing: so a guest is run in long mode.

On hosts whose kernel offers KVM through `kvm_pvm` a stock guest hangs. The module is looked for first, which costs
nothing, and every other host has to bring a 64 KiB ROM (longmode.S) from reset to 64-bit code before a deadline.
The verdict is kept for this boot of this host and this binary.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from novacron.agent.drivers.qemu import process
from novacron.agent.drivers.qemu.features import keep, scratch
from novacron.clock import Clock
from novacron.model.node import Accelerator

DEVICE = Path("/dev/kvm")
PARAVIRTUAL_MODULE = Path("/sys/module/kvm_pvm")
DEADLINE_S = 3.0  # under TCG the ROM needs 33 ms
PROVEN = "it exited with status 105"  # (0x34 << 1) | 1, from 64-bit code
ROM_BYTES = 64 << 10

_CODE = bytes.fromhex(
    "fa2e660f0116c0000f20c00c010f22c066ea18000f000800b8100000008ed88ec08ed0fc31c0bf00100000b9000c0000"
    "f3abc7050010000003200000c7050020000003300000c7050030000083000000b8001000000f22d80f20e083c8200f22"
    "e0b9800000c00f320d000100000f300f20c00d000000800f22c0ea81000f0018000f32c1e80a83e00148c1e02848c1e8"
    "286bc034baf4000000eef4ebfd8d74000000000000000000ffff0000009acf00ffff00000092cf00ffff0000009aaf00"
    "1f00a0000f"
)
_RESET = bytes.fromhex("ea000000f0")
_RESET_AT = 0xFFF0


def rom() -> bytes:
    """longmode.S, assembled."""
    return (_CODE.ljust(_RESET_AT, b"\0") + _RESET).ljust(ROM_BYTES, b"\0")


async def choose(wish: str, binary: Path, cache_dir: Path, key: str, clock: Clock) -> Accelerator:
    """The accelerator to use and why. wish: auto, or kvm or tcg by the operator's order.

    :raise DriverError: the cache directory cannot be written.
    """
    if wish != "auto":
        return Accelerator(name=wish, reason="told so by this node's configuration")
    reason = _refusal()
    if reason:
        return Accelerator(name="tcg", reason=reason)
    cached = cache_dir / f"accelerator-{process.boot_id()}-{key}.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(cached.read_bytes(), type=Accelerator)
    began_s = clock.monotonic_s()
    words = await run_rom(binary, "kvm", cache_dir)
    probe_ms = (clock.monotonic_s() - began_s) * 1e3
    if words == PROVEN:
        verdict = Accelerator(name="kvm", reason="a guest reached long mode under KVM", probe_ms=probe_ms)
    else:
        reason = f"a guest did not reach long mode under KVM: {words}"
        verdict = Accelerator(name="tcg", reason=reason, probe_ms=probe_ms)
    keep(cached, msgspec.json.encode(verdict))
    return verdict


async def run_rom(binary: Path, accelerator: str, cache_dir: Path) -> str:
    """How a QEMU with the ROM ended, in one sentence; equal to PROVEN when it ran 64-bit code."""
    with scratch(cache_dir, "longmode-") as run_dir:
        (run_dir.path / "longmode.rom").write_bytes(rom())
        stderr = run_dir.create("stderr.log", os.O_WRONLY | os.O_APPEND, None, None)
        argv = [str(binary), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"]
        argv += ["-machine", "q35", "-accel", accelerator, "-cpu", "qemu64", "-bios", "longmode.rom"]
        argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        try:
            started = process.spawn(argv, directory=run_dir.path, stderr=stderr)
        finally:
            os.close(stderr)
        try:
            if not await started.wait(DEADLINE_S):
                return f"it did not get there within {DEADLINE_S:g} s"
            words = run_dir.words("stderr.log", 512)
            return (
                started.ended.result()
                if started.ended.result() == PROVEN
                else f"{started.ended.result()} {words}".strip()
            )
        finally:
            started.kill()
            await started.ended


def _refusal() -> str:
    """Why KVM need not even be tried; empty: it has to be."""
    if not DEVICE.exists():
        return f"{DEVICE} does not exist"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return f"{DEVICE} is not open to this user"
    if PARAVIRTUAL_MODULE.exists():
        return "the kernel's KVM is kvm_pvm, on which stock guests hang"
    return ""
