"""A whole NovaCron on this machine: control plane, agents, as root their own network. Leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from novacron.client import vms
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError
from novacron.lab import cleanup, processes
from novacron.lab.network import Fabric, node_address
from novacron.lab.processes import Child
from novacron.lab.record import LabDir

Say = Callable[[str], None]
_LOOPBACK = "127.0.0.1"
_VM_END_S = 30.0


class Lab(NamedTuple):
    """A lab that runs. fabric: None without root, where the guests are on user-mode networks.

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


def usual_path(name: str = "demo") -> Path:
    """Where the lab of that name lies. Short, for a unix socket's path has 107 bytes; nobody else can take it."""
    if os.geteuid() == 0:
        return Path("/run") / f"novacron-{name}"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(runtime) / f"novacron-{name}" if runtime else Path("/tmp") / f"novacron-{name}-{os.geteuid()}"  # noqa: S108 - LabDir checks whose it is


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
async def open_lab(path: Path, *, nodes: int = 2, bridged: bool, say: Say = lambda _: None) -> AsyncIterator[Lab]:
    """A lab in `path`, ready; gone again afterwards, whatever happened inside.

    bridged: (root) guests on a bridge that spans the nodes; else on QEMU's user-mode network.
    :raise LabFailed: it could not be built; nothing of it is left.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = LabDir(path)
        directory.take()
        stack.callback(directory.let_go)
        if left := cleanup.clean(path):
            say(f"ended {left} processes of a lab that was cut off")
        stack.callback(cleanup.clean, path)
        yield await _build(stack, directory, nodes, bridged, say)
        say("putting everything away")


async def _build(stack: contextlib.AsyncExitStack, directory: LabDir, count: int, bridged: bool, say: Say) -> Lab:
    path, port = directory.path, processes.choose_port()
    names = tuple(f"node-{number}" for number in range(1, count + 1))
    fabric = Fabric(count) if bridged else None
    if fabric:
        stack.callback(fabric.close)

    server = Child("server", processes.server_command(path, port), directory)
    stack.push_async_callback(server.stop)
    await processes.until_ready(server, port)
    say("the control plane is ready")

    agents = []
    for number, name in enumerate(names, start=1):
        address = node_address(number) if fabric else _LOOPBACK
        namespace = fabric.nodes[number - 1] if fabric else None
        agents.append(Child(name, processes.agent_command(path, name, address), directory, namespace))
        stack.push_async_callback(agents[-1].stop)

    url, token_file = f"http://{_LOOPBACK}:{port}", path / "server" / "admin.token"
    client = await stack.enter_async_context(AsyncClient(url, token_file.read_text().strip()))
    stack.push_async_callback(_end_machines, client, say)
    await processes.until_up(client, agents)
    if fabric:
        await asyncio.to_thread(fabric.settle)
    say(f"{' and '.join(names)} are up")
    children = {child.name: child for child in (server, *agents)}
    return Lab(path, url, token_file, client, fabric, names, children, directory.note)


async def _end_machines(client: AsyncClient, say: Say) -> None:
    """Through the API, as a user would; what it cannot end the cleanup ends."""
    try:
        for vm in [vm async for vm in client.each(vms.search())]:
            if vm.state != "stopped":
                await client.do(vms.stop(vm.id, vms.StopRequest(force=True)))
                await client.wait_vm(vm.id, "stopped", deadline_s=_VM_END_S)
            await client.do(vms.delete(vm.id))
            await client.wait_vm_gone(vm.id, deadline_s=_VM_END_S)
    except NovaCronError as failure:
        say(f"the API could not delete everything ({failure.message}); ending it by hand")
