"""The lab's control plane and agents as real processes: started, waited for until they are ready, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import httpx2

from novacron.client import nodes
from novacron.client.asynchronous import AsyncClient
from novacron.errors import Unavailable
from novacron.failpoint import VARIABLE as FAILPOINTS
from novacron.lab.failure import LabFailed
from novacron.lab.record import LabDir

USUAL_PORT = 8470
READY_S = 60.0
STOP_S = 15.0
_POLL_S = 0.05
Result = TypeVar("Result")
_LOG_TAIL = 2000


class Place(Protocol):
    """Where a process may be started: a namespace, or a node."""

    def run(self, call: Callable[[], Result]) -> Result:
        """Do `call` in there."""


class Child:
    """One of our processes, its words in a file of its own."""

    def __init__(self, name: str, command: list[str], lab: LabDir, place: Place | None = None) -> None:
        """Start it in `place`. It is written down in the lab's record first."""
        self.name = name
        self.directory = lab.path / name
        self.directory.mkdir(mode=0o711, exist_ok=True)
        self.log = lab.path / f"{name}.log"
        self.command = command
        self._place = place
        lab.note(command)
        self.log.unlink(missing_ok=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        def start() -> subprocess.Popen[bytes]:
            with open(self.log, "ab", opener=_private) as log:
                return subprocess.Popen(  # noqa: S603 - a list of our own
                    self.command,
                    cwd=self.directory,
                    env={
                        key: value
                        for key, value in os.environ.items()
                        if key == FAILPOINTS or not key.startswith("NOVACRON_")
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the lab, which ends them in order
                )

        return self._place.run(start) if self._place else start()

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """End it as a crash would: at once, with no word to anybody."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """After its end: the same process anew, writing on in the same log."""
        self.process = self._start()

    def check(self) -> None:
        """:raise LabFailed: it has ended, with the last it wrote."""
        status = self.process.poll()
        if status is not None:
            raise LabFailed.because(f"{self.name} ended with status {status}: {self.tail()}", f"read {self.log}")

    def tail(self) -> str:
        return self.log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip()

    async def stop(self) -> None:
        """Ask it to end; when it has not at the deadline, end it."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            await asyncio.to_thread(self.process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def server_command(lab: Path, port: int, heartbeat_s: float | None = None) -> list[str]:
    """heartbeat_s: as ServerConfig has it; None: the usual."""
    # fmt: off
    return [
        sys.executable, "-m", "novacron.control", "--data-dir", str(lab / "server"), "--pool-dir", str(lab / "pool"),
        "--host", "127.0.0.1", "--port", str(port), "--socket", str(server_socket(lab)),
        "--cpu-overcommit", "64",  # all nodes are this machine: small guests, many of them, mostly idle
        *(("--heartbeat-s", str(heartbeat_s)) if heartbeat_s else ()),
    ]
    # fmt: on


def agent_command(lab: Path, name: str, address: str, pool: Path, server: str, ca: Path | None = None) -> list[str]:
    """pool: its storage pool. server: as AgentConfig.server has it; ca: what vouches for one over TLS."""
    # fmt: off
    return [
        sys.executable, "-m", "novacron.agent", "--server", server, *(("--tls-ca", str(ca)) if ca else ()),
        "--secret-file", str(lab / "server" / "agent.secret"), "--node-name", name,
        "--state-dir", str(lab / name / "state"), "--run-dir", str(run_dir(lab / name)),
        "--pool-dir", str(pool), "--migration-host", address,
    ]
    # fmt: on


def gateway_command(lab: Path, address: str) -> list[str]:
    """The server's door on the fabric; `gateway_certificate` and its key are made before it starts."""
    # fmt: off
    return [
        sys.executable, "-m", "novacron.lab.gateway", "--address", address, "--port", str(USUAL_PORT),
        "--certificate", str(gateway_certificate(lab)), "--key", str(gateway_key(lab)),
        "--socket", str(server_socket(lab)),
    ]
    # fmt: on


def gateway_certificate(lab: Path) -> Path:
    return lab / "gateway.pem"


def gateway_key(lab: Path) -> Path:
    return lab / "gateway.key"


def name_of(number: int) -> str:
    """Node `number`, from 1, as it is called."""
    return f"node-{number}"


def disk_dir(lab: Path) -> Path:
    """Where each node sees a disk of its own: one path, on every node something else, as on real hosts."""
    return lab / "disk"


def own_pool(place: Path) -> Path:
    """The storage pool of one node: below `disk_dir` as the node sees it, below its directory as we do."""
    return place / "disk" / "pool"


def run_dir(node: Path) -> Path:
    """What does not outlive a node's boot, in its directory."""
    return node / "run"


def server_socket(lab: Path) -> Path:
    """Agents dial it from their namespaces: a file system's sockets are not of any network."""
    return lab / "server.sock"


@contextlib.contextmanager
def usual_port() -> Iterator[int | None]:
    """The usual port, no other lab's while this lasts: not while our server is down either. None: it is taken."""
    with socket.socket(socket.AF_UNIX) as ours:
        try:
            ours.bind(f"\0novacron-lab-{USUAL_PORT}")  # a name without a file: it ends with whoever holds it
        except OSError:
            free = None
        else:
            free = _free(USUAL_PORT)
        yield free


def any_port() -> int:
    """A port nobody listens on. :raise LabFailed: there is none."""
    port = _free(0)
    if port is None:
        raise LabFailed.because("no TCP port is free on 127.0.0.1")
    return port


def _free(wanted: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return None
        port: int = probe.getsockname()[1]
        return port


async def until_ready(server: Child) -> None:
    """Return when the server says that it is. :raise LabFailed: it ends, or takes too long.

    Asked by its unix socket: on its port another lab's server may have been quicker.
    """
    socket_file = server_socket(server.directory.parent)
    transport = httpx2.AsyncHTTPTransport(uds=str(socket_file))
    async with httpx2.AsyncClient(base_url="http://localhost", transport=transport) as http:

        async def ready() -> bool:
            try:
                return (await http.get("/readyz")).status_code == httpx2.codes.OK
            except httpx2.TransportError:
                return False

        await _until(ready, [server], "the control plane is not ready")


async def until_up(client: AsyncClient, agents: list[Child]) -> dict[str, nodes.Node]:
    """The agents' nodes by name, once all are up. :raise LabFailed: one ends, or takes too long."""
    seen: dict[str, nodes.Node] = {}

    async def up() -> bool:
        try:
            seen.update({node.name: node async for node in client.each(nodes.search())})
        except Unavailable:
            return False
        return all(agent.name in seen and seen[agent.name].state == "up" for agent in agents)

    await _until(up, agents, "not all nodes are up")
    return seen


async def _until(condition: Callable[[], Awaitable[bool]], children: list[Child], otherwise: str) -> None:
    end = time.monotonic() + READY_S
    while not await condition():
        for child in children:
            child.check()
        if time.monotonic() > end:
            last = "; ".join(f"{child.name}: {child.tail()}" for child in children)
            raise LabFailed.because(f"{otherwise} after {READY_S:g} s ({last})", f"read {children[0].log}")
        await asyncio.sleep(_POLL_S)
