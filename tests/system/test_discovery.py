"""Nodes that learn of servers: one is given or heard of on the network, the rest comes by itself, and is kept."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import nodes
from novacron.client.asynchronous import AsyncClient
from tests.etcd_members import Members, members
from tests.ports import free_ports
from tests.system.joined_site import command
from tests.system.spine import END_S

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_etcd]

SERVERS = ("s1", "s2")


class Pair:
    """Two servers of one cluster, each telling that it is at `localhost`, and a node that has joined."""

    def __init__(self, path: Path, etcd: Members) -> None:
        self.path = path
        self._etcd = etcd
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    async def serve(self, name: str, *more: str) -> None:
        words = [
            *("novacron.control", "--data-dir", self.path / name, "--pool-dir", self.path / "pool", "--name", name),
            *("--port", self.ports[name], "--store", self._etcd.address(), "--cluster-dir", self.path / "cluster"),
            *("--agent-secret-file", self.path / "agent.secret"),
            *("--advertise", f"https://localhost:{self.ports[name]}", *more),
        ]
        self._start(name, words)
        await self.says(name, "ready http")

    async def join(self) -> None:
        url, token_file = f"https://127.0.0.1:{self.ports['s1']}", self.path / "s1" / "admin.token"
        async with AsyncClient(url, token_file.read_text().strip(), ca_file=self.path / "cluster" / "ca.pem") as client:
            token = (await client.do(nodes.create_token(nodes.NodeTokenCreate()))).token
        words = ("--token-file", "-", "--node-name", "node-1", "--state-dir", str(self.path / "node-1" / "state"))
        code, _, err = await command("agent", "join", url, *words, said=token)
        assert code == 0, err

    def work(self, servers: str) -> None:
        """Start the node's agent, given only these."""
        node = self.path / "node-1"
        (node / "run").mkdir(mode=0o711, parents=True, exist_ok=True)
        words = [
            *("novacron.agent", "--servers", servers, "--node-name", "node-1", "--pool-dir", self.path / "pool"),
            *("--state-dir", node / "state", "--run-dir", node / "run", "--log-format", "json"),
        ]
        self._start("node-1", words)

    def _start(self, name: str, words: list[object]) -> None:
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _log(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def said(self, name: str) -> str:
        return self._log(name).read_text()

    async def says(self, name: str, words: str) -> None:
        async with asyncio.timeout(END_S):
            while words not in self.said(name):
                assert self._running[name].poll() is None, self.said(name)
                await asyncio.sleep(0.05)

    async def lines_to(self, *servers: str) -> None:
        """Return when each of these servers has a line to the node, and lists it as up."""
        for name in servers:
            token = (self.path / "s1" / "admin.token").read_text().strip()
            url = f"https://127.0.0.1:{self.ports[name]}"
            async with (
                AsyncClient(url, token, ca_file=self.path / "cluster" / "ca.pem") as client,
                asyncio.timeout(END_S),
            ):
                while True:
                    found = {node.name: node for node in (await client.do(nodes.search())).items}
                    if "node-1" in found and found["node-1"].heard_ago_s is not None:
                        break
                    await asyncio.sleep(0.05)

    async def stop(self, name: str) -> None:
        process = self._running.pop(name)
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def end(self) -> None:
        for name in tuple(self._running):
            await self.stop(name)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """The cluster is made, nothing runs but the store."""
    async with contextlib.AsyncExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        path.chmod(0o711)
        etcd = stack.enter_context(members(path / "etcd"))
        await etcd.up(0)
        code, _, err = await command("cluster", "init", str(path / "cluster"), "--host", "127.0.0.1")
        assert code == 0, err
        made = Pair(path, etcd)
        stack.push_async_callback(made.end)
        yield made


async def test_a_node_that_knows_one_server_learns_of_the_other_and_keeps_it(pair: Pair) -> None:
    await pair.serve("s1")
    await pair.join()
    pair.work(f"https://127.0.0.1:{pair.ports['s1']}")
    await pair.lines_to("s1")
    await pair.serve("s2")  # later than the node: it is told by a heartbeat's answer
    await pair.lines_to("s1", "s2")
    learned = pair.path / "node-1" / "state" / "servers.json"
    async with asyncio.timeout(END_S):
        while f"https://localhost:{pair.ports['s2']}" not in learned.read_text():
            await asyncio.sleep(0.05)
    assert pair.said("node-1").count("the line is open") == len(SERVERS), "one to each, though s1 has two addresses"
    await pair.stop("node-1")
    await pair.stop("s1")
    pair.work(f"https://127.0.0.1:{pair.ports['s1']}")  # which nobody serves any more
    await pair.says("node-1", "the line is open")
    await pair.lines_to("s2")
    await pair.serve("s1")
    await pair.lines_to("s1")


async def test_a_node_finds_its_servers_on_the_local_network(pair: Pair) -> None:
    pytest.importorskip("zeroconf", reason="the extra mdns is not installed")
    await pair.serve("s1", "--mdns", "true")
    await pair.join()
    pair.work("mdns:127.0.0.1")
    await pair.lines_to("s1")
