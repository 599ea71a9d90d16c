"""A copy of disks that broke off is gone on with by the next migration, or deleted; it is never taken for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS
from novacron.model import migration_steps as machine
from novacron.model.migration import MigrationState
from novacron.model.migration_steps import COPY_KEPT_S
from novacron.model.vm import Desired, Task, TaskKind, VmState
from tests.sim.house import House, _with, house

pytestmark = pytest.mark.anyio
FULL = 1 << 20


@pytest.fixture
async def h(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, transfer_s=1.0, nodes="abc") as made:
        made.cluster.world.resumes = True
        yield made


async def broken_off(h: House) -> str:
    """A VM on a whose copy to b broke off; the link is whole again."""
    vm_id = await h.running_vm("a", local=True)
    migration_id = await h.migrate(vm_id, "b")
    await h.until(lambda: "copy_disks" in h.migration(migration_id).began, "its disk is copied")
    h.cluster.world.cut("a", "b")
    assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
    h.cluster.world.heal("a", "b")
    return vm_id


def kept(h: House, node: str) -> int:
    return len(h.cluster[node].machines.remains.all())


async def goes(h: House, vm_id: str) -> None:
    """One copy is left, where the VM is, and no node keeps anything."""
    await h.check_peace(vm_id)
    assert [kept(h, node) for node in "abc"] == [0, 0, 0]


async def restart(h: House, vm_id: str) -> None:
    for kind, wish, state in (
        (TaskKind.STOP, Desired.STOPPED, VmState.STOPPED),
        (TaskKind.START, Desired.RUNNING, VmState.RUNNING),
    ):
        task = Task(id=h.records.new_id(), kind=kind, requested_at=h.clock.wall())
        await h.records.change(VMS, vm_id, lambda vm, wish=wish, task=task: _with(vm, desired=wish, task=task))  # type: ignore[misc]
        await h.until(lambda state=state: h.state(vm_id) is state and h.vm(vm_id).task is None, state.value)  # type: ignore[misc]


@pytest.mark.parametrize("way", ["live", "cold"])
async def test_the_next_goes_on(h: House, way: str) -> None:
    vm_id = await broken_off(h)
    assert kept(h, "b") == 1
    assert h.cluster.world.running(vm_id) == ["a"]
    migration_id = await h.migrate(vm_id, "b", way)
    assert await h.ended(migration_id) is MigrationState.COMPLETED
    assert h.migration(migration_id).figures.disk_bytes == FULL // 2
    assert "went on from what came" in " ".join(h.migration(migration_id).explanation)
    await goes(h, vm_id)


async def test_an_agent_that_died_meanwhile_still_keeps_it(h: House) -> None:
    vm_id = await broken_off(h)
    await h.cluster.kill("b")
    await h.cluster.boot("b")
    migration_id = await h.migrate(vm_id, "b")
    assert await h.ended(migration_id) is MigrationState.COMPLETED
    assert h.migration(migration_id).figures.disk_bytes == FULL // 2
    await goes(h, vm_id)


async def test_started_anew_it_is_copied_anew(h: House) -> None:
    vm_id = await broken_off(h)
    await restart(h, vm_id)
    migration_id = await h.migrate(vm_id, "b")
    assert await h.ended(migration_id) is MigrationState.COMPLETED
    assert h.migration(migration_id).figures.disk_bytes == FULL
    assert "copied anew" in " ".join(h.migration(migration_id).explanation)
    await goes(h, vm_id)


async def test_moved_elsewhere_what_came_goes(h: House) -> None:
    vm_id = await broken_off(h)
    assert await h.ended(await h.migrate(vm_id, "c")) is MigrationState.COMPLETED
    await h.until(lambda: kept(h, "b") == 0, "the sweeper")
    await goes(h, vm_id)


async def test_called_off_nothing_is_kept(h: House) -> None:
    vm_id = await h.running_vm("a", local=True)
    migration_id = await h.migrate(vm_id, "b")
    await h.until(lambda: "copy_disks" in h.migration(migration_id).began, "its disk is copied")
    await h.records.change(MIGRATIONS, migration_id, lambda now: machine.cancelled(now, h.clock.wall()))
    assert await h.ended(migration_id) is MigrationState.CANCELLED
    await goes(h, vm_id)


@pytest.mark.parametrize("why", ["shared", "old"])
async def test_where_it_would_do_harm_nothing_is_kept(h: House, why: str) -> None:
    """In a pool that nodes share it is in the way of moves to others; an older source would take it for blank."""
    vm_id = await h.running_vm("a", local=True)
    migration_id = await h.migrate(vm_id, "b")
    await h.until(lambda: "copy_disks" in h.migration(migration_id).began, "its disk is copied")
    if why == "shared":
        pool_id = h.vm(vm_id).spec.disks[0].pool_id
        await h.records.change(POOLS, pool_id, lambda pool: _with(pool, shared=True))
    else:
        node_id = h.cluster["a"].node_id
        await h.records.change(NODES, node_id, lambda node: _with(node, facts=_with(node.facts, abilities=())))
    h.cluster.world.cut("a", "b")
    assert await h.ended(migration_id) is MigrationState.ROLLED_BACK
    await goes(h, vm_id)


async def test_after_its_time_it_goes(h: House) -> None:
    vm_id = await broken_off(h)
    remains = h.cluster["b"].machines.remains
    (holding,) = (one for one in h.cluster["b"].ledger.all() if one.kept)
    assert holding.kept is not None
    assert (holding.kept.until - h.clock.wall()).total_seconds() == pytest.approx(COPY_KEPT_S, abs=10)
    expiring = asyncio.create_task(remains.expire())
    assert kept(h, "b") == 1
    past = _with(holding, kept=_with(holding.kept, until=h.clock.wall()))
    await h.cluster["b"].ledger.put(past)
    await h.until(lambda: kept(h, "b") == 0, "its time is over")
    expiring.cancel()
    await goes(h, vm_id)
