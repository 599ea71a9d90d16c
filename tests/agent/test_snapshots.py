"""The verbs about snapshots on one simulated node: whole or absent, once or again, running or at rest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.snapshots import Snapshots
from novacron.errors import (
    Busy,
    DriverError,
    InvalidInput,
    NotFound,
    NovaCronError,
    StaleGeneration,
    StateConflict,
    Unsupported,
)
from novacron.model.machine import Disk, MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.model.migration import Goals
from novacron.model.snapshot import Consistency
from novacron.testing import fake_snapshots
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_cluster import SimCluster
from novacron.wire import agent as wire
from novacron.wire import moving, snapshot

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
ONE, TWO = "01890000-0000-7000-8000-0000000000d1", "01890000-0000-7000-8000-0000000000d2"
FIRST, SECOND, TASK = (f"01890000-0000-7000-8000-0000000000a{number}" for number in range(3))
DISKS = tuple(Disk(volume_id=volume_id, size_bytes=1 << 20) for volume_id in (ONE, TWO))
SPEC = MachineSpec(vm_id=VM, generation=3, vcpus=1, memory_mib=64, disks=DISKS)


class Node:
    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.agent: SimAgent = cluster["a"]

    async def call(self, args: msgspec.Struct, answer: Any = None) -> Any:
        return await self.cluster.call(self.agent.node_id, args, answer or type(None), deadline_s=5)

    async def start(self) -> None:
        await self.call(wire.Start(spec=SPEC), MachineReport)

    async def stop(self) -> None:
        await self.call(wire.Stop(vm_id=VM, generation=3, mode=StopMode.FORCED, deadline_s=0), MachineReport)

    async def take(self, snapshot_id: str = FIRST, *, generation: int = 3, **how: bool) -> snapshot.SnapshotTaken:
        args = snapshot.SnapshotTake(vm_id=VM, generation=generation, spec=SPEC, snapshot_id=snapshot_id, **how)
        taken: snapshot.SnapshotTaken = await self.call(args, snapshot.SnapshotTaken)
        return taken

    async def revert(self, snapshot_id: str = FIRST, *, memory: bool = False, task_id: str = TASK) -> MachineReport:
        args = snapshot.SnapshotRevert(
            vm_id=VM, generation=3, spec=SPEC, snapshot_id=snapshot_id, memory=memory, task_id=task_id
        )
        report: MachineReport = await self.call(args, MachineReport)
        return report

    async def delete(self, snapshot_id: str = FIRST, spec: MachineSpec = SPEC) -> None:
        await self.call(snapshot.SnapshotDelete(vm_id=VM, generation=3, spec=spec, snapshot_id=snapshot_id))

    def write(self, content: str, *volumes: str) -> None:
        for volume_id in volumes or (ONE, TWO):
            fake_snapshots.write(self.path(volume_id), content)

    def contents(self) -> list[str]:
        return [fake_snapshots.read(self.path(volume_id)).content for volume_id in (ONE, TWO)]

    def points(self) -> list[set[str]]:
        return [set(fake_snapshots.read(self.path(volume_id)).snapshots) for volume_id in (ONE, TWO)]

    def path(self, volume_id: str) -> Path:
        return self.agent.root.parent / "pool" / "volumes" / f"{volume_id}.qcow2"

    @property
    def status(self) -> MachineStatus:
        report = self.agent.machines.report(VM)
        assert report is not None
        return report.status


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    cluster = SimCluster(tmp_path, HandClock(), ["a", "b"])
    await cluster.start()
    yield Node(cluster)
    await cluster.stop()
    assert cluster.world.violations == []


async def test_a_tree_of_a_machine_at_rest(node: Node) -> None:
    assert (await node.take()).consistency is Consistency.STOPPED  # never started: its volumes are made for it
    await node.start()
    await node.stop()
    for snapshot_id, content in ((SECOND, "two"), (TASK, "three")):
        node.write(content)
        for _ in range(2):
            assert (await node.take(snapshot_id)).consistency is Consistency.STOPPED
    for number, (snapshot_id, content) in enumerate(((SECOND, "two"), (TASK, "three"), (FIRST, "blank"))):
        report = await node.revert(snapshot_id, task_id=f"task-{number}")
        assert report.status is MachineStatus.STOPPED
        assert node.contents() == [content] * 2
    for _ in range(2):
        await node.delete(SECOND)
    assert node.points() == [{FIRST, TASK}] * 2
    assert node.contents() == ["blank"] * 2


async def test_of_a_running_machine_with_its_memory(node: Node) -> None:
    await node.start()
    node.write("then")
    machine = node.agent.host.machines[VM]
    machine.memory = "remembered"
    taken = await node.take(memory=True)
    assert taken.consistency is Consistency.MEMORY
    assert taken.memory_bytes > 0
    node.write("later")
    machine.memory = "forgotten"
    report = await node.revert(memory=True)
    assert (report.status, report.generation) == (MachineStatus.RUNNING, 3)
    assert node.contents() == ["then"] * 2
    assert node.agent.host.machines[VM].memory == "remembered"
    node.agent.host.machines[VM].memory = "went on"
    await node.revert(memory=True)  # the same asking, again: nothing is thrown away
    assert node.agent.host.machines[VM].memory == "went on"
    await node.revert(memory=True, task_id=SECOND)
    assert node.agent.host.machines[VM].memory == "remembered"


async def test_a_running_machine_is_ended_by_a_revert_of_its_disks(node: Node) -> None:
    await node.start()
    await node.take()
    node.write("later")
    report = await node.revert()
    assert report.status is MachineStatus.STOPPED
    assert node.contents() == ["blank"] * 2


async def test_what_one_volume_cannot_do_is_done_to_none(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.start()
    await node.stop()
    pool = type(node.cluster.pool)
    whole = pool.take_snapshot

    async def fails(self: Any, volume_id: str, snapshot_id: str) -> None:
        if volume_id == TWO:
            raise DriverError("the pool is broken")
        await whole(self, volume_id, snapshot_id)

    monkeypatch.setattr(pool, "take_snapshot", fails)
    with pytest.raises(DriverError, match="the pool is broken"):
        await node.take()
    assert node.points() == [set(), set()]


async def test_the_driver_says_what_cannot_be(node: Node) -> None:
    for how in ({"memory": True}, {"quiesce": True}):
        with pytest.raises(StateConflict):
            await node.take(**how)
    await node.start()
    with pytest.raises(Unsupported):
        await node.take(quiesce=True)
    await node.take()
    with pytest.raises(Unsupported, match="memory"):
        await node.revert(memory=True)
    with pytest.raises(InvalidInput):
        await node.take("../../etc")
    assert node.points() == [{FIRST}, {FIRST}]


async def test_a_lost_answer_or_agent_changes_nothing(node: Node) -> None:
    await node.start()
    node.agent.host.fail("take_snapshot", DriverError("lost"), after=True)
    with pytest.raises(NovaCronError):
        await node.take()
    await node.cluster.kill("a")
    await node.cluster.boot("a")
    assert (await node.take()).consistency is Consistency.CRASH
    assert node.points() == [{FIRST}] * 2
    node.write("later")
    await node.revert()
    node.write("after the revert")
    await node.cluster.kill("a")
    await node.cluster.boot("a")
    await node.revert()  # the ledger knows it is done
    assert node.contents() == ["after the revert"] * 2


async def test_snapshots_of_a_volume_that_was_detached_or_is_gone(node: Node) -> None:
    await node.start()
    await node.take()
    await node.stop()
    less = msgspec.structs.replace(SPEC, disks=DISKS[:1])
    await node.call(wire.Start(spec=less), MachineReport)
    await node.delete()  # the driver knows of one volume alone
    assert node.points() == [set(), set()]
    await node.stop()
    await node.take(SECOND)
    node.path(TWO).unlink()
    with pytest.raises(NotFound):
        await node.revert(SECOND)
    await node.delete(SECOND)


async def test_who_speaks_of_an_old_ownership_or_of_a_machine_on_its_way_is_refused(node: Node) -> None:
    await node.start()
    with pytest.raises(StaleGeneration):
        await node.take(generation=2)
    b = node.cluster["b"]
    to = await node.cluster.call(
        b.node_id, moving.Accept(migration_id=TASK, spec=SPEC), moving.ReceptionAt, deadline_s=5
    )
    await node.call(moving.Send(vm_id=VM, generation=3, migration_id=TASK, to=to, goals=Goals()), moving.Departed)
    for work in (node.take, node.revert, node.delete):
        with pytest.raises((Busy, StateConflict)):
            await work()


async def test_an_exported_volume_is_an_image_of_the_pool(node: Node) -> None:
    node.path(ONE).parent.mkdir(parents=True, exist_ok=True)
    await node.start()
    node.write("worth keeping")
    await node.take()
    node.write("later")
    export = snapshot.SnapshotExport(vm_id=VM, generation=3, spec=SPEC, snapshot_id=FIRST, volume_id=ONE)
    for _ in range(2):
        made = await node.call(export, snapshot.SnapshotExported)
        assert node.cluster.pool.image_path(made.digest).read_text() == "worth keeping"
        assert (made.size_bytes, made.virtual_size_bytes) == (len("worth keeping"), 1 << 20)
    with pytest.raises(InvalidInput):
        await node.call(msgspec.structs.replace(export, volume_id=SECOND), snapshot.SnapshotExported)
    assert list((node.agent.root / "state" / "exports").iterdir()) == []


async def test_what_a_cut_off_export_left_is_swept(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    (exports / ".half").touch()
    (exports / "whole").touch()
    nothing: Any = None
    await Snapshots(nothing, nothing, nothing, nothing, nothing, exports).sweep()
    assert list(exports.iterdir()) == []
