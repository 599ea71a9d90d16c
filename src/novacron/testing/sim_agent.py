"""One simulated node: the production parts of an agent on a FakeHost, a shared pool and plugs in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from novacron.agent.credentials import by_secret
from novacron.agent.drivers.base import NicPlug
from novacron.agent.gauge import Gauge
from novacron.agent.guard import Guard
from novacron.agent.heartbeat import Heartbeat
from novacron.agent.images import Images
from novacron.agent.ledger import Holding, Ledger
from novacron.agent.machines import Machines, running
from novacron.agent.member import Member
from novacron.agent.mover import Mover
from novacron.agent.network import Network
from novacron.agent.postcopy import Announce
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.agent.snapshots import Snapshots
from novacron.agent.sources import Server
from novacron.agent.storage.depot import Depot
from novacron.agent.verbs import Verbs, member_table, table
from novacron.agent.volumes import Volumes
from novacron.agent.works import Works
from novacron.errors import NodeUnreachable, NovaCronError
from novacron.model.ha import FenceClass
from novacron.model.identity import new_id
from novacron.model.machine import MachineReport, NetworkKind, Nic
from novacron.model.network import NetworkSpec
from novacron.model.node import COPIES, NodeFacts, NodeUsage
from novacron.model.pool import PoolDriver, PoolSpec
from novacron.testing.fake_driver import FakeDriver, FakeHost, FakeWorld, Life
from novacron.testing.sim_networks import Answers, SimNetworks, SimOverlay
from novacron.testing.sim_pool import SimPool
from novacron.wire.agent import PROTOCOL, Call, Hello, Reply


class SimNetwork:
    """Plugs in memory; a host's plugs outlive its agent."""

    def __init__(self, plugged: set[str], life: Life) -> None:
        self._plugged = plugged
        self._life = life

    async def plug(self, nic: Nic, uid: int | None, networks: Sequence[NetworkSpec] = ()) -> NicPlug:  # noqa: ARG002
        self._life.check()
        self._plugged.add(nic.id)
        ports = enumerate(nic.forwards)
        forwards = tuple((one.guest_port, one.host_port or 40000 + number) for number, one in ports)
        return NicPlug(nic_id=nic.id, mac=nic.mac, forwards=forwards)

    async def unplug(self, nic: Nic) -> None:
        self._life.check()
        self._plugged.discard(nic.id)


class SimLedger(Ledger):
    """The production ledger; that of a killed agent begins no more writes."""

    def __init__(self, directory: Path, life: Life) -> None:
        super().__init__(directory)
        self._life = life
        self.writes: set[asyncio.Task[None]] = set()

    async def put(self, holding: Holding) -> None:
        self._life.check()
        await super().put(holding)

    async def _write(self, vm_id: str) -> None:
        write = asyncio.create_task(super()._write(vm_id))
        self.writes.add(write)
        write.add_done_callback(self.writes.discard)
        await asyncio.shield(write)


class SimAgent:
    """One node: a FakeHost, directories, and, while it lives, the production parts of an agent."""

    def __init__(
        self, name: str, number: int, root: Path, world: FakeWorld, pool: SimPool, announce: Announce, answers: Answers
    ) -> None:
        self.name = name
        self.node_id = new_id(0, number)
        self.host = FakeHost(world, name)
        self.plugged: set[str] = set()
        self.tunnel_address = f"192.0.2.{number}"
        self.networks = SimNetworks(world.clock, answers)
        self.pool = pool
        self._announce = announce
        self.root = root / name
        self._lost: list[tuple[str, bool, NovaCronError]] = []
        self._doing: set[asyncio.Task[Any]] = set()
        self._life = Life()
        self._life.dead = True
        self.ledger = SimLedger(self.root / "state" / "machines", self._life)
        self.fence_class = FenceClass.TIMER  # what its next agent declares
        self.takes_part = True  # else it is an agent of an older version
        self.cpu_count, self.memory_mib = 8, 16384
        self.driver_type: type[FakeDriver] = FakeDriver
        self._belonging: asyncio.Task[None] | None = None
        self.member: Member
        self.machines: Machines
        self.verbs: Verbs
        self.works: Works
        self.heartbeat: Heartbeat

    @property
    def alive(self) -> bool:
        return not self._life.dead

    async def boot(self) -> None:
        """A new agent process on the same host and directories."""
        self._life = life = Life()
        run_dir = self.root / "run"
        run_dir.mkdir(parents=True, exist_ok=True)
        network: Network = SimNetwork(self.plugged, life)
        overlay = SimOverlay(self.networks, life)
        networks = {NetworkKind.USER: network, NetworkKind.BRIDGE: network, NetworkKind.OVERLAY: overlay}
        depot = Depot(self.pool, self._pool_of)
        provisioner = Provisioner(depot, networks, run_dir, uid_base=0)
        self.ledger = ledger = SimLedger(self.root / "state" / "machines", life)
        self.driver = self.driver_type(self.host, life)
        clock = self.host.world.clock
        self.guard = guard = Guard(ledger, self.driver, clock, self.fence_class)
        provisioner.deadline_of = guard.deadline_of
        self.member = Member(guard, self.host.boot_id, clock)
        self.machines = Machines(ledger, provisioner, self.driver, clock, self.host.boot_id, self.member.check)
        mover = Mover(
            ledger,
            provisioner,
            self.driver,
            self.machines,
            proxies=Proxies("127.0.0.1", run_dir, provisioner.uid_of),
            announce=self._announce,
            clock=clock,
        )
        snapshots = Snapshots(ledger, provisioner, depot, self.driver, self.machines, self.root / "state" / "exports")
        images = Images(
            depot,
            self.root / "state" / "fetching",
            Server(lambda: ("unix:/nowhere",), by_secret("none", None), lambda: 0),
        )
        doers = table(self.machines, mover, Gauge(ledger, self.driver), Volumes(depot), snapshots, images)
        self.verbs = Verbs({**doers, **self.networks.doers(life), **member_table(self.member)})
        self.works = Works(self._answer)
        self.heartbeat = Heartbeat(self.machines, self, clock)
        await self.machines.adopt()
        self._belonging = asyncio.create_task(self.member.run(), name=f"member {self.name}")

    def _pool_of(self, spec: PoolSpec) -> SimPool:
        """LVM is the node's own, all others are shared."""
        return self.local_pool(spec.id) if spec.driver is PoolDriver.LVM_THIN else self.pool.sibling(spec)

    def local_pool(self, pool_id: str) -> SimPool:
        """Its own part of a pool that nodes do not share."""
        return SimPool(self.root / f"pool-{pool_id}")

    def kill(self) -> None:
        """kill -9: nothing more of it reaches its host, its files or the server."""
        self._life.dead = True
        if self._belonging is not None:
            self._belonging.cancel()
        for work in tuple(self._doing):
            work.cancel()

    async def leave(self) -> bool:
        """As the agent process does when its host goes down: ends every machine, and says so; whether it counted."""
        if self._belonging is not None:
            self._belonging.cancel()
            await asyncio.gather(self._belonging, return_exceptions=True)
        self.member.begin_leaving()
        return await self.member.leave()

    async def settled(self) -> None:
        """Wait until the works of the killed agent are over, and the threads that write its files."""
        ending = () if self._belonging is None else (self._belonging,)
        await asyncio.gather(*self._doing, *self.ledger.writes, *ending, return_exceptions=True)

    def lose(self, verb: str, *, after: bool = False, error: NovaCronError | None = None, times: int = 1) -> None:
        """The next `times` calls of `verb` are lost on the way there, or (`after`) their replies on the way back."""
        trouble = error or NodeUnreachable(f"the line to {self.name} broke")
        self._lost.extend((verb, after, trouble) for _ in range(times))

    def raise_loss(self, verb: str, *, after: bool) -> None:
        for loss in self._lost:
            if loss[:2] == (verb, after):
                self._lost.remove(loss)
                raise loss[2]

    async def _answer(self, call: Call) -> Reply:
        work, life = asyncio.current_task(), self._life
        if work is not None:
            self._doing.add(work)
            work.add_done_callback(self._doing.discard)
        reply = await self.verbs.perform(call)
        if life.dead:
            raise asyncio.CancelledError  # the dead do not answer, whatever they still met with
        return reply

    async def hello(self, heartbeat: Heartbeat | None = None) -> Hello:
        """heartbeat: of the line it is said on; else the agent's first."""
        facts = NodeFacts(
            hostname=self.name,
            kernel="sim",
            architecture="x86_64",
            boot_id=self.host.boot_id,
            cpu_model="fake64",
            cpu_flags=(),
            cpu_count=self.cpu_count,
            memory_mib=self.memory_mib,
            agent_version="sim",
            pool_ids=(await self.pool.pool_id(),),
            bridges=("br0",),
            drivers=(await self.driver.probe(),),
            migration_address="127.0.0.1",
            tunnel_address=self.tunnel_address,
            abilities=("overlay", COPIES),
        )
        return Hello(
            protocol=PROTOCOL,
            node_id=self.node_id,
            node_name=self.name,
            facts=facts,
            machines=(heartbeat or self.heartbeat).told(),
            networks=tuple(self.networks.known),
            copies=self.machines.remains.all(),
            takes_part=self.takes_part,
        )

    def usage(self, machines: tuple[MachineReport, ...]) -> NodeUsage:
        return NodeUsage(
            memory_available_mib=self.memory_mib,
            pool_free_bytes=1 << 40,
            pool_size_bytes=1 << 40,
            machines_running=running(machines),
        )
