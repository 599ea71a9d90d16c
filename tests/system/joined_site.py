"""A server with a cluster's CA and two nodes that joined it by the command, as processes; nodes dial it over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from novacron.agent.credentials import Badge
from novacron.client import nodes
from novacron.client.asynchronous import AsyncClient
from novacron.lab import cleanup, processes
from novacron.lab.lab import Lab
from novacron.lab.processes import Child
from novacron.lab.record import LabDir
from novacron.lab.rom import rom
from tests.system.rom_image import an_image

LASTS_S = 12
COMMAND_WITHIN_S = 60.0


class Site:
    """The processes as a lab, and each node's identity."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def state(self, name: str) -> Path:
        return self.lab.path / name / "state"

    def badge(self, name: str) -> Badge:
        return Badge(self.state(name))

    def serial(self, name: str) -> int:
        """Of the certificate that the node has now."""
        return self.badge(name).certificate().serial_number

    async def renewed(self, name: str, before: int) -> None:
        """Return when the node has another certificate than that."""
        async with asyncio.timeout(COMMAND_WITHIN_S):
            while self.serial(name) == before:
                await asyncio.sleep(0.05)

    def lines_opened(self, name: str) -> int:
        """How often the node's agent has opened a line."""
        return self.lab.children[name].log.read_text().count("the line is open")


async def command(*words: str, said: str = "") -> tuple[int, str, str]:
    """What `novacron …` answers: its exit code, stdout and stderr. said: on stdin."""
    # As users start it, in a process group of its own.
    made = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "novacron.cli.main", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={key: value for key, value in os.environ.items() if not key.startswith("NOVACRON_")},
    )
    async with asyncio.timeout(COMMAND_WITHIN_S):
        out, err = await made.communicate(said.encode())
    assert made.returncode is not None
    return made.returncode, out.decode(), err.decode()


async def token_of(lab: Lab, node: str | None = None) -> str:
    return (await lab.client.do(nodes.create_token(nodes.NodeTokenCreate(node=node)))).token


async def join(lab: Lab, name: str, token: str) -> tuple[int, str, str]:
    """Through `novacron agent join`, the token on stdin."""
    words = ("--token-file", "-", "--node-name", name, "--state-dir", str(lab.path / name / "state"))
    return await command("agent", "join", lab.server, *words, said=token)


@contextlib.asynccontextmanager
async def a_site(*, with_image: bool = True) -> AsyncIterator[Site]:
    """Two nodes, up, over certificates that last LASTS_S; gone afterwards with everything in it."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp")))
        folder.chmod(0o711)
        directory = LabDir(folder / "lab")
        directory.take()
        stack.callback(directory.let_go)
        stack.callback(cleanup.clean, directory.path)
        lab = await _served(directory, stack)
        for name in lab.nodes:
            (lab.path / name).mkdir(mode=0o711)
            code, _, err = await join(lab, name, await token_of(lab))
            assert code == 0, err
            lab.children[name] = Child(name, _agent(lab, name), directory)
            stack.push_async_callback(lab.children[name].stop)
        await processes.until_up(lab.client, [lab.children[name] for name in lab.nodes])
        if with_image:
            guest = rom(folder / "cache", pages_per_tick=2, wss_pages=2048, button=True)
            await an_image(lab.client, "ticker", guest)
        yield Site(lab)


async def _served(directory: LabDir, stack: contextlib.AsyncExitStack) -> Lab:
    path, cluster = directory.path, directory.path / "cluster"
    code, _, err = await command("cluster", "init", str(cluster), "--host", "127.0.0.1")
    assert code == 0, err
    port = processes.any_port()
    flags = ("--cluster-dir", str(cluster), "--node-certificate-lasts-s", str(LASTS_S))
    server = Child("server", [*processes.server_command(path, port), *flags], directory)
    stack.push_async_callback(server.stop)
    await processes.until_ready(server)
    url, token_file = f"https://127.0.0.1:{port}", path / "server" / "admin.token"
    client = AsyncClient(url, token_file.read_text().strip(), ca_file=cluster / "ca.pem")
    await stack.enter_async_context(client)
    names = (processes.name_of(1), processes.name_of(2))
    return Lab(path, url, token_file, client, None, names, {"server": server}, directory.note, (), None)


def _agent(lab: Lab, name: str) -> list[str]:
    """An agent's command as the lab has it, without the secret that nodes share there."""
    words = processes.agent_command(lab.path, name, "127.0.0.1", lab.path / "pool", lab.server)
    at = words.index("--secret-file")
    return words[:at] + words[at + 2 :]
