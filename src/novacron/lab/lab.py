"""A whole NovaCron on this machine: control plane, agents, as root their own network. Leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from novacron.client import vms
from novacron.client.asynchronous import AsyncClient
from novacron.client.goals import vm_settles
from novacron.errors import NovaCronError
from novacron.lab import cleanup, gateway, processes, record
from novacron.lab.failure import LabFailed
from novacron.lab.links import Link, Links, Pair
from novacron.lab.network import Fabric, fabric_address, node_address
from novacron.lab.node import Node
from novacron.lab.processes import Child
from novacron.lab.record import LabDir

Say = Callable[[str], None]
_LOOPBACK = "127.0.0.1"
_VM_END_S = 30.0


class Lab(NamedTuple):
    """A lab that runs. fabric: None without root, where nodes have no place of their own and no links.

    children: the processes by name ("server", then the nodes'), for those who want to see them die.
    note: tells the cleanup of another command that is about to be started in the lab's directory.
    """

    path: Path
    server: str
    token_file: Path
    client: AsyncClient
    fabric: Fabric | None
    nodes: tuple[str, ...]
    children: dict[str, Child]
    note: Callable[[list[str]], None]
    hosts: tuple[Node, ...]
    links: Links | None

    def node(self, name: str) -> Node:
        """The host of that name. :raise LabFailed: there is none, or the lab has none."""
        self._must_have_links()
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabFailed.because(f"there is no node {name}", f"give one of {', '.join(self.nodes)}")

    def link(self, name: str) -> Link:
        """The link between that node and the fabric. :raise LabFailed: as `node`."""
        return Link(self._must_have_links(), self.node(name).number)

    def between(self, one: str, other: str) -> Pair:
        """The way from node to node. :raise LabFailed: as `node`, or the two are one."""
        numbers = self.node(one).number, self.node(other).number
        if numbers[0] == numbers[1]:
            raise LabFailed.because(f"{one} cannot be parted from itself", "give two nodes")
        return Pair(self._must_have_links(), *numbers)

    def _must_have_links(self) -> Links:
        if self.links is None:
            raise LabFailed.because("without root the lab's nodes have no links and no power", "run the lab as root")
        return self.links


def usual_path(name: str = "demo") -> Path:
    """Where the lab of that name lies. Short, for a unix socket's path has 107 bytes; nobody else can take it."""
    parent, suffix = _usual_place()
    return parent / f"novacron-{name}{suffix}"


def found() -> dict[str, Path]:
    """The labs there are at their usual paths, by name: running ones, and what is left of others."""
    parent, suffix = _usual_place()
    paths = [file.parent for file in parent.glob(f"novacron-*{suffix}/{record.FILE}")]
    return {path.name.removeprefix("novacron-").removesuffix(suffix): path for path in sorted(paths)}


def _usual_place() -> tuple[Path, str]:
    if os.geteuid() == 0:
        return Path("/run"), ""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return (Path(runtime), "") if runtime else (Path("/tmp"), f"-{os.geteuid()}")  # noqa: S108 - LabDir checks whose


def clean(path: Path) -> int:
    """End what a lab that was cut off left in `path`; the number of processes ended.

    :raise LabFailed: it is not cut off, or not ours.
    """
    if not path.exists():
        return 0
    directory = LabDir(path)
    directory.take()
    try:
        return cleanup.clean(path)
    finally:
        directory.let_go()


@contextlib.asynccontextmanager
async def open_lab(
    path: Path,
    *,
    nodes: int = 2,
    bridged: bool,
    shared_pool: bool = True,
    over_fabric: bool = False,
    heartbeat_s: float | None = None,
    say: Say = lambda _: None,
) -> AsyncIterator[Lab]:
    """A lab in `path`, ready; gone again afterwards, whatever happened inside.

    bridged: (root) each node a host of its own, guests on a bridge that spans them; else all on this machine's own
    network, guests on QEMU's. shared_pool: the nodes share the server's storage pool; else each has its own.
    over_fabric: (bridged) agents dial the server through their links, over TLS; else past them, by a unix socket.
    heartbeat_s: of its nodes, and with it every other time of ownership; None: the usual.
    :raise LabFailed: it could not be built; nothing of it is left.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = LabDir(path)
        directory.take()
        stack.callback(directory.let_go)
        if left := cleanup.clean(path):
            say(f"ended {left} processes of a lab that was cut off")
        stack.callback(cleanup.clean, path)
        builder = _Builder(
            stack,
            directory,
            say,
            bridged=bridged,
            shared_pool=shared_pool,
            over_fabric=over_fabric,
            heartbeat_s=heartbeat_s,
        )
        yield await builder.build(nodes)
        say("putting everything away")


class PortTaken(LabFailed):
    """Somebody else listens there now."""


class _Builder:
    """Builds a lab; what it starts ends with `stack`, in reverse."""

    def __init__(
        self,
        stack: contextlib.AsyncExitStack,
        directory: LabDir,
        say: Say,
        *,
        bridged: bool,
        shared_pool: bool,
        over_fabric: bool,
        heartbeat_s: float | None,
    ) -> None:
        self._stack, self._directory, self._say = stack, directory, say
        self._bridged, self._shared_pool, self._over_fabric = bridged, shared_pool, over_fabric and bridged
        self._path, self._heartbeat_s = directory.path, heartbeat_s

    async def build(self, count: int) -> Lab:
        numbers = range(1, count + 1)
        names = tuple(map(processes.name_of, numbers))
        fabric = Fabric(0) if self._bridged else None
        if fabric:
            self._stack.callback(fabric.close)
        server, port = await self._serve(fabric)
        hosts, links = self._hosts(fabric, numbers) if fabric else ((), None)
        agents = [host.agent for host in hosts] or [self._agent(name) for name in names]

        url, token_file = f"http://{_LOOPBACK}:{port}", self._path / "server" / "admin.token"
        client = await self._stack.enter_async_context(AsyncClient(url, token_file.read_text().strip()))
        self._stack.push_async_callback(_end_machines, client, self._say)
        await processes.until_up(client, agents)
        if fabric:
            await asyncio.to_thread(fabric.settle)
        self._say(f"{' and '.join(names)} are up")
        children = {child.name: child for child in (server, *agents)}
        return Lab(self._path, url, token_file, client, fabric, names, children, self._directory.note, hosts, links)

    async def _serve(self, fabric: Fabric | None) -> tuple[Child, int]:
        if self._over_fabric and fabric:
            certificate, key = processes.gateway_certificate(self._path), processes.gateway_key(self._path)
            await asyncio.to_thread(gateway.certify, fabric_address(), certificate, key)
            command = processes.gateway_command(self._path, fabric_address())
            self._stack.push_async_callback(Child("gateway", command, self._directory, fabric.fabric).stop)
        usual = self._stack.enter_context(processes.usual_port())
        try:
            return await self._serve_at(usual or processes.any_port())
        except PortTaken:
            return await self._serve_at(processes.any_port())

    async def _serve_at(self, port: int) -> tuple[Child, int]:
        """:raise PortTaken: another was quicker."""
        server = Child("server", processes.server_command(self._path, port, self._heartbeat_s), self._directory)
        self._stack.push_async_callback(server.stop)
        try:
            await processes.until_ready(server)
        except LabFailed as failed:
            if f"cannot listen on {_LOOPBACK}:{port}" in server.tail():
                raise PortTaken(failed.message) from failed
            raise
        self._say("the control plane is ready")
        return server, port

    def _hosts(self, fabric: Fabric, numbers: Iterable[int]) -> tuple[tuple[Node, ...], Links]:
        links = Links(fabric, self._directory)
        self._stack.callback(links.close)
        hosts = []
        for number in numbers:
            command = self._agent_command(processes.name_of(number), node_address(number))
            hosts.append(Node(number, command, self._directory, links))
            self._stack.callback(hosts[-1].power_off)
            self._stack.push_async_callback(hosts[-1].agent.stop)
        return tuple(hosts), links

    def _place(self, name: str) -> Path:
        """Where `own_pool` of a node is: as the node itself sees it."""
        return self._path if self._bridged else self._path / name

    def _agent(self, name: str) -> Child:
        processes.own_pool(self._path / name).mkdir(mode=0o711, parents=True, exist_ok=True)
        made = Child(name, self._agent_command(name, _LOOPBACK), self._directory)
        self._stack.push_async_callback(made.stop)
        return made

    def _agent_command(self, name: str, address: str) -> list[str]:
        pool = self._path / "pool" if self._shared_pool else processes.own_pool(self._place(name))
        server, ca = f"unix:{processes.server_socket(self._path)}", None
        if self._over_fabric:
            server, ca = f"https://{fabric_address()}:{processes.USUAL_PORT}", processes.gateway_certificate(self._path)
        return processes.agent_command(self._path, name, address, pool, server, ca)


async def _end_machines(client: AsyncClient, say: Say) -> None:
    """Through the API, as a user would; what it cannot end the cleanup ends."""
    try:
        for vm in [vm async for vm in client.each(vms.search())]:
            if vm.state != "stopped":
                await client.do(vms.stop(vm.id, vms.StopRequest(force=True)))
                await client.wait_vm(vm.id, vm_settles("stopped"), deadline_s=_VM_END_S)
            await client.do(vms.delete(vm.id))
            await client.wait_vm_gone(vm.id, deadline_s=_VM_END_S)
    except NovaCronError as failure:
        say(f"the API could not delete everything ({failure.message}); ending it by hand")
