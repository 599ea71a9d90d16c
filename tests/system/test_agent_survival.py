"""A real agent process and a real QEMU: the agent is killed and ended, the machine never notices."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from novacron.clock import SystemClock
from novacron.control.link import Link
from novacron.lab.rom import rom
from novacron.model.machine import (
    BootFiles,
    Disk,
    Forward,
    MachineReport,
    MachineSpec,
    MachineStatus,
    Nic,
    StopMode,
)
from novacron.wire import agent as wire
from tests.control.serving import SECRET, on_unix_socket, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]

VM = "01890000-0000-7000-8000-000000000001"
DISK = "01890000-0000-7000-8000-0000000000d1"
NIC = Nic(id="01890000-0000-7000-8000-0000000000e1", mac="52:54:00:00:00:01", forwards=(Forward(guest_port=22),))
DEADLINE_S = 60.0


class Place:
    """A Link on a unix socket, a pool, and the agent process that dials it."""

    def __init__(self, root: Path, uid_base: int) -> None:
        self.root = root
        self.uid_base = uid_base
        self.link = Link(SystemClock(), SECRET, "test")
        self.hellos: list[wire.Hello] = []
        self.link.on_hello(self.hellos.append)
        self.lost: list[str] = []
        self.link.on_lost(self.lost.append)
        self.process: asyncio.subprocess.Process | None = None
        (root / "secret").write_text(SECRET)
        (root / "secret").chmod(0o600)
        images = root / "pool" / "images"
        images.mkdir(parents=True)
        content = rom(root / "roms").read_bytes()
        self.firmware = hashlib.sha256(content).hexdigest()
        (images / self.firmware).write_bytes(content)
        (images / self.firmware).chmod(0o444)
        self.spec = MachineSpec(
            vm_id=VM,
            generation=1,
            vcpus=1,
            memory_mib=64,
            boot=BootFiles(firmware=self.firmware),
            disks=(Disk(volume_id=DISK, size_bytes=1 << 20),),
            nics=(NIC,),
            isolation_slot=7,
        )

    async def start_agent(self) -> float:
        """Start one and wait for its Hello; returns the seconds that took."""
        seen = len(self.hellos)
        began = time.monotonic()
        flags = {
            "server": f"unix:{self.root / 's'}",
            "secret-file": self.root / "secret",
            "node-name": "n1",
            "state-dir": self.root / "state",
            "run-dir": self.root / "run",
            "pool-dir": self.root / "pool",
            "accelerator": "tcg",
            "uid-base": self.uid_base,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-m", "novacron.agent", *words)
        await until(lambda: len(self.hellos) > seen or self._ended())
        assert not self._ended(), "the agent ended"
        return time.monotonic() - began

    def _ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    async def end_agent(self, signal_number: int) -> int:
        assert self.process is not None
        self.process.send_signal(signal_number)
        async with asyncio.timeout(10):
            return await self.process.wait()

    async def call(self, args: object, answer: type) -> object:
        return await self.link.call(self.hellos[-1].node_id, args, answer, deadline_s=DEADLINE_S)  # type: ignore

    async def report(self, args: object) -> MachineReport:
        report = await self.call(args, MachineReport)
        assert isinstance(report, MachineReport)
        return report

    async def ticks(self) -> list[int]:
        """The guest's own count of its ticks, as its serial log has them."""
        console = await self.call(wire.Console(vm_id=VM, generation=1), wire.ConsoleText)
        assert isinstance(console, wire.ConsoleText)
        return [int(seq, 16) for seq in re.findall(r"^T ([0-9a-f]+) ", console.text, re.M)]

    async def ticks_past(self, seq: int) -> list[int]:
        async with asyncio.timeout(30):
            while not (found := await self.ticks()) or found[-1] <= seq:
                await asyncio.sleep(0.05)
        return found


@pytest.fixture(params=["as_agent", "own_uid"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    own_uid = request.param == "own_uid"
    if own_uid and os.geteuid() != 0:
        pytest.skip("needs root: a machine of its own user")
    root = Path(tempfile.mkdtemp(prefix="nc-"))
    root.chmod(0o711)
    made = Place(root, 0x4E430000 if own_uid else 0)
    try:
        async with serving(made.link, on_unix_socket(root)):
            yield made
            if made.process is not None and made.process.returncode is None:
                await made.end_agent(signal.SIGKILL)
    finally:
        for pid in machine_pids():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not machine_pids())
        shutil.rmtree(root)


def machine_pids() -> list[int]:
    """Living QEMU processes of this test's machine: nobody else uses its id."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if VM.encode() in words and b"qemu" in words and state != "Z":
                found.append(pid)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


def started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks: with the pid, who it is."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


async def test_a_machine_outlives_its_agent(place: Place) -> None:
    await place.start_agent()
    assert place.hellos[-1].machines == ()
    report = await place.report(wire.Start(spec=place.spec))
    assert report.status is MachineStatus.RUNNING
    pid, born = report.pid, started_at(report.pid)
    assert machine_pids() == [pid]
    uid = int(re.findall(r"^Uid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0])
    assert uid == (place.uid_base + 7 if place.uid_base else os.geteuid())
    before = await place.ticks_past(10)

    await place.end_agent(signal.SIGKILL)
    await until(lambda: bool(place.lost))
    assert machine_pids() == [pid]
    took_s = await place.start_agent()
    print(f"from starting the agent to the adopted machine in its Hello: {took_s:.2f} s")  # noqa: T201
    assert took_s < 10
    (adopted,) = place.hellos[-1].machines
    assert (adopted.pid, adopted.status, adopted.generation) == (pid, MachineStatus.RUNNING, 1)
    assert adopted.endpoints == report.endpoints
    after = await place.ticks_past(before[-1])
    assert after == sorted(after)  # the guest never began anew
    assert started_at(pid) == born

    assert await place.end_agent(signal.SIGTERM) == 0
    assert machine_pids() == [pid]
    await place.start_agent()
    assert (await place.report(wire.Start(spec=place.spec))).pid == pid
    stopped = await place.report(wire.Stop(vm_id=VM, generation=1, mode=StopMode.FORCED))
    assert stopped.status is MachineStatus.STOPPED
    assert machine_pids() == []
    await place.call(wire.Remove(vm_id=VM, generation=1, volumes=(DISK,)), type(None))
    assert list((place.root / "pool" / "volumes").glob("*.qcow2")) == []
    assert list((place.root / "run").iterdir()) == []


async def test_a_machine_that_dies_alone_is_told_by_the_next_agent(place: Place) -> None:
    await place.start_agent()
    report = await place.report(wire.Start(spec=place.spec))
    await place.end_agent(signal.SIGKILL)
    os.kill(report.pid, signal.SIGKILL)
    await until(lambda: not machine_pids())
    await place.start_agent()
    (told,) = place.hellos[-1].machines
    assert told.status is MachineStatus.CRASHED
    assert told.reason
    again = await place.report(wire.Start(spec=place.spec))
    assert (again.status, again.pid != report.pid) == (MachineStatus.RUNNING, True)
    await place.report(wire.Stop(vm_id=VM, generation=1, mode=StopMode.FORCED))


async def test_a_second_agent_on_the_same_directories_is_refused(place: Place) -> None:
    await place.start_agent()
    first = place.process
    with pytest.raises(AssertionError, match="the agent ended"):
        await place.start_agent()
    assert place.process is not None
    assert place.process.returncode == 2
    place.process = first
