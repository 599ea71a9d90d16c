"""A whole house in one process: production control workers over a real store, production agents on fake hosts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from novacron.config import ServerConfig
from novacron.control.bulk_migrations.outlook import Surveyor
from novacron.control.bulk_migrations.service import BulkMigrationService
from novacron.control.bulk_migrations.worker import BulkWorker
from novacron.control.images.service import ImageService
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.service import MigrationService
from novacron.control.networks.weaver import Weaver
from novacron.control.nodes.health import Health
from novacron.control.nodes.observer import Observer
from novacron.control.pools.prober import Prober
from novacron.control.pools.service import ensure_default
from novacron.control.room import Room
from novacron.control.snapshots.keeper import Keeper
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.worker import SnapshotWorker
from novacron.control.store.records import IMAGES, MIGRATIONS, VMS, Records, create, update
from novacron.control.store.sqlite import SqliteStore
from novacron.control.vms.reconciler import Reconciler
from novacron.control.volumes.worker import VolumeWorker
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.machine import ENDED, Disk, Nic
from novacron.model.migration import Goals, Migration, MigrationKind, MigrationState, Strategy, is_final
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec, VmState, state_of, status_of
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import POOL_ID

WAYS = {
    "live": (MigrationKind.LIVE, Strategy.PRECOPY),
    "hybrid": (MigrationKind.LIVE, Strategy.HYBRID),
    "postcopy": (MigrationKind.LIVE, Strategy.POSTCOPY),
    "warm": (MigrationKind.WARM, Strategy.PRECOPY),
    "cold": (MigrationKind.COLD, Strategy.PRECOPY),
}
"""How a running machine can be moved, for tests that hold for all of them."""

PATIENCE_S = 20.0  # real seconds until a story that does not move is a failure
TICK_S = 0.05  # virtual seconds for each look


class House:
    """`until` lets time pass until something is so; workers can be killed and replaced at any moment."""

    def __init__(self, records: Records, cluster: SimCluster, clock: HandClock, root: Path) -> None:
        self.records = records
        self.cluster = cluster
        self.clock = clock
        self.root = root
        self.room = Room(records, ServerConfig(data_dir=root, pool_dir=root))
        self.images = ImageService(records, self.room, clock, root / "pool")
        self.snapshots = SnapshotService(records, self.room, clock)
        self.planner = Planner(records, self.room, cluster, clock)
        self.surveyor = Surveyor(records, self.room, self.planner)
        self.migrations = MigrationService(records, self.room, clock, self.planner)
        self.bulk = BulkMigrationService(records, self.room, clock, self.surveyor)
        self._workers: dict[str, asyncio.Task[None]] = {}

    def start_worker(self, name: str) -> None:
        kinds = {
            "reconciler": lambda: Reconciler(self.records, self.cluster, self.clock),
            "conductor": lambda: Conductor(self.records, self.cluster, self.clock),
            "bulk": lambda: BulkWorker(self.records, self.room, self.migrations, self.surveyor, self.clock),
            "weaver": self._weaver,
            "volumes": lambda: VolumeWorker(self.records, self.cluster, self.clock),
            "prober": self._prober,
            "health": lambda: Health(self.records, self.cluster, self.clock),
            "snapshots": lambda: SnapshotWorker(self.records, self.cluster, self.images, self.clock),
            "schedules": lambda: Keeper(self.records, self.snapshots, self.clock),
        }
        self._workers[name] = asyncio.create_task(kinds[name]().run(), name=name)

    def _prober(self) -> Prober:
        prober = Prober(self.records, self.cluster, self.clock)
        self.cluster.on_hello(prober.hello)
        return prober

    def _weaver(self) -> Weaver:
        """The one before it, if any, hears of nodes no more, as when its server died."""
        self.weaver = Weaver(self.records, self.cluster, self.clock)
        return self.weaver

    async def kill_worker(self, name: str) -> None:
        self._workers[name].cancel()
        await asyncio.gather(self._workers.pop(name), return_exceptions=True)

    async def replace_worker(self, name: str) -> None:
        """As when a server dies and another takes its place: all that was in memory is gone."""
        await self.kill_worker(name)
        self.start_worker(name)

    async def close(self) -> None:
        for name in tuple(self._workers):
            await self.kill_worker(name)

    async def until(self, so: Callable[[], bool], what: str = "") -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_S
        while not so():
            for name, worker in self._workers.items():
                assert not worker.done(), f"{name} ended: {worker}"
            if loop.time() > give_up:
                raise AssertionError(f"did not come about: {what}; {self.story()}")
            await self.clock.advance(TICK_S)
            await asyncio.sleep(0.0005)  # threads (store, ledger) work in real time

    def story(self) -> str:
        migrations = [(m.record.state.value, m.record.began, m.record.problem) for m in self.records.all(MIGRATIONS)]
        vms = [(v.record.node_id[-2:], state_of(v.record).value, v.record.problem) for v in self.records.all(VMS)]
        return f"migrations={migrations} vms={vms} violations={self.cluster.world.violations}"

    # -- nouns ---------------------------------------------------------------------------------------------

    async def running_vm(self, node: str = "a", *nics: Nic) -> str:
        """A VM that runs on the node, made the way the service makes one."""
        now = self.clock.wall()
        image = Image(
            id=self.records.new_id(),
            name=f"image-{self.records.revision}",
            state=ImageState.READY,
            created_at=now,
            updated_at=now,
            files=(ImageFile(role=FileRole.FIRMWARE, digest="0" * 64, size_bytes=65536),),
        )
        vm = Vm(
            id=self.records.new_id(),
            name=f"vm-{self.records.revision}",
            spec=VmSpec(
                image_id=image.id,
                memory_mib=64,
                disks=(Disk(volume_id=self.records.new_id(), size_bytes=1 << 20),),
                nics=nics,
            ),
            desired=Desired.RUNNING,
            task=Task(id=self.records.new_id(), kind=TaskKind.CREATE, requested_at=now),
            node_id=self.cluster[node].node_id,
            generation=1,
            created_at=now,
            updated_at=now,
        )
        await self.records.commit(create(IMAGES, image), create(VMS, vm))
        await self.until(lambda: self.state(vm.id) is VmState.RUNNING and self.vm(vm.id).task is None, "VM runs")
        return vm.id

    async def migrate(self, vm_id: str, to: str, way: str = "live", **goals: float) -> str:
        """A recorded wish to move it, the way the service records one."""
        stored = self.records.find(VMS, vm_id)
        vm, now = stored.record, self.clock.wall()
        kind, strategy = WAYS[way]
        migration = Migration(
            id=self.records.new_id(),
            vm_id=vm.id,
            vm_name=vm.name,
            kind=kind,
            strategy=strategy,
            at_rest=status_of(vm) in ENDED,
            source_node=vm.node_id,
            target_node=self.cluster[to].node_id,
            generation=vm.generation,
            state=MigrationState.PENDING,
            goals=Goals(**goals),  # type: ignore[arg-type]
            created_at=now,
            updated_at=now,
        )
        held = _with(vm, migration_id=migration.id)
        await self.records.commit(create(MIGRATIONS, migration), update(VMS, stored, held))
        return migration.id

    async def ended(self, migration_id: str) -> MigrationState:
        await self.until(lambda: is_final(self.migration(migration_id)), "migration ends")
        return self.migration(migration_id).state

    def vm(self, vm_id: str) -> Vm:
        return self.records.find(VMS, vm_id).record

    def state(self, vm_id: str) -> VmState:
        return state_of(self.vm(vm_id))

    def migration(self, migration_id: str) -> Migration:
        return self.records.find(MIGRATIONS, migration_id).record

    async def check_peace(self, vm_id: str) -> str:
        """One copy runs, where the record says; nothing is left elsewhere; nobody ever ran twice. → its node's name"""
        owner = next(agent for agent in self.cluster.agents.values() if agent.node_id == self.vm(vm_id).node_id)
        others = [agent for agent in self.cluster.agents.values() if agent is not owner]
        await self.until(
            lambda: (
                self.cluster.world.running(vm_id) == [owner.name]
                and not any(vm_id in other.host.machines for other in others)
                and self.state(vm_id) is VmState.RUNNING
            ),
            "peace",
        )
        assert self.cluster.world.violations == []
        assert self.vm(vm_id).migration_id == ""
        return owner.name


def _with(vm: Vm, **change: object) -> Vm:
    return msgspec.structs.replace(vm, **change)


@asynccontextmanager
async def house(root: Path, *, transfer_s: float = 0.2, seed: int = 0, nodes: str = "ab") -> AsyncIterator[House]:
    root.mkdir(exist_ok=True)
    clock = HandClock()
    store = await SqliteStore.open(root / "store.db", durable=False)
    records = Records(store, clock, random.Random(seed))
    await records.start()
    await ensure_default(records, clock, POOL_ID)
    cluster = SimCluster(root, clock, list(nodes), transfer_s=transfer_s)
    observer = Observer(records, cluster, clock)
    cluster.on_hello(observer.hello)
    cluster.on_report(observer.report)
    made = House(records, cluster, clock, root)
    cluster.on_hello(lambda hello: made.weaver.hello(hello))
    made.weaver = Weaver(records, cluster, clock)  # hears of nodes before it works
    try:
        await cluster.start()
        for worker in (
            *("reconciler", "conductor", "bulk", "health"),
            *("weaver", "volumes", "prober", "snapshots", "schedules"),
        ):
            made.start_worker(worker)
        yield made
    finally:
        await made.close()
        await cluster.stop()
        await records.stop()
        await store.close()
