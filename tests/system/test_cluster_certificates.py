"""The CA of three servers is changed and every certificate renewed while a VM runs and people write: row 24.

Three etcd members, three servers with the cluster's directory, two nodes that joined, real QEMU, a fifth of the times.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import nodes, vms
from novacron.client.asynchronous import AsyncClient
from novacron.client.goals import vm_settles
from novacron.client.ha import Ha
from novacron.errors import NovaCronError
from novacron.lab import cleanup, processes
from novacron.lab.processes import Child
from novacron.lab.record import LabDir
from novacron.lab.rom import rom
from tests.etcd_members import members
from tests.ports import free_ports
from tests.system.cluster_site import FIFTH_S, SERVERS, until
from tests.system.joined_site import command
from tests.system.rom_image import an_image
from tests.system.spine import living_copies, needs_guest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.chaos,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"),
    *needs_guest,
]

NODES = ("node-1", "node-2")
STEPS = ("ca-add", "ca-switch", "ca-drop")
TIMED = Ha(policy="restart", min_fence_class="timer")


class Site:
    """Processes by name. client: of all servers, trusting whatever CAs count now."""

    def __init__(self, directory: LabDir, store: str) -> None:
        self.directory, self.path, self.store = directory, directory.path, store
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self.children: dict[str, Child] = {}

    @property
    def addresses(self) -> str:
        return ",".join(f"https://127.0.0.1:{port}" for port in self.ports.values())

    def cluster(self, name: str) -> Path:
        return self.path / f"{name}.cluster"

    def client(self, names: tuple[str, ...] = SERVERS) -> AsyncClient:
        token = (self.path / SERVERS[0] / "admin.token").read_text().strip()
        addresses = ",".join(f"https://127.0.0.1:{self.ports[name]}" for name in names)
        return AsyncClient(addresses, token, ca_file=self.cluster(SERVERS[0]) / "ca.pem", on_notice=lambda _: None)

    def serve(self, name: str) -> None:
        words: tuple[object, ...] = (
            *("--name", name, "--data-dir", self.path / name, "--pool-dir", self.path / "pool"),
            *("--host", "127.0.0.1", "--port", self.ports[name], "--store", self.store, "--cpu-overcommit", 64),
            *("--cluster-dir", self.cluster(name), "--heartbeat-s", FIFTH_S),
        )
        self.children[name] = Child(name, [sys.executable, "-m", "novacron.control", *map(str, words)], self.directory)

    def boot(self, name: str) -> None:
        words = processes.agent_command(self.path, name, "127.0.0.1", self.path / "pool", self.addresses)
        at = words.index("--secret-file")
        words = words[:at] + words[at + 2 :]
        words[words.index("--server")] = "--servers"
        self.children[name] = Child(name, words, self.directory)

    async def ready(self, name: str) -> None:
        async with self.client((name,)) as one:

            async def up() -> bool:
                self.children[name].check()
                found = {node.name: node.state for node in (await one.do(nodes.search())).items}
                return all(found.get(node) == "up" for node in self.children if node in NODES)

            await until(up, f"not all is up at {name}", self.children[name].tail)

    def spread(self) -> None:
        """The first server's CA files, carried to the others as docs/joining.md says."""
        for name in SERVERS[1:]:
            for file in ("ca.pem", "ca.key", "next.key"):
                (self.cluster(name) / file).unlink(missing_ok=True)
                if (self.cluster(SERVERS[0]) / file).exists():
                    shutil.copy2(self.cluster(SERVERS[0]) / file, self.cluster(name) / file)

    async def renew(self, name: str) -> None:
        said = await command("agent", "renew", self.addresses.partition(",")[0], "--state-dir", str(self.state(name)))
        assert said[0] == 0, said

    def state(self, name: str) -> Path:
        return self.path / name / "state"


@contextlib.asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        folder.chmod(0o711)
        etcd = stack.enter_context(members(folder / "etcd", 3))
        await asyncio.gather(*(etcd.up(place) for place in range(3)))
        directory = LabDir(folder / "lab")
        directory.take()
        stack.callback(directory.let_go)
        stack.callback(cleanup.clean, directory.path)
        site = Site(directory, str(etcd.address()))
        stack.push_async_callback(_stop, site)
        said = await command("cluster", "init", str(site.cluster(SERVERS[0])), "--host", "127.0.0.1")
        assert said[0] == 0, said
        for name in SERVERS:
            if name != SERVERS[0]:
                shutil.copytree(site.cluster(SERVERS[0]), site.cluster(name))
            site.serve(name)
            await until(lambda: _exists(site), "the first server makes no token")
            await site.ready(name)
        for name in NODES:
            await _join(site, name)
        for name in SERVERS:
            await site.ready(name)
        async with site.client() as client:
            await an_image(client, "ticker", rom(folder / "cache", 2, 256, 65535, button=True))
        yield site


async def _exists(site: Site) -> bool:
    return (site.path / SERVERS[0] / "admin.token").exists()


async def _join(site: Site, name: str) -> None:
    async with site.client() as client:
        token = (await client.do(nodes.create_token(nodes.NodeTokenCreate()))).token
    (site.path / name).mkdir(mode=0o711)
    words = ("--token-file", "-", "--node-name", name, "--state-dir", str(site.state(name)))
    said = await command("agent", "join", site.addresses.partition(",")[0], *words, said=token)
    assert said[0] == 0, said
    site.boot(name)


async def _stop(site: Site) -> None:
    for child in reversed(site.children.values()):
        await child.stop()


async def tick(client: AsyncClient, vm_id: str) -> int:
    """The newest on the guest's console."""
    text = (await client.do(vms.console_log(vm_id))).text
    ticks = [line.split() for line in text.splitlines() if line.startswith("T ")]
    whole = [one for one in ticks if len(one) == 3 and len(one[2]) == 8]
    return int(whole[-1][1], 16) if whole else 0


async def ticks_on(site: Site, vm_id: str) -> None:
    async with site.client() as client:
        before = await tick(client, vm_id)

        async def so() -> bool:
            return await tick(client, vm_id) > before

        await until(so, "the guest does not tick")


async def writes(site: Site, vm_id: str, done: list[int]) -> None:
    """Count in a label for ever; what was acknowledged is in `done`."""
    while True:
        async with site.client() as client:
            with contextlib.suppress(NovaCronError):
                await client.do(vms.update(vm_id, vms.VmUpdate(labels={"count": str(len(done))})))
                done.append(len(done))
        await asyncio.sleep(0.1)


def plain_answer(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        plain.sendall(b"GET /api/v1/vms HTTP/1.1\r\nHost: x\r\n\r\n")
        return plain.recv(100)


async def test_the_ca_changes_on_three_servers_while_a_vm_runs_and_people_write() -> None:
    async with a_site() as site:
        async with site.client() as client:
            wish = vms.VmCreate(name="one", image="ticker", memory_mib=32, nics=[], node="node-1", ha=TIMED)
            vm = await client.wait_vm((await client.do(vms.create(wish))).id, vm_settles("running"), deadline_s=60.0)
        pids, done = living_copies(vm.id), list[int]()
        assert pids
        writing = asyncio.create_task(writes(site, vm.id, done))
        try:
            for step in STEPS:
                assert (await command("cluster", step, str(site.cluster(SERVERS[0]))))[0] == 0
                site.spread()
                await everything_takes_it(site)
                await ticks_on(site, vm.id)
                assert living_copies(vm.id) == pids
                before = len(done)
                await until(lambda so=before: _more(done, so), "no write is acknowledged")
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        assert len((site.cluster(SERVERS[2]) / "ca.pem").read_text().split("BEGIN")) == 2, "the old one is not trusted"
        for port in site.ports.values():
            assert b"HTTP" not in await asyncio.to_thread(plain_answer, port)
        async with site.client() as client:
            found = await client.do(vms.get(vm.id))
            assert (found.node, found.generation) == (vm.node, vm.generation)
            assert int(found.labels["count"]) >= done[-1]
            await client.do(vms.delete(vm.id, force=True))
            await client.wait_vm_gone(vm.id, deadline_s=60.0)


async def _more(done: list[int], before: int) -> bool:
    return len(done) > before


async def everything_takes_it(site: Site) -> None:
    """Every server is started anew, one after the other, and every node has a certificate of the CA that signs."""
    for name in SERVERS:
        site.children[name].kill()
        site.children[name].start_again()
        await site.ready(name)
    for name in NODES:
        await site.renew(name)
    for name in SERVERS:
        await site.ready(name)
