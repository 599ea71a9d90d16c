"""A whole server with a cluster's CA, over real TLS on loopback in the test's own loop, and nodes that dial it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from novacron.agent import credentials, enrolment, renewer
from novacron.agent.credentials import Badge
from novacron.agent.dial import dialer
from novacron.clock import SystemClock
from novacron.config import ServerConfig
from novacron.control import listen
from novacron.control.house import House, open_house
from novacron.control.joining import authority
from novacron.model.node import NodeFacts
from novacron.wire import agent as agent_wire
from novacron.wire import joining as wire
from tests.control import sparing

WITHIN_S = 20.0
NOBODY = "https://127.0.0.1:1"
FACTS = NodeFacts(
    hostname="n",
    kernel="6",
    architecture="x86_64",
    boot_id="b",
    cpu_model="c",
    cpu_flags=(),
    cpu_count=2,
    memory_mib=1024,
    agent_version="0",
)


class ShiftedClock(SystemClock):
    """The machine's clock, whose wall time a test can put off."""

    def __init__(self) -> None:
        self.ahead = datetime.timedelta()

    def wall(self) -> datetime.datetime:
        return super().wall() + self.ahead


class Cluster:
    """The server, and what an admin does with it."""

    def __init__(self, house: House, url: str, clock: ShiftedClock, directory: Path) -> None:
        self.house = house
        self.url = url
        self.clock = clock
        self.directory = directory

    @property
    def ca(self) -> Path:
        return self.directory / "cluster" / "ca.pem"

    def http(self) -> httpx2.AsyncClient:
        token = self.house.token_file.read_text().strip()
        trust = ssl.create_default_context(cafile=self.ca)
        return httpx2.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {token}"}, verify=trust, trust_env=False
        )

    async def token(self, **wish: object) -> str:
        async with self.http() as http:
            answer = await http.post("/api/v1/node-tokens", json=wish)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def node(self, number: int, name: str = "") -> Node:
        """One that has joined."""
        made = Node(self, number, name or f"node-{number}")
        await made.join(await self.token())
        return made


class Node:
    """A host that joins: its id, its state directory, its line."""

    def __init__(self, cluster: Cluster, number: int, name: str) -> None:
        self.cluster = cluster
        self.id = f"01890000-0000-7000-8000-{number:012x}"
        self.name = name
        self.state = cluster.directory / f"state-{number}"
        self.state.mkdir(exist_ok=True)
        self.badge = Badge(self.state)

    async def join(self, token: str, change: Callable[[wire.Join], wire.Join] = lambda ask: ask) -> None:
        """change: what to send in place of what an agent would. :raise NovaCronError: the refusal, as it is told."""
        parted = wire.parted(token)
        assert parted is not None
        key_pem, csr_pem = credentials.request(self.id, self.name, parted[0])
        ask = change(wire.Join(token=parted[0], node_id=self.id, node_name=self.name, csr_pem=csr_pem))
        now_s = SystemClock().wall().timestamp
        issued = await asyncio.to_thread(enrolment.join, self.cluster.url, ask, parted[1], now_s)
        self.badge.keep(issued, key_pem)

    async def renew(self) -> None:
        await asyncio.to_thread(renewer.renew, [NOBODY, self.cluster.url], self.badge, self.id)

    def hello(self, node_id: str = "", name: str = "") -> bytes:
        said = agent_wire.Hello(
            protocol=agent_wire.PROTOCOL,
            node_id=node_id or self.id,
            node_name=name or self.name,
            facts=FACTS,
            machines=(),
        )
        return msgspec.json.encode(said)

    async def dial(self, first: bytes = b"") -> ClientConnection:
        """An open line, hello said. :raise WebSocketException, OSError: refused."""
        line = await dialer(self.cluster.url, "", self.badge.context)()
        await line.send(first or self.hello())
        return line

    async def line(self) -> ClientConnection:
        """A welcomed one."""
        line = await self.dial()
        async with asyncio.timeout(WITHIN_S):
            msgspec.json.decode(await line.recv(), type=agent_wire.Welcome)
        return line


async def closed_with(line: ClientConnection) -> tuple[int | None, str]:
    """How the server ended the line: its code and reason."""
    async with asyncio.timeout(WITHIN_S):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await line.recv()
    return line.close_code, line.close_reason or ""


@contextlib.asynccontextmanager
async def a_cluster(directory: Path, *, lasts_s: int = 3600) -> AsyncIterator[Cluster]:
    """Served until this is left. lasts_s: of nodes' certificates. A CA that is in the directory is used."""
    sparing.share()
    clock = ShiftedClock()
    folder = directory / "cluster"
    if not folder.exists():
        authority.init(folder, ["127.0.0.1", "localhost"], clock.wall())
    config = ServerConfig(
        data_dir=directory / "data",
        pool_dir=directory / "pool",
        port=0,
        cluster_dir=folder,
        node_certificate_lasts_s=lasts_s,
    )
    with contextlib.closing(listen.tcp("127.0.0.1", 0)) as bound:
        async with open_house(config, clock) as house:
            assert house.authority is not None
            server = listen.server_for(house.app, config, tls=True, context=house.authority.context())
            running = asyncio.create_task(server.serve(sockets=[bound]))
            try:
                await server.is_up()
                yield Cluster(house, listen.address_of(bound, tls=True), clock, directory)
            finally:
                server.should_exit = True
                await running
