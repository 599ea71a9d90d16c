"""A whole cluster on this machine: three etcd members, three servers, three nodes that are hosts of their own (root).

Agents dial every server over TLS through their node's link, then through a passage that a test may bend:

    node-n ── link ── fabric ── gateway of s1 ── passage ── s1 ── etcd members m0 m1 m2 (loopback)
                          ├──── gateway of s2 ── passage ── s2 ──┘
                          └──── gateway of s3 ── passage ── s3 ──┘
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from novacron.client import nodes, servers, vms
from novacron.client.asynchronous import AsyncClient
from novacron.client.goals import vm_fits, vm_settles
from novacron.client.ha import Ha
from novacron.control.store.base import Delete
from novacron.control.store.kinds import FENCES
from novacron.errors import NovaCronError
from novacron.lab import cleanup, gateway, processes
from novacron.lab.links import Link, Links
from novacron.lab.network import Fabric, fabric_address, node_address
from novacron.lab.node import Node
from novacron.lab.processes import Child
from novacron.lab.record import LabDir
from novacron.lab.rom import rom
from novacron.model.ha import FenceLog
from tests.etcd_members import Members, members, opened
from tests.ports import free_ports
from tests.system.passage import Passage, passage
from tests.system.rom_image import an_image
from tests.system.spine import needs_guest

FIFTH_S = 0.4
"""A heartbeat at a fifth of the usual times; every other time goes with it."""
WITHIN_S = 90.0
SERVERS = ("s1", "s2", "s3")
NODES = ("node-1", "node-2", "node-3")
TIMED = Ha(policy="restart", min_fence_class="timer")
LOOK_S = 0.05

needs_cluster = [
    pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed"),
    pytest.mark.root,
    pytest.mark.alone,  # at a fifth of the usual times, a node that has to wait for a processor is a node that failed
    *needs_guest,
]


class ClusterSite:
    """The parts by name. client: of all servers; readers: of one server each, which wait for nobody else."""

    def __init__(self, directory: LabDir, etcd: Members, heartbeat_s: float) -> None:
        self.path = directory.path
        self.directory = directory
        self.etcd = etcd
        self.heartbeat_s = heartbeat_s
        self.ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self.servers: dict[str, Child] = {}
        self.passages: dict[str, Passage] = {}
        self.hosts: dict[str, Node] = {}
        self.readers: dict[str, AsyncClient] = {}
        self.links: Links
        self.client: AsyncClient

    @property
    def token(self) -> str:
        return (self.path / SERVERS[0] / "admin.token").read_text().strip()

    def link(self, node: str) -> Link:
        return Link(self.links, self.hosts[node].number)

    def host_pid(self, vm: vms.Vm) -> int:
        """What this machine calls the process of a VM that runs."""
        assert vm.node is not None
        assert vm.pid is not None
        return self.hosts[vm.node].host_pid(vm.pid)

    def last_words(self) -> str:
        """Of every process, for who looks at what failed: the directory is gone by then."""
        children = [*self.servers.values(), *(host.agent for host in self.hosts.values())]
        return "\n".join(f"== {child.name}\n{child.tail()}" for child in children)

    # -- waiting -------------------------------------------------------------------------------------------

    async def ready(self, name: str) -> None:
        """Return when that server answers from the store."""

        async def answers() -> bool:
            self.servers[name].check()
            await self.readers[name].do(nodes.search())
            return True

        await until(answers, f"{name} does not answer")

    async def a_leader(self, other_than: str = "") -> str:
        found = ""

        async def leads() -> bool:
            nonlocal found
            for name, reader in self.readers.items():
                with contextlib.suppress(NovaCronError):
                    seen = [one.name for one in (await reader.do(servers.search())).items if one.leads]
                    if seen and seen[0] == name and name != other_than:
                        found = name
            return bool(found)

        await until(leads, f"nobody but {other_than or 'nobody'} leads")
        return found

    async def node_is(self, name: str, *states: str) -> nodes.Node:
        found: list[nodes.Node] = []

        async def so() -> bool:
            found[:] = [await self.client.do(nodes.get(name))]
            return found[0].state in states

        await until(so, f"{name} is not {' or '.join(states)}", lambda: found)
        return found[0]

    async def epoch(self, node: str) -> int:
        return (await self.client.do(nodes.get(node))).epoch or 0

    async def joins_after(self, node: str, epoch: int) -> None:
        """Return when it takes part under a newer epoch."""

        async def so() -> bool:
            now = await self.client.do(nodes.get(node))
            return now.state == "up" and (now.epoch or 0) > epoch

        await until(so, f"{node} does not join")

    async def all_up(self) -> None:
        for name in NODES:
            await self.node_is(name, "up")

    async def runs_elsewhere(self, before: vms.Vm) -> vms.Vm:
        """The VM once it runs on another node than that."""
        found: list[vms.Vm] = []

        async def so() -> bool:
            found[:] = [await self.client.do(vms.get(before.id))]
            return found[0].state == "running" and found[0].node_id != before.node_id

        await until(so, "the VM does not run elsewhere", lambda: found)
        return found[0]

    async def runs(self, vm: vms.Vm) -> vms.Vm:
        return await self.client.wait_vm(vm.id, vm_settles("running"), deadline_s=WITHIN_S)

    # -- between stories -----------------------------------------------------------------------------------

    async def forgive_fences(self) -> None:
        """As if ten minutes had passed: a site sees more fences than a cluster is to have in that time."""
        async with opened(self.etcd.address()) as store:
            await store.commit([Delete(FENCES.key(FenceLog().id))])

    async def heal(self) -> None:
        """Whatever a story has broken is whole again."""
        for place in range(len(self.etcd.ports)):
            self.etcd.revive(place)
        for way in self.passages.values():
            way.bends = type(way.bends)()
        for child in self.servers.values():
            thaw_or_start(child)
        for name, host in self.hosts.items():
            self.link(name).mend()
            await asyncio.to_thread(host.power_on)
            thaw_or_start(host.agent)
        for place in range(len(self.etcd.ports)):
            await self.etcd.up(place)
        for name in SERVERS:
            await self.ready(name)
        await self.all_up()


def thaw_or_start(child: Child) -> None:
    """It runs, whether it was stopped or has ended."""
    if child.lives:
        child.process.send_signal(signal.SIGCONT)
    else:
        child.start_again()


async def until(holds: Callable[[], Awaitable[bool]], otherwise: str, seen: Callable[[], object] = lambda: "") -> None:
    """Look again and again; servers that do not answer meanwhile are looked over."""
    last: object = ""
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                try:
                    if await holds():
                        return
                except NovaCronError as refused:
                    last = refused.message
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        raise AssertionError(f"{otherwise} after {WITHIN_S:g} s: {seen()} {last}") from None


@contextlib.asynccontextmanager
async def a_cluster(heartbeat_s: float = FIFTH_S) -> AsyncIterator[ClusterSite]:
    """All up, the image `ticker` there; nothing is left of it afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        folder.chmod(0o711)
        etcd = stack.enter_context(members(folder / "etcd", 3))
        directory = LabDir(folder / "lab")
        directory.take()
        stack.callback(directory.let_go)
        stack.callback(cleanup.clean, directory.path)
        await asyncio.gather(*(etcd.up(place) for place in range(3)))
        site = ClusterSite(directory, etcd, heartbeat_s)
        fabric = Fabric(0)
        stack.callback(fabric.close)
        await _serve(site, stack)
        await _open_doors(site, fabric, stack)
        _boot(site, fabric, stack)
        stack.push_async_callback(_end_vms, site)
        await processes.until_up(site.client, [host.agent for host in site.hosts.values()])
        await asyncio.to_thread(fabric.settle)
        guest = rom(folder / "cache", 2, 256, 65535, button=True)
        await an_image(site.client, "ticker", guest)
        yield site


async def _serve(site: ClusterSite, stack: contextlib.AsyncExitStack) -> None:
    addresses = {name: f"http://127.0.0.1:{port}" for name, port in site.ports.items()}
    for name in SERVERS:
        site.servers[name] = Child(name, _server_command(site, name), site.directory)
        stack.push_async_callback(site.servers[name].stop)
        if name == SERVERS[0]:  # it makes secret and token
            await until(functools.partial(_exists, site), "the first server makes no token")
        reader = AsyncClient(addresses[name], site.token, answer_within_s=2.0, tries=1)
        site.readers[name] = await stack.enter_async_context(reader)
    for name in SERVERS:
        await site.ready(name)
    client = AsyncClient(",".join(addresses.values()), site.token, on_notice=lambda _: None)
    site.client = await stack.enter_async_context(client)


async def _exists(site: ClusterSite) -> bool:
    site.servers[SERVERS[0]].check()
    return (site.path / SERVERS[0] / "admin.token").exists()


async def _open_doors(site: ClusterSite, fabric: Fabric, stack: contextlib.AsyncExitStack) -> None:
    certificate, key = processes.gateway_certificate(site.path), processes.gateway_key(site.path)
    await asyncio.to_thread(gateway.certify, fabric_address(), certificate, key)
    for name in SERVERS:
        entry = site.path / f"{name}.way"
        site.passages[name] = await stack.enter_async_context(passage(entry, site.path / f"{name}.sock"))
        words = processes.gateway_command(site.path, fabric_address())
        words += ["--port", str(site.ports[name]), "--socket", str(entry)]  # the last one given counts
        stack.push_async_callback(Child(f"gateway-{name}", words, site.directory, fabric.fabric).stop)


def _boot(site: ClusterSite, fabric: Fabric, stack: contextlib.AsyncExitStack) -> None:
    site.links = Links(fabric, site.directory)
    stack.callback(site.links.close)
    for number, name in enumerate(NODES, 1):
        host = site.hosts[name] = Node(number, _agent_command(site, name, number), site.directory, site.links)
        stack.callback(host.power_off)
        stack.push_async_callback(host.agent.stop)


def _server_command(site: ClusterSite, name: str) -> list[str]:
    words: Iterable[object] = (
        *("--name", name, "--data-dir", site.path / name, "--pool-dir", site.path / "pool"),
        *("--port", site.ports[name], "--socket", site.path / f"{name}.sock", "--store", site.etcd.address()),
        *("--agent-secret-file", site.path / "agent.secret", "--cpu-overcommit", 64),
        *("--heartbeat-s", site.heartbeat_s),
    )
    return [sys.executable, "-m", "novacron.control", *map(str, words)]


def _agent_command(site: ClusterSite, name: str, number: int) -> list[str]:
    doors = ",".join(f"https://{fabric_address()}:{port}" for port in site.ports.values())
    words: Iterable[object] = (
        *("--servers", doors, "--tls-ca", processes.gateway_certificate(site.path)),
        *("--secret-file", site.path / "agent.secret", "--node-name", name, "--pool-dir", site.path / "pool"),
        *("--state-dir", site.path / name / "state", "--run-dir", processes.run_dir(site.path / name)),
        *("--migration-host", node_address(number)),
    )
    return [sys.executable, "-m", "novacron.agent", *map(str, words)]


async def _end_vms(site: ClusterSite) -> None:
    """Through the API, as far as there is one still; the cleanup ends the rest."""
    with contextlib.suppress(NovaCronError):
        for vm in [vm async for vm in site.client.each(vms.search())]:
            await end_vm(site, vm.id)


async def end_vm(site: ClusterSite, vm_id: str) -> None:
    """Also one whose node has just been away: it can be deleted once it has been seen again."""
    await site.client.wait_vm(vm_id, vm_fits(lambda vm: vm.state != "unknown", "seen"), deadline_s=WITHIN_S)
    await site.client.do(vms.delete(vm_id, force=True))
    await site.client.wait_vm_gone(vm_id, deadline_s=WITHIN_S)


async def a_vm(site: ClusterSite, name: str, **more: object) -> vms.Vm:
    """A running VM that is restarted elsewhere when its node fails."""
    wish = vms.VmCreate(name=name, image="ticker", memory_mib=32, nics=[], ha=TIMED, **more)  # type: ignore[arg-type]
    made = await site.client.do(vms.create(wish))
    return await site.runs(made)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
