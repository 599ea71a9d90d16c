"""A migration's verbs between two simulated nodes: the whole way, taken back, repeated, and with agents killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from novacron.agent.ledger import Role
from novacron.errors import (
    Busy,
    MachineDied,
    MigrationFailed,
    NodeUnreachable,
    NotFound,
    StaleGeneration,
    StateConflict,
)
from novacron.model.machine import Disk, MachineReport, MachineSpec, MachineStatus, Nic
from novacron.model.migration import Figures, Goals, Progress
from novacron.testing.hand_clock import HandClock
from novacron.testing.sim_agent import SimAgent
from novacron.testing.sim_cluster import SimCluster
from novacron.wire import agent as wire
from novacron.wire import moving
from tests.agent.waiting import until

pytestmark = pytest.mark.anyio

VM = "01890000-0000-7000-8000-000000000001"
MIGRATION = "01890000-0000-7000-8000-0000000000aa"
SPEC = MachineSpec(
    vm_id=VM,
    generation=1,
    vcpus=1,
    memory_mib=64,
    disks=(Disk(volume_id="01890000-0000-7000-8000-0000000000d1", size_bytes=1 << 20),),
    nics=(Nic(id="01890000-0000-7000-8000-0000000000e1", mac="52:54:00:00:00:01"),),
)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[SimCluster]:
    made = SimCluster(tmp_path, HandClock(), ["a", "b"])
    await made.start()
    yield made
    await made.stop()
    assert made.world.violations == []


class Walk:
    """The steps of one migration from a to b, called the way the conductor does."""

    def __init__(self, cluster: SimCluster) -> None:
        self.cluster = cluster
        self.to: moving.ReceptionAt | None = None

    async def call(self, name: str, args: msgspec.Struct, answer: Any) -> Any:
        return await self.cluster.call(self.cluster[name].node_id, args, answer, deadline_s=5)

    async def start(self) -> MachineReport:
        report: MachineReport = await self.call("a", wire.Start(spec=SPEC), MachineReport)
        return report

    async def accept(self) -> None:
        self.to = await self.call("b", moving.Accept(migration_id=MIGRATION, spec=SPEC), moving.ReceptionAt)

    async def send(self) -> moving.Departed:
        assert self.to is not None
        args = moving.Send(vm_id=VM, generation=1, migration_id=MIGRATION, to=self.to, goals=Goals())
        departed: moving.Departed = await self.call("a", args, moving.Departed)
        return departed

    async def take_over(self, generation: int = 2) -> moving.Arrived:
        args = moving.TakeOver(vm_id=VM, generation=generation, migration_id=MIGRATION)
        arrived: moving.Arrived = await self.call("b", args, moving.Arrived)
        return arrived

    async def verify(self) -> MachineReport:
        args = moving.Verify(vm_id=VM, generation=2, migration_id=MIGRATION)
        report: MachineReport = await self.call("b", args, MachineReport)
        return report

    async def release(self) -> Figures:
        args = moving.Release(vm_id=VM, generation=2, migration_id=MIGRATION)
        figures: Figures = await self.call("a", args, Figures)
        return figures

    async def reclaim(self) -> MachineReport:
        args = moving.Reclaim(vm_id=VM, generation=1, migration_id=MIGRATION)
        report: MachineReport = await self.call("a", args, MachineReport)
        return report

    async def discard(self) -> None:
        await self.call("b", moving.Discard(vm_id=VM, generation=1, migration_id=MIGRATION), type(None))

    def steps(self) -> list[tuple[str, str, Callable[[], Awaitable[Any]]]]:
        """(name, who does it, call) in order."""
        return [
            ("accept", "b", self.accept),
            ("send", "a", self.send),
            ("take_over", "b", self.take_over),
            ("verify", "b", self.verify),
            ("release", "a", self.release),
        ]

    def arrived_whole(self) -> None:
        """The machine is b's own and nothing of it is left at a but the floor and the shared volume."""
        world, a, b = self.cluster.world, self.cluster["a"], self.cluster["b"]
        assert world.running(VM) == ["b"]
        assert a.machines.reports() == ()
        report = b.machines.report(VM)
        assert report is not None
        assert (report.status, report.generation) == (MachineStatus.RUNNING, 2)
        assert a.plugged == set()
        assert b.plugged == {SPEC.nics[0].id}
        assert self.cluster.pool.volumes() == [SPEC.disks[0].volume_id]
        assert not (a.root / "run" / VM).exists()


@pytest.fixture
async def walk(cluster: SimCluster) -> Walk:
    made = Walk(cluster)
    await made.start()
    return made


def role(agent: SimAgent) -> Role | None:
    holding = agent.ledger.get(VM)
    return holding.role if holding else None


async def test_the_whole_way(walk: Walk) -> None:
    seen: list[Progress] = []
    walk.cluster.on_progress(MIGRATION, seen.append)
    await walk.accept()
    assert role(walk.cluster["b"]) is Role.INCOMING
    await walk.send()
    assert role(walk.cluster["a"]) is Role.LEAVING
    assert walk.cluster.world.running(VM) == []
    arrived = await walk.take_over()
    assert arrived.report.generation == 2
    assert (await walk.verify()).status is MachineStatus.RUNNING
    figures = await walk.release()
    assert figures.bytes_transferred == 64 << 20
    assert [one.remaining_bytes for one in seen] == [48 << 20, 32 << 20, 16 << 20, 0]
    walk.arrived_whole()


async def test_each_step_repeated_finds_its_work_done(walk: Walk) -> None:
    for _, _, step in walk.steps():
        first = await step()
        again = await step()
        if isinstance(first, Figures):
            assert again == first
    walk.arrived_whole()


@pytest.mark.parametrize("lost_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("number", range(5))
async def test_an_agent_killed_at_any_step_is_followed_by_another(
    walk: Walk, number: int, victim: str, lost_after: bool
) -> None:
    for index, (name, doer, step) in enumerate(walk.steps()):
        if index == number:
            if lost_after and doer == victim:
                walk.cluster[doer].lose(f"migration.{name}", after=True)
                with pytest.raises(NodeUnreachable):
                    await step()
            await walk.cluster.kill(victim)
            await walk.cluster.boot(victim)
        await step()
    walk.arrived_whole()


@pytest.mark.parametrize("killed", ["", "a", "b"])
@pytest.mark.parametrize("number", range(3))
async def test_taken_back_at_any_step_the_source_runs_as_before(walk: Walk, number: int, killed: str) -> None:
    for _, _, step in walk.steps()[:number]:
        await step()
    if killed:
        await walk.cluster.kill(killed)
        await walk.cluster.boot(killed)
    for _ in range(2):
        report = await walk.reclaim()
        await walk.discard()
        assert (report.status, report.generation) == (MachineStatus.RUNNING, 1)
    a, b = walk.cluster["a"], walk.cluster["b"]
    assert walk.cluster.world.running(VM) == ["a"]
    assert (role(a), a.plugged) == (Role.OWNED, {SPEC.nics[0].id})
    assert (b.machines.reports(), b.plugged) == ((), set())
    assert walk.cluster.pool.volumes() == [SPEC.disks[0].volume_id]
    await walk.call("a", wire.Pause(vm_id=VM, generation=1), MachineReport)


async def test_the_floor_outlives_the_machine_and_the_agent(walk: Walk) -> None:
    for _, _, step in walk.steps():
        await step()
    for _ in range(2):
        with pytest.raises(StaleGeneration):
            await walk.start()
        with pytest.raises(StaleGeneration):
            await walk.reclaim()
        with pytest.raises(StaleGeneration):
            await walk.discard()
        await walk.cluster.kill("a")
        await walk.cluster.boot("a")
    walk.arrived_whole()


async def test_an_agent_killed_between_resuming_and_writing_knows_what_it_did(walk: Walk) -> None:
    await walk.accept()
    await walk.send()
    b = walk.cluster["b"]
    await b.driver.take_over(VM, MIGRATION, 2)  # done at the hypervisor, never written to the ledger
    await walk.cluster.kill("b")
    await walk.cluster.boot("b")
    assert role(b) is Role.OWNED
    with pytest.raises(StaleGeneration):
        await walk.discard()
    await walk.take_over()
    await walk.release()
    walk.arrived_whole()


@pytest.mark.parametrize("died", [False, True], ids=["it waits", "it died"])
async def test_what_was_to_be_taken_over_and_certainly_never_ran_can_be_discarded(walk: Walk, died: bool) -> None:
    await walk.accept()
    await walk.send()
    b = walk.cluster["b"]
    incoming = b.ledger.get(VM)
    assert incoming is not None
    await b.ledger.put(msgspec.structs.replace(incoming, role=Role.OWNED, generation=2))
    if died:
        b.host.crash(VM)
    else:  # an agent that died once its ledger was written
        await walk.cluster.kill("b")
        await walk.cluster.boot("b")
    await walk.call("b", moving.Discard(vm_id=VM, generation=2, migration_id=MIGRATION), type(None))
    assert b.machines.reports() == ()
    await walk.call("a", moving.Reclaim(vm_id=VM, generation=3, migration_id=MIGRATION), MachineReport)
    assert walk.cluster.world.running(VM) == ["a"]


async def test_copies_of_disks_that_came_go_with_what_died_before_it_was_told_to_continue(walk: Walk) -> None:
    b, copies = walk.cluster["b"], (SPEC.disks[0].volume_id,)
    await walk.accept()
    await walk.send()
    incoming = b.ledger.get(VM)
    assert incoming is not None
    await b.ledger.put(msgspec.structs.replace(incoming, received=copies))
    b.host.crash(VM)
    b.host.fail("take_over", MachineDied("it has no process"))
    with pytest.raises(MachineDied):
        await walk.take_over()
    died = b.ledger.get(VM)
    assert died is not None
    assert died.received == copies  # what `discard` deletes


async def test_copies_of_disks_are_its_own_once_it_continued(walk: Walk) -> None:
    b = walk.cluster["b"]
    await walk.accept()
    await walk.send()
    incoming = b.ledger.get(VM)
    assert incoming is not None
    await b.ledger.put(msgspec.structs.replace(incoming, received=(SPEC.disks[0].volume_id,)))
    await walk.take_over()
    own = b.ledger.get(VM)
    assert own is not None
    assert own.received == ()


async def test_what_was_taken_over_cannot_be_discarded(walk: Walk) -> None:
    for _, _, step in walk.steps()[:3]:
        await step()
    for crashed in (False, True):
        if crashed:
            walk.cluster["b"].host.crash(VM)
        with pytest.raises(StateConflict):
            await walk.call("b", moving.Discard(vm_id=VM, generation=2, migration_id=MIGRATION), type(None))


async def test_taking_over_needs_a_newer_generation(walk: Walk) -> None:
    await walk.accept()
    await walk.send()
    with pytest.raises(StaleGeneration):
        await walk.take_over(generation=1)
    assert walk.cluster.world.running(VM) == []


async def test_ordinary_verbs_leave_a_machine_on_its_way_alone(walk: Walk) -> None:
    await walk.accept()
    await walk.send()
    for name in ("a", "b"):
        for verb in (wire.Resume, wire.Pause, wire.Stop):
            with pytest.raises(StateConflict):
                await walk.call(name, verb(vm_id=VM, generation=1), MachineReport)
        with pytest.raises(StateConflict):
            await walk.call(name, wire.Start(spec=SPEC), MachineReport)
        with pytest.raises(StateConflict):
            await walk.call(name, wire.Remove(vm_id=VM, generation=1), type(None))
    assert walk.cluster.world.running(VM) == []


async def test_a_broken_stream_leaves_the_source_running(walk: Walk) -> None:
    await walk.accept()
    walk.cluster.world.cut("a", "b")
    with pytest.raises(MigrationFailed):
        await walk.send()
    assert walk.cluster.world.running(VM) == ["a"]
    assert (await walk.reclaim()).status is MachineStatus.RUNNING


async def test_a_transfer_outlives_the_call_that_began_it(tmp_path: Path) -> None:
    clock = HandClock()
    cluster = SimCluster(tmp_path, clock, ["a", "b"], transfer_s=8)
    await cluster.start()
    walk = Walk(cluster)
    await walk.start()
    await walk.accept()
    first = asyncio.create_task(walk.send())
    await until(lambda: clock.next_wake_s is not None and VM in cluster["a"].host.transfers())
    await clock.advance(4)
    assert not first.done()
    first.cancel()
    await clock.advance(4)
    assert cluster.world.running(VM) == []
    await walk.send()
    await walk.take_over()
    await walk.release()
    walk.arrived_whole()
    await cluster.stop()


async def test_a_failed_accept_leaves_nothing_but_the_shared_volume(walk: Walk) -> None:
    b = walk.cluster["b"]
    b.host.fail("accept", MigrationFailed("no port"))
    with pytest.raises(MigrationFailed):
        await walk.accept()
    assert (role(b), b.plugged, b.host.machines) == (Role.GONE, set(), {})
    assert walk.cluster.pool.volumes() == [SPEC.disks[0].volume_id]
    assert not (b.root / "run" / VM).exists()
    await walk.accept()


async def test_an_older_migrations_leftover_makes_room(walk: Walk) -> None:
    await walk.call("b", moving.Accept(migration_id=VM, spec=SPEC), moving.ReceptionAt)
    await walk.accept()
    for _, _, step in walk.steps()[1:]:
        await step()
    walk.arrived_whole()


async def test_an_owner_is_no_target_and_is_not_released(walk: Walk) -> None:
    with pytest.raises(StateConflict):
        await walk.call("a", moving.Accept(migration_id=MIGRATION, spec=SPEC), moving.ReceptionAt)
    with pytest.raises(StateConflict):
        await walk.call("a", moving.Release(vm_id=VM, generation=1, migration_id=MIGRATION), Figures)
    with pytest.raises(NotFound):
        await walk.call("b", moving.TakeOver(vm_id=VM, generation=2, migration_id=MIGRATION), moving.Arrived)
    assert walk.cluster.world.running(VM) == ["a"]


async def test_there_and_back_again(walk: Walk) -> None:
    for _, _, step in walk.steps():
        await step()
    back = "01890000-0000-7000-8000-0000000000bb"
    spec = msgspec.structs.replace(SPEC, generation=2)
    to = await walk.call("a", moving.Accept(migration_id=back, spec=spec), moving.ReceptionAt)
    await walk.call("b", moving.Send(vm_id=VM, generation=2, migration_id=back, to=to, goals=Goals()), moving.Departed)
    await walk.call("a", moving.TakeOver(vm_id=VM, generation=3, migration_id=back), moving.Arrived)
    with pytest.raises(StaleGeneration):  # the first migration's release comes again, late
        await walk.release()
    await walk.call("b", moving.Release(vm_id=VM, generation=3, migration_id=back), Figures)
    assert walk.cluster.world.running(VM) == ["a"]


async def test_what_a_migration_holds_is_booted_by_no_order_from_before_it_ended(walk: Walk) -> None:
    await walk.accept()
    await walk.send()
    walk.cluster["a"].host.crash(VM)
    with pytest.raises(Busy):
        await walk.start()
    assert walk.cluster.world.running(VM) == []
    await walk.discard()
    await walk.call("a", wire.Start(spec=SPEC, over=MIGRATION), MachineReport)
    assert walk.cluster.world.running(VM) == ["a"]


async def test_a_copy_that_stands_still_after_its_migration_has_ended_makes_room_for_a_newer_start(walk: Walk) -> None:
    await walk.accept()
    await walk.send()
    newer = msgspec.structs.replace(SPEC, generation=3)
    with pytest.raises(StateConflict):
        await walk.call("a", wire.Start(spec=newer), MachineReport)
    await walk.discard()
    report = await walk.call("a", wire.Start(spec=newer, over=MIGRATION), MachineReport)
    assert (report.status, report.generation) == (MachineStatus.RUNNING, 3)
