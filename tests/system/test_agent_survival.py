"""A real agent process and a real QEMU: the agent is killed and ended, the machine never notices."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.link import Answer, Link
from novacron.errors import NodeUnreachable
from novacron.lab.rom import rom
from novacron.model.identity import new_id
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
from novacron.model.migration import Figures, Goals, Progress
from novacron.wire import agent as wire
from novacron.wire import moving
from tests.agent.waiting import until
from tests.control.serving import SECRET, on_unix_socket, serving

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed"),
]

VM = new_id(int(time.time() * 1000), secrets.randbits(74))
"""Of this run alone: its processes are found and ended by it."""
DISK = "01890000-0000-7000-8000-0000000000d1"
NIC = Nic(id="01890000-0000-7000-8000-0000000000e1", mac="52:54:00:00:00:01", forwards=(Forward(guest_port=22),))
MIGRATION = "01890000-0000-7000-8000-0000000000aa"
DEADLINE_S = 60.0


class RealAgent:
    """One node: its directories, and the agent process of the moment."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.process: asyncio.subprocess.Process | None = None

    @property
    def run_dir(self) -> Path:
        return self.place.root / self.name / "run"

    @property
    def hellos(self) -> list[wire.Hello]:
        return [hello for hello in self.place.hellos if hello.node_name == self.name]

    async def start(self) -> float:
        """Start the process and wait for its Hello; returns the seconds that took."""
        seen = len(self.hellos)
        began = time.monotonic()
        root = self.place.root
        flags = {
            "server": f"unix:{root / 's'}",
            "secret-file": root / "secret",
            "node-name": self.name,
            "state-dir": root / self.name / "state",
            "run-dir": self.run_dir,
            "pool-dir": root / "pool",
            "accelerator": "tcg",
            "uid-base": self.place.uid_base,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        self.process = await asyncio.create_subprocess_exec(sys.executable, "-m", "novacron.agent", *words)
        await until(lambda: len(self.hellos) > seen or self._ended())
        assert not self._ended(), "the agent ended"
        return time.monotonic() - began

    def _ended(self) -> bool:
        return self.process is None or self.process.returncode is not None

    async def end(self, signal_number: int) -> int:
        """Send it a signal and wait until it is gone, and its line with it."""
        assert self.process is not None
        node_id = self.hellos[-1].node_id
        self.process.send_signal(signal_number)
        async with asyncio.timeout(10):
            code = await self.process.wait()
        await until(lambda: not self.place.link.is_connected(node_id))
        return code

    async def restart(self) -> None:
        await self.end(signal.SIGKILL)
        await self.start()

    async def call(self, args: msgspec.Struct, answer: type[Answer]) -> Answer:
        return await self.place.link.call(self.hellos[-1].node_id, args, answer, deadline_s=DEADLINE_S)

    async def ticks(self) -> list[int]:
        """The guest's own count of its ticks, as its serial log has them."""
        console = await self.call(wire.Console(vm_id=VM, generation=9), wire.ConsoleText)
        return [int(seq, 16) for seq in re.findall(r"^T ([0-9a-f]+) ", console.text, re.M)]

    async def ticks_past(self, seq: int) -> list[int]:
        async with asyncio.timeout(30):
            while not (found := await self.ticks()) or found[-1] <= seq:
                await asyncio.sleep(0.05)
        return found


class Place:
    """A Link on a unix socket, a pool, and the nodes whose agents dial it."""

    def __init__(self, root: Path, uid_base: int) -> None:
        self.root = root
        self.uid_base = uid_base
        self.link = Link(SystemClock(), SECRET, "test")
        self.hellos: list[wire.Hello] = []
        self.link.on_hello(self.hellos.append)
        (root / "secret").write_text(SECRET)
        (root / "secret").chmod(0o600)
        for name in ("a", "b"):
            (root / name).mkdir()
            (root / name).chmod(0o711)
        self.a, self.b = RealAgent(self, "a"), RealAgent(self, "b")
        images = root / "pool" / "images"
        images.mkdir(parents=True)
        content = rom(root / "roms", pages_per_tick=20, wss_pages=4000).read_bytes()
        firmware = hashlib.sha256(content).hexdigest()
        (images / firmware).write_bytes(content)
        (images / firmware).chmod(0o444)
        self.spec = MachineSpec(
            vm_id=VM,
            generation=1,
            vcpus=1,
            memory_mib=64,
            boot=BootFiles(firmware=firmware),
            disks=(Disk(volume_id=DISK, size_bytes=1 << 20),),
            nics=(NIC,),
            isolation_slot=7,
        )


@pytest.fixture
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Machines run as users of their own, where the tests are root and nothing else is asked for."""
    root_here = os.geteuid() == 0
    own_uid = getattr(request, "param", "own_uid" if root_here else "as_agent") == "own_uid"
    if own_uid and not root_here:
        pytest.skip("needs root: a machine of its own user")
    root = Path(tempfile.mkdtemp(prefix="nc-"))
    root.chmod(0o711)
    made = Place(root, 0x4E430000 if own_uid else 0)
    try:
        async with serving(made.link, on_unix_socket(root)):
            yield made
            for agent in (made.a, made.b):
                if agent.process is not None and agent.process.returncode is None:
                    await agent.end(signal.SIGKILL)
    finally:
        for pid in machine_pids():
            os.kill(pid, signal.SIGKILL)
        await until(lambda: not machine_pids())
        shutil.rmtree(root)


def machine_pids() -> list[int]:
    """Living QEMU processes of this run's machine."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if VM.encode() in words and b"qemu" in words and state != "Z":
                found.append(pid)
    return found


def started_at(pid: int) -> str:
    """When a process started, in the kernel's ticks: with the pid, who it is."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.mark.parametrize("place", ["as_agent", "own_uid"], indirect=True)
async def test_a_machine_outlives_its_agent(place: Place) -> None:
    a = place.a
    await a.start()
    assert a.hellos[-1].machines == ()
    report = await a.call(wire.Start(spec=place.spec), MachineReport)
    assert report.status is MachineStatus.RUNNING
    pid, born = report.pid, started_at(report.pid)
    assert machine_pids() == [pid]
    uid = int(re.findall(r"^Uid:\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0])
    assert uid == (place.uid_base + 7 if place.uid_base else os.geteuid())
    before = await a.ticks_past(10)

    await a.end(signal.SIGKILL)
    assert machine_pids() == [pid]
    took_s = await a.start()
    print(f"from starting the agent to the adopted machine in its Hello: {took_s:.2f} s")  # noqa: T201
    assert took_s < 10
    (adopted,) = a.hellos[-1].machines
    assert (adopted.pid, adopted.status, adopted.generation) == (pid, MachineStatus.RUNNING, 1)
    assert adopted.endpoints == report.endpoints
    after = await a.ticks_past(before[-1])
    assert after == sorted(after)  # the guest never began anew
    assert started_at(pid) == born

    assert await a.end(signal.SIGTERM) == 0
    assert machine_pids() == [pid]
    await a.start()
    assert (await a.call(wire.Start(spec=place.spec), MachineReport)).pid == pid
    stopped = await a.call(wire.Stop(vm_id=VM, generation=1, mode=StopMode.FORCED), MachineReport)
    assert stopped.status is MachineStatus.STOPPED
    assert machine_pids() == []
    await a.call(wire.Remove(vm_id=VM, generation=1, volumes=(DISK,)), type(None))
    assert list((place.root / "pool" / "volumes").glob("*.qcow2")) == []
    assert list(a.run_dir.iterdir()) == []


async def test_a_machine_that_dies_alone_is_told_by_the_next_agent(place: Place) -> None:
    a = place.a
    await a.start()
    report = await a.call(wire.Start(spec=place.spec), MachineReport)
    await a.end(signal.SIGKILL)
    os.kill(report.pid, signal.SIGKILL)
    await until(lambda: not machine_pids())
    await a.start()
    (told,) = a.hellos[-1].machines
    assert told.status is MachineStatus.CRASHED
    assert told.reason
    again = await a.call(wire.Start(spec=place.spec), MachineReport)
    assert (again.status, again.pid != report.pid) == (MachineStatus.RUNNING, True)


async def test_a_second_agent_on_the_same_directories_is_refused(place: Place) -> None:
    await place.a.start()
    second = RealAgent(place, "a")
    with pytest.raises(AssertionError, match="the agent ended"):
        await second.start()
    assert second.process is not None
    assert second.process.returncode == 2


@pytest.mark.parametrize("killed_after", ["nothing", "accept", "send", "take_over"])
async def test_a_live_migration_survives_both_agents(place: Place, killed_after: str) -> None:
    a, b = place.a, place.b
    await a.start()
    await b.start()

    async def done(step: str) -> None:
        if step == killed_after:
            await asyncio.gather(a.restart(), b.restart())

    source = await a.call(wire.Start(spec=place.spec), MachineReport)
    before = await a.ticks_past(10)
    to = await b.call(moving.Accept(migration_id=MIGRATION, spec=place.spec), moving.ReceptionAt)
    await done("accept")
    send = moving.Send(vm_id=VM, generation=1, migration_id=MIGRATION, to=to, goals=Goals(max_downtime_ms=300))
    await a.call(send, moving.Departed)
    await done("send")
    take_over = moving.TakeOver(vm_id=VM, generation=2, migration_id=MIGRATION)
    arrived = await b.call(take_over, moving.Arrived)
    await done("take_over")
    assert (arrived.report.status, arrived.report.generation) == (MachineStatus.RUNNING, 2)
    assert (await b.call(take_over, moving.Arrived)).report.pid == arrived.report.pid
    verify = moving.Verify(vm_id=VM, generation=2, migration_id=MIGRATION)
    assert (await b.call(verify, MachineReport)).status is MachineStatus.RUNNING
    release = moving.Release(vm_id=VM, generation=2, migration_id=MIGRATION)
    figures = await a.call(release, Figures)
    assert figures.bytes_transferred
    assert await a.call(release, Figures) == figures
    assert machine_pids() == [arrived.report.pid] != [source.pid]
    assert list(a.run_dir.iterdir()) == []
    ticks = await b.ticks_past(before[-1])
    assert ticks == sorted(set(ticks))
    stop = wire.Stop(vm_id=VM, generation=2, mode=StopMode.FORCED)
    assert (await b.call(stop, MachineReport)).status is MachineStatus.STOPPED


async def test_a_live_migration_is_taken_back_while_it_streams_and_its_agents_die(place: Place) -> None:
    a, b = place.a, place.b
    await a.start()
    await b.start()
    source = await a.call(wire.Start(spec=place.spec), MachineReport)
    before = await a.ticks_past(10)
    to = await b.call(moving.Accept(migration_id=MIGRATION, spec=place.spec), moving.ReceptionAt)
    slow = Goals(bandwidth_bytes_per_s=1 << 20)
    send = moving.Send(vm_id=VM, generation=1, migration_id=MIGRATION, to=to, goals=slow)
    seen: list[Progress] = []
    place.link.on_progress(MIGRATION, seen.append)
    sending = asyncio.create_task(a.call(send, moving.Departed))
    await until(lambda: any(one.transferred_bytes for one in seen))
    await asyncio.gather(a.restart(), b.restart())
    with pytest.raises(NodeUnreachable):
        await sending
    reclaim = moving.Reclaim(vm_id=VM, generation=1, migration_id=MIGRATION)
    for _ in range(2):
        assert (await a.call(reclaim, MachineReport)).status is MachineStatus.RUNNING
        await b.call(moving.Discard(vm_id=VM, generation=1, migration_id=MIGRATION), type(None))
    assert machine_pids() == [source.pid]
    assert list(b.run_dir.iterdir()) == []
    await a.ticks_past(before[-1])
