"""What is kept of a copy of disks that was cut off: gone on with in the same place, and no disk in any other way."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.agent.kept import going_on
from novacron.agent.ledger import Kept
from novacron.model.machine import Disk, MachineReport, MachineSpec
from novacron.model.pool import PoolDriver, PoolSpec
from novacron.testing import fake_snapshots
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_cluster import SimCluster
from novacron.wire import agent as wire
from novacron.wire import moving

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
MIGRATION = "01890000-0000-7000-8000-0000000000aa"
POOL = "01890000-0000-7000-8000-0000000000b1"
ONE, OTHER = "01890000-0000-7000-8000-0000000000d1", "01890000-0000-7000-8000-0000000000d2"
SPEC = MachineSpec(
    vm_id=VM,
    generation=1,
    vcpus=1,
    memory_mib=64,
    disks=tuple(Disk(volume_id=one, size_bytes=1 << 20, pool_id=POOL) for one in (ONE, OTHER)),
    pools=(PoolSpec(id=POOL, driver=PoolDriver.LVM_THIN),),
)
KEPT = Kept(migration_id=MIGRATION, spec=SPEC, volumes=(ONE,), until=datetime.datetime.now(datetime.UTC))


@pytest.mark.parametrize(
    ("field", "value"), [("size_bytes", 2 << 20), ("pool_id", "elsewhere"), ("backing_digest", "0" * 64)]
)
def test_another_disk_or_place_is_not_gone_on_with(field: str, value: object) -> None:
    assert going_on(KEPT, SPEC, (ONE, OTHER)) == (ONE,)
    assert going_on(KEPT, SPEC, (OTHER,)) == ()
    assert going_on(None, SPEC, (ONE, OTHER)) == ()
    changed = tuple(msgspec.structs.replace(disk, **{field: value}) for disk in SPEC.disks)
    assert going_on(KEPT, msgspec.structs.replace(SPEC, disks=changed), (ONE, OTHER)) == ()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[SimCluster]:
    made = SimCluster(tmp_path, HandClock(), ["a", "b"])
    made.world.resumes = True
    await made.start()
    yield made
    await made.stop()


async def call(cluster: SimCluster, verb: msgspec.Struct, answer: type) -> object:
    return await cluster.call(cluster["b"].node_id, verb, answer, deadline_s=5)


async def keep(cluster: SimCluster) -> Path:
    """Both disks came in part; the first one's file."""
    accept = moving.Accept(migration_id=MIGRATION, spec=SPEC, receives=(ONE, OTHER))
    await call(cluster, accept, moving.ReceptionAt)
    (path,) = cluster["b"].root.rglob(f"{ONE}*")
    fake_snapshots.write(path, "half of it")
    await call(cluster, moving.Discard(vm_id=VM, generation=1, migration_id=MIGRATION, keep_s=60), type(None))
    await call(cluster, moving.Discard(vm_id=VM, generation=1, migration_id=MIGRATION, keep_s=60), type(None))
    assert path.exists()
    kept = wire.KeptCopy(vm_id=VM, generation=1, migration_id=MIGRATION)
    assert cluster["b"].machines.remains.all() == (kept,)
    assert cluster["b"].machines.report(VM) is None
    return path


async def test_a_machine_that_starts_here_does_not_start_with_it(cluster: SimCluster) -> None:
    path = await keep(cluster)
    await call(cluster, wire.Start(spec=SPEC), MachineReport)
    assert fake_snapshots.read(path).content == "blank"
    assert cluster["b"].machines.remains.all() == ()


@pytest.mark.parametrize("remove", [False, True])
async def test_it_goes_by_an_order_or_with_its_machine(cluster: SimCluster, *, remove: bool) -> None:
    path = await keep(cluster)
    discard = moving.Discard(vm_id=VM, generation=2, migration_id=MIGRATION)
    await call(cluster, wire.Remove(vm_id=VM, generation=2) if remove else discard, type(None))
    assert not path.exists()
    assert cluster["b"].machines.remains.all() == ()


async def test_another_accept_goes_on_with_it_unless_it_is_to_begin_anew(cluster: SimCluster) -> None:
    path = await keep(cluster)
    accept = moving.Accept(migration_id=VM, spec=SPEC, receives=(ONE, OTHER))
    for _ in range(2):
        to = await call(cluster, accept, moving.ReceptionAt)
        assert isinstance(to, moving.ReceptionAt)
        assert to.disks is not None
        assert (set(to.disks.resumed), to.disks.resumes) == ({ONE, OTHER}, MIGRATION)
        assert fake_snapshots.read(path).content == "half of it"
    for _ in range(2):
        to = await call(cluster, msgspec.structs.replace(accept, anew=True), moving.ReceptionAt)
        assert isinstance(to, moving.ReceptionAt)
        assert to.disks is not None
        assert to.disks.resumed == ()
        assert fake_snapshots.read(path).content == "blank"
