"""The API on a real store, in the test's own process: what every test_api_* file starts from."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from fastapi import FastAPI
from starlette.websockets import WebSocket

from novacron.clock import SystemClock
from novacron.config import ServerConfig
from novacron.control.access.service import Access
from novacron.control.application import application
from novacron.control.fencing.parts import Fencing
from novacron.control.ha.admission import Admission
from novacron.control.ha.protected import Protected
from novacron.control.ha.sights import Sights
from novacron.control.household import household
from novacron.control.migrations.decide import LIVE_FEATURES
from novacron.control.observe import Figures
from novacron.control.pools.service import ensure_default
from novacron.control.roster import Roster
from novacron.control.staff import guardians, watching, workers
from novacron.control.store.base import Store
from novacron.control.store.kinds import IMAGES, NODES, VMS
from novacron.control.store.records import Records
from novacron.control.store.shelf import Stored
from novacron.control.store.sqlite import SqliteStore
from novacron.errors import NodeUnreachable, Unavailable, Unsupported
from novacron.model.image import DiskFormat, FileRole, Image, ImageFile, ImageState
from novacron.model.leadership import STANDARD, Candidate
from novacron.model.machine import Disk, MachineReport, MachineStatus
from novacron.model.node import Accelerator, DriverFacts, Node, NodeFacts, NodeState, NodeUsage
from novacron.model.prediction import Measurement
from novacron.model.vm import Desired, Pins, Vm, VmSpec
from novacron.wire.agent import Console, ConsoleText
from novacron.wire.link import LinkAt, LinkFound, LinkListen, LinkProbe
from novacron.wire.membership import Hold
from novacron.wire.moving import DiscardCopies, Measure
from tests.control import sparing

POOL_ID = "0190b36e-0000-7000-8000-00000000aaaa"
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
GIB = 1 << 30


class TinyAgents:
    """Lines to agents that answer the console, and what is measured when it is set: `measured`, `link`."""

    def __init__(self) -> None:
        self.connected: set[str] = set()
        self.console = ConsoleText(text="login: ", truncated=False)
        self.measured: Measurement | None = None
        self.link: LinkFound | None = None
        self.calls: list[msgspec.Struct] = []

    def is_connected(self, node_id: str) -> bool:
        return node_id in self.connected

    async def call(self, node_id: str, args: msgspec.Struct, answer: type[Any], *, deadline_s: float) -> Any:
        self.calls.append(args)
        if node_id not in self.connected:
            raise NodeUnreachable(f"node {node_id} has no line")
        if isinstance(args, Measure):
            if self.measured is None:
                raise Unsupported("this hypervisor does not measure")
            return self.measured
        if isinstance(args, LinkListen):
            return LinkAt(host="192.0.2.2", port=1, key_hex="ab" * 32)
        if isinstance(args, LinkProbe):
            if self.link is None:
                raise Unavailable("the link to 192.0.2.2:1 cannot be measured: it does not answer in time")
            return self.link
        if isinstance(args, DiscardCopies | Hold):
            return None
        assert isinstance(args, Console)
        return self.console

    def on_progress(self, migration_id: str, listener: Any) -> None:
        pass

    def usage(self, node_id: str) -> NodeUsage | None:
        return NodeUsage(memory_available_mib=1000) if node_id in self.connected else None

    def heard_ago_s(self, node_id: str) -> float | None:
        return 0.5 if node_id in self.connected else None

    def on_hello(self, listener: Any) -> None:
        pass

    def on_report(self, listener: Any) -> None:
        pass

    async def serve(self, websocket: WebSocket) -> None:
        await websocket.close(4401)


class Api:
    """One server: its parts, and a client with the admin's token."""

    def __init__(self, app: FastAPI, records: Records, agents: TinyAgents, access: Access, token: str) -> None:
        self.app = app
        self.records = records
        self.agents = agents
        self.access = access
        self.token = token
        self.http = self.client(token)

    def client(self, token: str | None) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://novacron.test", headers=headers)

    # -- things to act on ----------------------------------------------------------------------------------

    async def node(self, name: str = "node-1", *, memory_mib: int = 8192, **changed: Any) -> Node:
        facts = NodeFacts(
            hostname=name,
            kernel="6.1",
            architecture="x86_64",
            boot_id="b",
            cpu_model="any",
            cpu_flags=(),
            cpu_count=4,
            memory_mib=memory_mib,
            agent_version="0.1.0",
            pool_ids=(POOL_ID,),
            bridges=("br0",),
            drivers=(
                DriverFacts(
                    name="qemu",
                    version="7.2",
                    features=LIVE_FEATURES,
                    machine_types=("pc-q35-7.2",),
                    default_machine_types={"q35": "pc-q35-7.2", "microvm": "microvm"},
                    cpu_models=("qemu64",),
                    accelerator=Accelerator(name="tcg", reason="asked for"),
                ),
            ),
        )
        node = Node(
            id=self.records.new_id(),
            name=name,
            state=NodeState.UP,
            created_at=NOW,
            updated_at=NOW,
            state_since=NOW,
            facts=facts,
        )
        node = msgspec.structs.replace(node, **changed)
        await self.records.create(NODES, node)
        self.agents.connected.add(node.id)
        return node

    async def image(self, name: str = "tiny", **changed: Any) -> Image:
        disk = ImageFile(
            role=FileRole.DISK,
            digest="d" * 64,
            size_bytes=1000,
            format=DiskFormat.QCOW2,
            virtual_size_bytes=GIB,
        )
        image = Image(
            id=self.records.new_id(),
            name=name,
            state=ImageState.READY,
            created_at=NOW,
            updated_at=NOW,
            files=(disk,),
        )
        image = msgspec.structs.replace(image, **changed)
        await self.records.create(IMAGES, image)
        return image

    async def vm(
        self,
        name: str = "web-1",
        *,
        node: Node | None = None,
        status: MachineStatus = MachineStatus.STOPPED,
        **changed: Any,
    ) -> Stored[Vm]:
        """A VM as if it had been made and seen by its node."""
        vm_id = self.records.new_id()
        running = status in (MachineStatus.RUNNING, MachineStatus.STALLED)
        seen = MachineReport(
            vm_id=vm_id,
            generation=1,
            status=status,
            since=NOW,
            pid=77 if running else 0,
            machine_type="pc-q35-7.2",
            cpu_model="qemu64",
            accelerator="tcg",
        )
        paused = status is MachineStatus.PAUSED
        vm = Vm(
            id=vm_id,
            name=name,
            spec=VmSpec(
                image_id=self.records.new_id(),
                memory_mib=512,
                disks=(Disk(volume_id=self.records.new_id(), size_bytes=GIB),),
            ),
            desired=Desired.RUNNING if running else Desired.PAUSED if paused else Desired.STOPPED,
            observed=seen,
            node_id=node.id if node else "",
            generation=1,
            pins=Pins(machine_type="pc-q35-7.2", cpu_model="qemu64"),
            created_at=NOW,
            updated_at=NOW,
        )
        return await self.records.create(VMS, msgspec.structs.replace(vm, **changed))


@contextlib.asynccontextmanager
async def an_api(directory: Path, lines: Any = None, pool_id: str = POOL_ID, **settings: Any) -> AsyncIterator[Api]:
    """A server with an empty store in `directory`; with `lines` to agents its workers work. settings: of its config."""
    (directory / "images").mkdir(exist_ok=True)
    store = await SqliteStore.open(directory / "store.db", durable=False)
    token = await Access(store).start(directory)
    assert token is not None
    try:
        async with _serving(store, token, directory, lines, pool_id, **settings) as api:
            yield api
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def another(api: Api, directory: Path, store: Store | None = None) -> AsyncIterator[Api]:
    """A second server on the same store, as there are several behind one etcd. store: its own way to it."""
    async with _serving(store or api.records.store, api.token, directory, None, POOL_ID) as other:
        other.agents.connected = api.agents.connected
        yield other


@contextlib.asynccontextmanager
async def _serving(
    store: Store, token: str, directory: Path, lines: Any, pool_id: str, **settings: Any
) -> AsyncIterator[Api]:
    clock = SystemClock()
    records = Records(store, clock, random.Random())
    await records.start()
    access = Access(store)
    await access.start(directory)
    agents = lines or TinyAgents()
    config = ServerConfig(data_dir=directory, pool_dir=directory, **settings)
    home = household(config, records, agents, clock, pool_id)
    await ensure_default(records, clock, pool_id)
    me = Candidate(records.new_id(), directory.name, "this process")
    roster = Roster(store, clock, me, "http://novacron.test", STANDARD)
    fencing = Fencing(config, records, agents, Sights(records, clock), "the agents' secret", home.room, clock, pool_id)
    admits = Admission(records, home.room, Protected(records), pool_id, config.ha_admission)
    sparing.share()
    app = application(home, access, agents, Figures(records), roster, admits, (fencing.routes(),))
    work = {"access": access.run, "roster": roster.run}
    if lines:
        watch = watching(home, agents, roster)
        work |= workers(home, agents)
        work |= guardians(home, agents, watch, fencing.opens)
    working = [asyncio.create_task(run(), name=name) for name, run in work.items()]
    api = Api(app, records, agents, access, token)
    try:
        async with api.http:
            yield api
    finally:
        for one in working:
            one.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await records.stop()


def problem_of(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem a response carries, after checking that it is a whole one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert set(told) >= {"type", "title", "status", "code", "detail", "reasons"}
    assert told["status"] == status
    assert told["code"] == code, told
    return told


def fields_of(problem: dict[str, Any]) -> list[str]:
    """Which fields a 422 names."""
    return [reason["subject"] for reason in problem["reasons"]]
