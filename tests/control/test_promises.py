"""What is promised is kept up change by change, and is always what counting everything anew comes to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.clock import SystemClock
from novacron.control.promises import Promises, holds_room
from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.fleet import Committed
from novacron.control.scheduler.snapshot import DiskNeed, Limits, Need, PoolNeed
from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS, VOLUMES
from novacron.control.store.records import Records, create, remove, update
from novacron.control.store.sqlite import SqliteStore
from novacron.model.machine import MachineReport, MachineStatus
from novacron.model.migration import Migration, MigrationKind, MigrationState, Strategy, is_final
from novacron.model.placement import PlacementWishes, RuleKind, VmRule
from novacron.model.pool import Pool, PoolDriver, Reach
from novacron.model.vm import Desired, Vm, VmSpec, running_spec
from novacron.model.volume import Place, Volume
from tests.control.fleets import NOW, a_node

pytestmark = pytest.mark.anyio

NODE_IDS = ("id-a", "id-b", "id-c")
APART = VmRule(kind=RuleKind.APART, labels={"app": "web"})


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    store = await SqliteStore.open(tmp_path / "store.db", durable=False)
    one = Records(store, SystemClock(), random.Random(1))
    await one.start()
    yield one
    await one.stop()
    await store.close()


def counted(records: Records) -> dict[str, Committed]:
    """All that is promised by the records, counted anew."""
    found: dict[str, Committed] = {}
    for stored in records.all(VMS):
        vm = stored.record
        mine = found.setdefault(vm.node_id, Committed())
        mine.vm_count += 1
        if holds_room(vm):
            mine.memory_mib += max(vm.spec.memory_mib, running_spec(vm).memory_mib)
            mine.vcpus += max(vm.spec.vcpus, running_spec(vm).vcpus)
        moving = records.get(MIGRATIONS, vm.migration_id) if vm.migration_id else None
        if moving is not None and not is_final(moving.record):
            for node_id in {moving.record.source_node, moving.record.target_node} - {vm.node_id}:
                other = found.setdefault(node_id, Committed())
                other.memory_mib += running_spec(vm).memory_mib
                other.vcpus += running_spec(vm).vcpus
    return found


def a_vm(records: Records, rng: random.Random) -> Vm:
    vm_id = records.new_id()
    spec = VmSpec(image_id=vm_id, vcpus=rng.randint(1, 3), memory_mib=rng.choice((64, 128)))
    node_id = rng.choice(NODE_IDS)
    wishes = PlacementWishes(vm_rules=(APART,) if rng.random() < 0.3 else ())
    return Vm(
        id=vm_id,
        name=f"vm-{vm_id[-12:]}",
        spec=spec,
        desired=rng.choice((Desired.RUNNING, Desired.STOPPED)),
        created_at=NOW,
        updated_at=NOW,
        node_id=node_id,
        labels={"app": rng.choice(("web", "db"))},
        placement=wishes,
    )


def a_migration(records: Records, vm: Vm, target: str) -> Migration:
    return Migration(
        id=records.new_id(),
        vm_id=vm.id,
        vm_name=vm.name,
        kind=MigrationKind.LIVE,
        strategy=Strategy.PRECOPY,
        source_node=vm.node_id,
        target_node=target,
        generation=1,
        state=MigrationState.PENDING,
        created_at=NOW,
        updated_at=NOW,
    )


def booted(vm: Vm, rng: random.Random) -> Vm:
    """It runs, with less or more than it is to have next."""
    report = MachineReport(vm_id=vm.id, generation=1, status=MachineStatus.RUNNING, since=NOW)
    runs = msgspec.structs.replace(vm.spec, memory_mib=rng.choice((64, 256)))
    return msgspec.structs.replace(vm, observed=report, booted=runs)


async def step(records: Records, rng: random.Random) -> None:
    """One of all the things that happen to VMs."""
    stored = rng.choice(records.all(VMS) or [None])  # type: ignore[list-item]
    if stored is None or rng.random() < 0.3:
        await records.create(VMS, a_vm(records, rng))
        return
    vm = stored.record
    moving = records.get(MIGRATIONS, vm.migration_id) if vm.migration_id else None
    if moving is not None:
        ended = msgspec.structs.replace(moving.record, state=MigrationState.COMPLETED)
        moved = msgspec.structs.replace(vm, node_id=ended.target_node, migration_id="")
        if rng.random() < 0.5:  # its end may be written before the VM is let go of
            await records.commit(update(MIGRATIONS, moving, ended))
        else:
            await records.commit(update(MIGRATIONS, moving, ended), update(VMS, stored, moved))
        return
    if rng.random() < 0.3:
        target = rng.choice([one for one in NODE_IDS if one != vm.node_id])
        migration = a_migration(records, vm, target)
        held = msgspec.structs.replace(vm, migration_id=migration.id)
        await records.commit(create(MIGRATIONS, migration), update(VMS, stored, held))
    elif rng.random() < 0.4:
        await records.commit(remove(VMS, stored))
    else:
        desired = Desired.STOPPED if vm.desired is Desired.RUNNING else Desired.RUNNING
        await records.commit(update(VMS, stored, booted(msgspec.structs.replace(vm, desired=desired), rng)))


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_promised_is_what_counting_anew_comes_to(records: Records, seed: int) -> None:
    rng = random.Random(seed)
    for name in ("a", "b", "c"):
        await records.create(NODES, a_node(name))
    kept_up = Promises(records, Limits())
    need = Need(memory_mib=64, vcpus=1, labels={"app": "web"}, wishes=PlacementWishes(vm_rules=(APART,)))
    for _ in range(60):
        await step(records, rng)
        fleet, anew = kept_up.fleet(), Promises(records, Limits()).fleet()
        found = {node_id: mine for node_id, mine in fleet.committed.items() if mine != Committed()}
        assert found == counted(records)
        assert Draft(fleet).scores(need).tolist() == Draft(anew).scores(need).tolist()


async def test_nodes_pools_and_volumes_come_change_and_go(records: Records) -> None:
    reach = {node_id: Reach(available=True, checked_at=NOW, size_bytes=100) for node_id in NODE_IDS[:2]}
    pool = Pool(id=records.new_id(), name="fast", driver=PoolDriver.DIRECTORY, created_at=NOW, updated_at=NOW)
    await records.create(POOLS, msgspec.structs.replace(pool, reach=reach))
    await records.create(NODES, a_node("b"))
    promises = Promises(records, Limits(disk_overcommit=1))
    disk = DiskNeed(pool_id=pool.id, pool_name="fast", size_bytes=60)
    need = Need(memory_mib=64, vcpus=1, pools=(PoolNeed(id=pool.id, name="fast"),), disks=(disk,))

    def chosen() -> str | None:
        return Draft(promises.fleet()).choose(need)

    assert chosen() == "id-b"
    await records.create(NODES, a_node("a"))
    assert chosen() == "id-a"
    volume = Volume(
        id=records.new_id(), name="v", pool_id=pool.id, node_id="id-a", size_bytes=50, created_at=NOW, updated_at=NOW
    )
    stored = await records.create(VOLUMES, volume)
    assert chosen() == "id-b"
    copied = msgspec.structs.replace(volume, other=Place(pool_id=pool.id, node_id="id-b"))
    stored = await records.change(VOLUMES, volume.id, lambda _: copied) or stored
    assert chosen() is None
    await records.commit(remove(VOLUMES, stored))
    assert chosen() == "id-a"
    gone = {"id-b": msgspec.structs.replace(reach["id-b"], available=False, reason="not mounted")}
    await records.change(POOLS, pool.id, lambda now: msgspec.structs.replace(now, reach=now.reach | gone))
    await records.change(NODES, "id-a", lambda now: msgspec.structs.replace(now, cordoned=True))
    assert chosen() is None
    await records.commit(remove(NODES, records.find(NODES, "a")))
    await records.change(POOLS, pool.id, lambda now: msgspec.structs.replace(now, reach=reach))
    assert chosen() == "id-b"
