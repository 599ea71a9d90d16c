"""Three real servers over three etcd members, and two real agents that have a line to each; ended whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from novacron.client import nodes, servers
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError
from novacron.lab.rom import rom
from tests.etcd_members import Members, members
from tests.ports import free_ports
from tests.system.rom_image import an_image

START_S = 120.0
END_S = 10.0
NAMES = ("s1", "s2", "s3")
AGENTS = ("node-1", "node-2")


class Trio:
    """The processes by name, and a client of all three servers."""

    def __init__(self, path: Path, etcd: Members) -> None:
        self.path = path
        self.etcd = etcd
        self._ports = dict(zip(NAMES, free_ports(len(NAMES)), strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client: AsyncClient
        self.impatient: AsyncClient  # passes over a server that does not answer at once

    @property
    def addresses(self) -> str:
        return ",".join(map(self.address, NAMES))

    def address(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    @property
    def token(self) -> str:
        return (self.path / "s1" / "admin.token").read_text().strip()

    def start_server(self, name: str) -> None:
        words = [
            *("--name", name, "--data-dir", self.path / name, "--pool-dir", self.path / "pool"),
            *("--port", self._ports[name], "--store", self.etcd.address()),
            *("--agent-secret-file", self.path / "agent.secret", "--cpu-overcommit", 64),
        ]
        self._start(name, "novacron.control", words)

    def start_agent(self, name: str) -> None:
        words = [
            *("--servers", self.addresses, "--secret-file", self.path / "agent.secret", "--node-name", name),
            *("--state-dir", self.path / name / "state", "--run-dir", self.path / name / "run"),
            *("--pool-dir", self.path / "pool"),
        ]
        (self.path / name / "run").mkdir(mode=0o711, parents=True, exist_ok=True)
        self._start(name, "novacron.agent", words)

    def _start(self, name: str, module: str, words: list[object]) -> None:
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def said(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")

    async def ready(self, name: str) -> None:
        async with asyncio.timeout(START_S):
            while "ready http" not in self.said(name):
                assert self.processes[name].poll() is None, self.said(name)
                await asyncio.sleep(0.05)

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)

    async def a_leader(self, other_than: str = "") -> servers.Server:
        """The server that leads, as soon as one does that is not that one."""
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(NovaCronError):
                    for one in (await self.impatient.do(servers.search())).items:
                        if one.leads and one.name != other_than:
                            return one
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                await asyncio.to_thread(process.wait, END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)


@asynccontextmanager
async def three_servers() -> AsyncIterator[Trio]:
    """All up, both nodes joined, the image `ticker` there."""
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        with members(path / "etcd", 3) as etcd:
            await asyncio.gather(*(etcd.up(place) for place in range(3)))
            made = Trio(path, etcd)
            try:
                for name in NAMES:  # the first one makes secret and token
                    made.start_server(name)
                    await made.ready(name)
                async with (
                    AsyncClient(made.addresses, made.token, on_notice=lambda _: None) as made.client,
                    AsyncClient(made.addresses, made.token, answer_within_s=0.5, tries=1) as made.impatient,
                ):
                    for name in AGENTS:
                        made.start_agent(name)
                    await _joined(made)
                    await an_image(made.client, "ticker", rom(path / "cache", button=True))
                    yield made
            finally:
                await made.end()


async def _joined(made: Trio) -> None:
    async with asyncio.timeout(START_S):
        while True:
            page = await made.client.do(nodes.search())
            if len(page.items) == len(AGENTS) and all(node.state == "up" for node in page.items):
                return
            for name in AGENTS:
                assert made.processes[name].poll() is None, made.said(name)
            await asyncio.sleep(0.05)


def end_machines(vm_id: str) -> None:
    """What a failed test left of a VM."""
    from tests.system.spine import living_copies

    for pid in living_copies(vm_id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
