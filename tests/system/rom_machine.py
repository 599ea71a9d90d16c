"""Real QEMU machines for tests: the ROM guest on hosts that are directories, killed whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from novacron.agent.drivers.base import Launch
from novacron.agent.drivers.qemu import QemuDriver
from novacron.agent.drivers.qemu.process import find_in
from novacron.clock import SystemClock
from novacron.lab.rom import rom
from novacron.model.identity import new_id
from novacron.model.machine import MachineSpec

BINARY = "qemu-system-x86_64"
_CACHE = tempfile.TemporaryDirectory(prefix="novacron-rom-cache-")  # removed when the tests end
CACHE = Path(_CACHE.name)
CACHE.chmod(0o755)  # each machine's user reads its ROM there
NOBODY = 65534
TICK = re.compile(rb"^T ([0-9a-f]{8}) ([0-9a-f]{8})$", re.MULTILINE)
PATIENCE_S = 20.0

needs_qemu = pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not installed")


def an_id() -> str:
    return new_id(int(time.time() * 1000), secrets.randbits(74))


async def until(holds: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Look every few ms until it holds; fail loudly when it does not."""
    end = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end, f"{what} did not come within {patience_s:g} s"
        await asyncio.sleep(0.005)


class Host:
    """One host: a directory with the machines' run directories. Drivers made here are agents of it."""

    def __init__(self, root: Path, uid: int | None) -> None:
        self.root = root
        self.uid = uid
        self.drivers: list[QemuDriver] = []
        root.mkdir(mode=0o755)

    def driver(self, stall_s: float = 30.0, binary: str = BINARY) -> QemuDriver:
        made = QemuDriver(binary, CACHE, SystemClock(), accelerator="tcg", stall_s=stall_s)
        self.drivers.append(made)
        return made

    def run_dirs(self) -> list[Path]:
        return sorted(self.root.iterdir())

    def launch(
        self, vm_id: str, *, generation: int = 1, memory_mib: int = 32, pages: int = 0, wss: int = 0, divisor: int = 0
    ) -> Launch:
        run_dir = self.root / vm_id
        run_dir.mkdir(mode=0o700, exist_ok=True)
        if self.uid is not None:
            os.chown(run_dir, self.uid, self.uid)
        spec = MachineSpec(vm_id=vm_id, generation=generation, vcpus=1, memory_mib=memory_mib)
        image = rom(CACHE, pages, wss, divisor)
        return Launch(spec=spec, run_dir=run_dir, firmware=image, uid=self.uid, gid=self.uid)

    def console(self, vm_id: str) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return (self.root / vm_id / "console.log").read_bytes()
        return b""

    def ticks(self, vm_id: str) -> list[tuple[int, int]]:
        """(seq, bad) of every whole line the guest wrote here."""
        return [(int(seq, 16), int(bad, 16)) for seq, bad in TICK.findall(self.console(vm_id))]

    async def ticking(self, vm_id: str, more: int = 3) -> None:
        """Wait until the guest has ticked so many times more."""
        before = self.console(vm_id).count(b"\n")
        await until(lambda: self.console(vm_id).count(b"\n") >= before + more, f"tick {before + more} of {vm_id}")

    async def silent(self, vm_id: str) -> bool:
        """Whether it does not tick for ten ticks' time."""
        before = len(self.console(vm_id))
        await asyncio.sleep(0.1)
        return len(self.console(vm_id)) == before

    def pids(self) -> list[int]:
        """Processes of this host's machines that live."""
        found = (find_in(run_dir, run_dir.name) for run_dir in self.run_dirs())
        return [identity.pid for identity in found if identity is not None]


class Hosts:
    """All hosts of a test."""

    def __init__(self, root: Path, uid: int | None) -> None:
        self._root = root
        self._uid = uid
        self.all: list[Host] = []

    def new(self) -> Host:
        self.all.append(Host(self._root / f"host{len(self.all)}", self._uid))
        return self.all[-1]

    async def end(self) -> None:
        """Let go of every driver, and kill what lives by pidfd."""
        for host in self.all:
            for driver in host.drivers:
                await driver.close()
            for pid in host.pids():
                kill(pid)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, number)
        os.close(descriptor)


@contextlib.asynccontextmanager
async def hosts(uid: int | None = None) -> AsyncIterator[Hosts]:
    """Hosts in a directory every user may enter; no process and no file is left afterwards."""
    root = Path(tempfile.mkdtemp(prefix="novacron-rom-"))
    root.chmod(0o755)
    made = Hosts(root, uid)
    try:
        yield made
    finally:
        await made.end()
        shutil.rmtree(root)


def with_spec(launch: Launch, **changes: object) -> Launch:
    return msgspec.structs.replace(launch, spec=msgspec.structs.replace(launch.spec, **changes))
