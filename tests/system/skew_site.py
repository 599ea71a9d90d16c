"""Servers and agents of two versions of this project: processes run from one tree of source or the other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from novacron.client import nodes, vms
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError, Unavailable
from novacron.lab.rom import rom
from tests.etcd_members import Members, members
from tests.ports import free_ports
from tests.system.rom_image import an_image

START_S = 120.0
END_S = 10.0
TICK_S = 60.0
ROOT = Path(__file__).parents[2]
EARLIER: dict[str, str] = tomllib.loads((Path(__file__).parent / "earlier_versions.toml").read_text())
"""The revisions that stand for the version before this one, by what they are earlier than."""


def why_not_there(revision: str) -> str:
    """Why no tree of that revision can be made; empty: it can."""
    try:
        asked = subprocess.run(
            ["git", "-C", str(ROOT), "cat-file", "-e", f"{revision}^{{commit}}"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return "git is not installed, and the version before this one is in its history"
    return "" if asked.returncode == 0 else f"{revision} is not in this clone: git fetch --unshallow --tags"


def has(revision: str, path: str) -> bool:
    """Whether the tree of that revision has the file."""
    asked = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", f"{revision}:{path}"], capture_output=True, check=False
    )
    return asked.returncode == 0


def tree_of(revision: str, folder: Path) -> Path:
    """The source of that revision, in `folder`; where modules are found in it."""
    folder.mkdir()
    packed = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision, "src"], capture_output=True, check=True, timeout=END_S
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True, timeout=END_S)
    return folder / "src"


class Site:
    """The processes by name, each in the version it was last started in, and a client of all servers."""

    def __init__(self, path: Path, old: Path, etcd: Members | None, servers: Sequence[str]) -> None:
        self.path = path
        self._sources = {True: old, False: ROOT / "src"}
        self._etcd = etcd
        self._ports = dict(zip(servers, free_ports(len(servers)), strict=True))
        self._starts: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client: AsyncClient

    @property
    def addresses(self) -> str:
        return ",".join(f"http://127.0.0.1:{port}" for port in self._ports.values())

    # -- processes -----------------------------------------------------------------------------------------

    async def run(self, name: str, *, old: bool) -> None:
        """Start a server or an agent in that version, in place of the one that runs, and wait until it is at work."""
        if (before := self.processes.pop(name, None)) is not None:
            await _ended(before)
        self._starts[name] = self._starts.get(name, 0) + 1
        words = self._server(name) if name in self._ports else self._agent(name)
        with self._log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-P", "-m", *map(str, words)],
                env={**os.environ, "PYTHONPATH": f"{self._sources[old]}:{os.environ.get('PYTHONPATH', '')}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        await self._says(name, "ready http" if name in self._ports else "the line is open")

    def _server(self, name: str) -> list[object]:
        return [
            *("novacron.control", "--data-dir", self.path / name, "--pool-dir", self.path / "pool"),
            *("--port", self._ports[name], "--agent-secret-file", self.path / "agent.secret", "--cpu-overcommit", 64),
            *(("--store", self._etcd.address(), "--name", name) if self._etcd else ()),
        ]

    def _agent(self, name: str) -> list[object]:
        (self.path / name / "run").mkdir(mode=0o711, parents=True, exist_ok=True)
        return [
            *("novacron.agent", "--servers" if len(self._ports) > 1 else "--server", self.addresses),
            *("--secret-file", self.path / "agent.secret", "--node-name", name, "--pool-dir", self.path / "pool"),
            *("--state-dir", self.path / name / "state", "--run-dir", self.path / name / "run"),
        ]

    def _log(self, name: str) -> Path:
        return self.path / f"{name}.{self._starts[name]}.log"

    def said(self, name: str) -> str:
        """By its present process."""
        return self._log(name).read_text(errors="replace")

    async def _says(self, name: str, words: str) -> None:
        async with asyncio.timeout(START_S):
            while words not in self.said(name):
                assert self.processes[name].poll() is None, self.said(name)
                await asyncio.sleep(0.05)

    async def end(self) -> None:
        for process in self.processes.values():
            await _ended(process)

    def complaints(self) -> list[str]:
        """Whatever any of them has said about something broken in it."""
        logs = [file.read_text(errors="replace") for file in self.path.glob("*.log")]
        return [log for log in logs if "Traceback" in log or "cannot be read" in log]

    # -- nodes and guests ----------------------------------------------------------------------------------

    async def all_up(self, *names: str) -> None:
        """Return when every server says so of all these nodes."""
        for address in self.addresses.split(","):
            async with AsyncClient(address, self.token, on_notice=lambda _: None) as one, asyncio.timeout(START_S):
                while True:
                    with contextlib.suppress(Unavailable):
                        states = {node.name: node.state for node in (await one.do(nodes.search())).items}
                        if all(states.get(name) == "up" for name in names):
                            break
                    await asyncio.sleep(0.05)

    @property
    def token(self) -> str:
        return (self.path / next(iter(self._ports)) / "admin.token").read_text().strip()

    async def tick(self, vm_id: str) -> tuple[int, int]:
        """The newest (sequence number, bad pages) that the guest told."""
        try:
            text = (await self.client.do(vms.console_log(vm_id))).text
        except NovaCronError:  # its line is being dialled
            return 0, 0
        ticks = [line.split() for line in text.splitlines() if line.startswith("T ")]
        whole = [tick for tick in ticks if len(tick) == 3 and len(tick[2]) == 8]
        return (int(whole[-1][1], 16), int(whole[-1][2], 16)) if whole else (0, 0)

    async def ticks_beyond(self, vm_id: str, before: int) -> int:
        """Its newest tick, once it is later than that; no page of its memory is lost."""
        async with asyncio.timeout(TICK_S):
            while (now := await self.tick(vm_id))[0] <= before:
                await asyncio.sleep(0.05)
        assert now[1] == 0
        return now[0]


async def _ended(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        await asyncio.to_thread(process.wait)


@contextlib.asynccontextmanager
async def a_site(revision: str, servers: Sequence[str], *, old: bool, on_etcd: bool = False) -> AsyncIterator[Site]:
    """The servers, all of one version, with the image `ticker` there, and no node. Everything is gone afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        path.chmod(0o711)
        etcd = stack.enter_context(members(path / "etcd")) if on_etcd else None
        if etcd is not None:
            await etcd.up(0)
        site = Site(path, tree_of(revision, path / "old"), etcd, servers)
        stack.push_async_callback(site.end)
        for name in servers:  # the first one makes secret and token
            await site.run(name, old=old)
        site.client = AsyncClient(site.addresses, site.token, on_notice=lambda _: None)
        await stack.enter_async_context(site.client)
        await an_image(site.client, "ticker", rom(path / "cache", button=True))
        yield site
