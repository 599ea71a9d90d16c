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
from novacron.control.fencing.device import Switch
from novacron.control.fencing.fencer import Fencer
from novacron.control.ha.protected import Protected
from novacron.control.ha.rescuer import Rescuer
from novacron.control.ha.sights import Sights
from novacron.control.ha.warden import Warden
from novacron.control.images.service import ImageService
from novacron.control.migrations.conductor import Conductor
from novacron.control.migrations.decide import has_belongings, is_paused
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.links import Links
from novacron.control.migrations.planner import Planner
from novacron.control.migrations.service import MigrationService
from novacron.control.networks.weaver import Weaver
from novacron.control.nodes.health import Health
from novacron.control.nodes.observer import Observer
from novacron.control.nodes.registrar import Registrar
from novacron.control.pools.prober import Prober
from novacron.control.pools.service import ensure_default
from novacron.control.rehearsals.service import RehearsalService
from novacron.control.rehearsals.worker import RehearsalWorker
from novacron.control.room import Room
from novacron.control.snapshots.keeper import Keeper
from novacron.control.snapshots.service import SnapshotService
from novacron.control.snapshots.worker import SnapshotWorker
from novacron.control.store.kinds import IMAGES, MIGRATIONS, POOLS, VMS, VOLUMES, R
from novacron.control.store.records import Records, Write, create, update
from novacron.control.store.sqlite import SqliteStore
from novacron.control.vms.reconciler import Reconciler
from novacron.control.volumes.worker import VolumeWorker
from novacron.model.ha import Protection
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.machine import ENDED, Disk, Firmware, Nic
from novacron.model.migration import DiskMove, Goals, Migration, MigrationKind, MigrationState, Strategy, is_final
from novacron.model.pool import Pool, PoolDriver
from novacron.model.timing import STANDARD
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec, VmState, state_of, status_of
from novacron.model.volume import Place, Volume
from novacron.testing import fake_disks
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.testing.sim_pool import POOL_ID
from novacron.wire.membership import Question, Standing, Terms

SERVER = "server"
NO_HA = Protection()

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
        self.migrations = MigrationService(
            records, self.room, clock, self.planner, Links(records, cluster, clock, self.planner)
        )
        self.bulk = BulkMigrationService(records, self.room, clock, self.surveyor)
        self.rehearsals = RehearsalService(records, self.room, clock, self.migrations, POOL_ID)
        self.switches: dict[str, Switch] = {}  # by node id, of those whose power is reached
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._watch()
        self.journal = Journal(records, cluster, clock)
        self._written: dict[str, int] = {}  # by VM: what its guest wrote last, on disks that nodes do not share
        self._local_pool = self._other_pool = ""

    def start_worker(self, name: str) -> None:
        kinds = {
            "reconciler": lambda: Reconciler(self.records, self.cluster, self.clock),
            "conductor": lambda: Conductor(self.records, self.cluster, self.clock, self.migrations),
            "bulk": lambda: BulkWorker(self.records, self.room, self.migrations, self.surveyor, self.clock),
            "rehearsals": lambda: RehearsalWorker(self.records, self.cluster, self.clock),
            "weaver": self._weaver,
            "volumes": lambda: VolumeWorker(self.records, self.cluster, self.clock),
            "prober": self._prober,
            "observer": self._observer,
            "health": self._health,
            "warden": lambda: self.warden,
            "fencer": lambda: Fencer(self.records, self.warden, lambda device: self.switches[device.id], self.clock),
            "rescuer": lambda: Rescuer(self.records, self.protected, self.room, self.clock, POOL_ID),
            "snapshots": lambda: SnapshotWorker(self.records, self.cluster, self.images, self.clock),
            "schedules": lambda: Keeper(self.records, self.snapshots, self.clock),
        }
        self._workers[name] = asyncio.create_task(kinds[name]().run(), name=name)

    def _watch(self) -> None:
        """As when a server starts: it has seen no heartbeat, and answers from now on."""
        self.sights = Sights(self.records, self.clock)
        self.protected = Protected(self.records)
        self.warden = Warden(self.records, self.sights, self.protected, SERVER, self.clock, STANDARD)
        terms = Terms(server_id=SERVER, servers=(SERVER,), timing=STANDARD)
        registrar = Registrar(self.records, self.sights, lambda: (SERVER,))

        async def answer(node_id: str, question: Question) -> Standing:
            with self.clock.held():  # the store takes real time: no node is to be silent because a disk was slow
                return await registrar.answer(node_id, question)

        self.cluster.on_question(lambda: terms, answer)

    def _health(self) -> Health:
        return Health(self.records, self.cluster, self.clock, self.sights, self.warden, STANDARD)

    def _prober(self) -> Prober:
        prober = Prober(self.records, self.cluster, self.clock)
        self.cluster.on_hello(prober.hello)
        return prober

    def _observer(self) -> Observer:
        """The one before it, if any, hears of nodes no more, as when its server died."""
        self.observer = Observer(self.records, self.cluster, self.clock)
        return self.observer

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
            self.guests_write()
            await asyncio.sleep(0.0005)  # threads (store, ledger) work in real time

    def guests_write(self) -> None:
        """Each guest looks whether its disks hold what it wrote last, and writes the next."""
        for vm_id, number in self._written.items():
            before = str(number) if number else "blank"
            if fake_disks.guest_writes(self.cluster.world, vm_id, before, str(number + 1)):
                self._written[vm_id] = number + 1

    def guest_rests(self, vm_id: str) -> None:
        """It writes no more, and is looked at no more."""
        del self._written[vm_id]

    def written(self, vm_id: str) -> int:
        """How often its guest has written."""
        return self._written[vm_id]

    def story(self) -> str:
        migrations = [(m.record.state.value, m.record.began, m.record.problem) for m in self.records.all(MIGRATIONS)]
        vms = [(v.record.node_id[-2:], state_of(v.record).value, v.record.problem) for v in self.records.all(VMS)]
        return f"migrations={migrations} vms={vms} violations={self.cluster.world.violations}"

    # -- nouns ---------------------------------------------------------------------------------------------

    async def running_vm(
        self, node: str = "a", *nics: Nic, local: bool = False, uefi: bool = False, ha: Protection = NO_HA
    ) -> str:
        """A VM that runs on the node, made the way the service makes one. local: its disk is on that node alone. uefi:
        it has variables, which go along where nodes have pools of their own, and no disk.
        """
        now, volume_id = self.clock.wall(), self.records.new_id()
        pool_id = await self._local(volume_id, node) if local else ""
        image = Image(
            id=self.records.new_id(),
            name=f"image-{self.records.revision}",
            state=ImageState.READY,
            created_at=now,
            updated_at=now,
            files=() if uefi else (ImageFile(role=FileRole.FIRMWARE, digest="0" * 64, size_bytes=65536),),
        )
        vm = Vm(
            id=self.records.new_id(),
            name=f"vm-{self.records.revision}",
            spec=VmSpec(
                image_id=image.id,
                memory_mib=64,
                disks=() if uefi else (Disk(volume_id=volume_id, size_bytes=1 << 20, pool_id=pool_id),),
                nics=nics,
                firmware=Firmware.UEFI if uefi else Firmware.AUTO,
                ha=ha,
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
        if local:
            await self.records.change(VOLUMES, volume_id, lambda now: msgspec.structs.replace(now, vm_id=vm.id))
            self._written[vm.id] = 0
        return vm.id

    async def _local(self, volume_id: str, node: str) -> str:
        """The pool that nodes do not share, with a record of the volume that lies in it on the node."""
        now = self.clock.wall()
        self._local_pool = self._local_pool or await self._new_pool("local")
        volume = Volume(
            id=volume_id,
            name=f"disk-{self.records.revision}",
            pool_id=self._local_pool,
            size_bytes=1 << 20,
            node_id=self.cluster[node].node_id,
            created_at=now,
            updated_at=now,
        )
        await self.records.commit(create(VOLUMES, volume))
        return self._local_pool

    async def _new_pool(self, name: str) -> str:
        now = self.clock.wall()
        pool = Pool(id=self.records.new_id(), name=name, driver=PoolDriver.LVM_THIN, created_at=now, updated_at=now)
        await self.records.commit(create(POOLS, pool))
        return pool.id

    async def migrate(self, vm_id: str, to: str, way: str = "live", **goals: float | str) -> str:
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
            paused=is_paused(vm),
            belongings=has_belongings(vm.spec) and self.cluster[to].pool is not self.cluster.pool,
            source_node=vm.node_id,
            target_node=self.cluster[to].node_id,
            generation=vm.generation,
            state=MigrationState.PENDING,
            goals=Goals(**goals),  # type: ignore[arg-type]
            created_at=now,
            updated_at=now,
        )
        held = _with(vm, migration_id=migration.id)
        copies = self._copies(vm, migration)
        await self.records.commit(
            create(MIGRATIONS, _with(migration, disks=tuple(move for move, _ in copies))),
            update(VMS, stored, held),
            *(write for _, write in copies),
        )
        return migration.id

    async def rehouse(self, vm_id: str) -> str:
        """A recorded wish to move its disk into the other of two pools of its node."""
        stored = self.records.find(VMS, vm_id)
        vm, now = stored.record, self.clock.wall()
        (disk,) = vm.spec.disks
        self._other_pool = self._other_pool or await self._new_pool("other")
        pool_id = self._other_pool if disk.pool_id == self._local_pool else self._local_pool
        volume = self.records.find(VOLUMES, disk.volume_id)
        move = DiskMove(
            volume_id=disk.volume_id,
            size_bytes=disk.size_bytes,
            from_pool_id=disk.pool_id,
            to_pool_id=pool_id,
            from_disk_pool_id=disk.pool_id,
            to_disk_pool_id=pool_id,
        )
        at_rest = status_of(vm) in ENDED
        migration = Migration(
            id=self.records.new_id(),
            vm_id=vm.id,
            vm_name=vm.name,
            kind=MigrationKind.COLD if at_rest else MigrationKind.LIVE,
            strategy=Strategy.PRECOPY,
            at_rest=at_rest,
            disks=(move,),
            source_node=vm.node_id,
            target_node=vm.node_id,
            generation=vm.generation,
            state=MigrationState.PENDING,
            created_at=now,
            updated_at=now,
        )
        place = Place(pool_id=pool_id, node_id=vm.node_id)
        await self.records.commit(
            create(MIGRATIONS, migration),
            update(VMS, stored, _with(vm, migration_id=migration.id)),
            update(VOLUMES, volume, _with(volume.record, other=place)),
        )
        return migration.id

    def _copies(self, vm: Vm, migration: Migration) -> list[tuple[DiskMove, Write]]:
        """Of its disks those that its next node does not see, each with the write that records the other place."""
        pool_id = self._local_pool
        place = Place(pool_id=pool_id, node_id=migration.target_node)
        found = []
        for disk in vm.spec.disks:
            if pool_id and disk.pool_id in (pool_id, self._other_pool):
                move = DiskMove(
                    volume_id=disk.volume_id,
                    size_bytes=disk.size_bytes,
                    from_pool_id=pool_id,
                    to_pool_id=pool_id,
                    from_disk_pool_id=pool_id,
                    to_disk_pool_id=pool_id,
                )
                volume = self.records.find(VOLUMES, disk.volume_id)
                found.append((move, update(VOLUMES, volume, _with(volume.record, other=place))))
        return found

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
        if vm_id in self._written:
            await self.until(lambda: self.disk_lies_on(vm_id) == [owner.name], "its disk is where it is")
        return owner.name

    def disk_lies_on(self, vm_id: str) -> list[str]:
        """Names of the nodes that have a copy of its disk; empty too when the record of it says another place."""
        (disk,) = self.vm(vm_id).spec.disks
        volume = self.records.find(VOLUMES, disk.volume_id).record
        agents = self.cluster.agents.values()
        places = [
            (one, pool_id)
            for one in agents
            for pool_id in filter(None, (self._local_pool, self._other_pool))
            if disk.volume_id in one.local_pool(pool_id).volumes()
        ]
        agreed = volume.other is None and disk.pool_id == volume.pool_id
        agreed = agreed and [(one.node_id, at) for one, at in places] == [(volume.node_id, volume.pool_id)]
        return [one.name for one, _ in places] if agreed else []


def _with(record: R, **change: object) -> R:
    return msgspec.structs.replace(record, **change)


@asynccontextmanager
async def house(
    root: Path,
    *,
    transfer_s: float = 0.2,
    seed: int = 0,
    nodes: str = "ab",
    own_pools: bool = False,
    heartbeats: bool = True,
) -> AsyncIterator[House]:
    """heartbeats: else nodes are judged by their lines, as those of older versions: hours are to pass quickly."""
    root.mkdir(exist_ok=True)
    clock = HandClock()
    store = await SqliteStore.open(root / "store.db", durable=False)
    records = Records(store, clock, random.Random(seed))
    await records.start()
    await ensure_default(records, clock, POOL_ID)
    cluster = SimCluster(root, clock, list(nodes), transfer_s=transfer_s, own_pools=own_pools)
    made = House(records, cluster, clock, root)
    if not heartbeats:
        cluster.on_question(None, None)
    made.observer = Observer(records, cluster, clock)
    cluster.on_hello(lambda hello: made.observer.hello(hello))
    cluster.on_report(lambda node_id, report: made.observer.report(node_id, report))
    cluster.on_hello(lambda hello: made.weaver.hello(hello))
    made.weaver = Weaver(records, cluster, clock)  # hears of nodes before it works
    try:
        await cluster.start()
        for worker in (
            *("reconciler", "conductor", "bulk", "health", "observer"),
            *("warden", "fencer", "rescuer"),
            *("weaver", "volumes", "prober", "snapshots", "schedules", "rehearsals"),
        ):
            made.start_worker(worker)
        yield made
    finally:
        await made.close()
        await cluster.stop()
        await records.stop()
        await store.close()
