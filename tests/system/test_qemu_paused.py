"""The QEMU driver moving machines whose guests were paused: they run at no moment, and go on when they are told to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from novacron.agent.drivers.base import DiskFile, FileAt, Launch
from novacron.agent.drivers.handoff import Awaited
from novacron.agent.drivers.qemu import QemuDriver, postcopy_probe
from novacron.agent.drivers.qemu.devices import node_of
from novacron.errors import MigrationFailed, MonitorFailed, StateConflict
from novacron.model.machine import Disk, MachineStatus
from novacron.model.migration import Goals, Strategy, Tactics
from tests.system import rom_machine
from tests.system.postcopy_setting import postcopy_allowed
from tests.system.rom_machine import Host, Hosts, an_id, needs_qemu
from tests.system.rom_move import LOOPBACK, Move, nothing
from tests.system.test_qemu_disks import DiskMove
from tests.system.test_qemu_mirror import needs_qemu_img, tool

pytestmark = [pytest.mark.anyio, pytest.mark.system, needs_qemu, needs_qemu_img]
S = MachineStatus
SIZE = 8 << 20
WAYS = {"live": Tactics(), "warm": Tactics(stands_still=True), "postcopy": Tactics(strategy=Strategy.POSTCOPY)}


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    async with rom_machine.hosts() as made:
        yield made


class PausedMove(Move):
    """A paused machine with a disk that both hosts see."""

    def __init__(self, hosts: Hosts) -> None:
        super().__init__(hosts, pages=20)
        self.volume = an_id()
        self.disk = self.one.root.parent / f"{self.volume}.qcow2"
        tool("qemu-img", "create", "-q", "-f", "qcow2", str(self.disk), str(SIZE))
        self.generation = 1
        self.began = ""

    def launch(self, host: Host) -> Launch:
        plain = host.launch(self.vm_id, pages=self.pages, wss=4096, generation=self.generation)
        spec = msgspec.structs.replace(plain.spec, disks=(Disk(volume_id=self.volume, size_bytes=SIZE),))
        file = DiskFile(volume_id=self.volume, source=FileAt(self.disk), format="qcow2")
        return msgspec.structs.replace(plain, spec=spec, disks=(file,))

    async def begin(self) -> None:
        await self.source.start(self.launch(self.one))
        await self.one.ticking(self.vm_id)
        await self.source.pause(self.vm_id)

    def ticks(self) -> int:
        return len(self.one.ticks(self.vm_id)) + len(self.other.ticks(self.vm_id))

    async def go(self, source: QemuDriver, target: QemuDriver, to: Host, tactics: Tactics) -> None:
        self.began = migration_id = an_id()
        at = await target.accept(self.launch(to), Awaited(migration_id=migration_id, host=LOOPBACK, paused=True))
        assert (await source.send(self.vm_id, migration_id, at, Goals(), nothing, tactics)).whole
        self.generation += 1
        for _ in range(2):  # asked again it is as it was
            arrival = await target.take_over(self.vm_id, migration_id, self.generation)
            assert arrival.report.status is S.PAUSED
        assert (await target.verify(self.vm_id)).status is S.PAUSED
        await source.release(self.vm_id, migration_id)


@pytest.mark.parametrize("way", WAYS)
async def test_it_runs_at_no_moment_there_and_back(hosts: Hosts, way: str) -> None:
    with postcopy_allowed() if way == "postcopy" else contextlib.nullcontext():
        move = PausedMove(hosts)
        if way == "postcopy" and postcopy_probe.FEATURE not in (await move.target.probe()).features:
            pytest.skip("post-copy is not usable here")
        await there_and_back(move, WAYS[way])


async def there_and_back(move: PausedMove, tactics: Tactics) -> None:
    await move.begin()
    before = move.ticks()
    await move.go(move.source, move.target, move.other, tactics)
    assert await move.other.silent(move.vm_id)
    assert move.ticks() == before
    await move.source.forget(move.vm_id)
    await move.go(move.target, move.source, move.one, tactics)
    assert await move.one.silent(move.vm_id)
    assert move.ticks() == before
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id, 20)
    seqs = [seq for seq, _ in move.one.ticks(move.vm_id)]
    assert seqs == list(range(1, len(seqs) + 1))  # none lost, none twice
    assert {bad for _, bad in move.one.ticks(move.vm_id)} == {0}


async def test_its_disks_are_of_use_while_it_stands_there(hosts: Hosts) -> None:
    move = PausedMove(hosts)
    await move.begin()
    await move.go(move.source, move.target, move.other, Tactics())
    monitor = move.target._fleet.machines[move.vm_id].door()
    await monitor.execute("block_resize", {"node-name": node_of(move.volume), "size": 2 * SIZE})
    taken = await move.target.take_snapshot(move.vm_id, an_id())
    assert not taken.memory_bytes
    assert (await move.target.look(move.vm_id)).status is S.PAUSED


async def test_its_agents_may_die_between_any_two_steps(hosts: Hosts) -> None:
    move = PausedMove(hosts)
    await move.begin()
    before = move.ticks()
    at = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, paused=True)
    )
    assert (await move.restart_target()).status is S.INCOMING
    await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing)
    assert (await move.restart_target()).status is S.INCOMING
    assert (await move.restart_source()).status is S.HANDED_OFF
    assert (await move.target.take_over(move.vm_id, move.migration_id, 2)).report.status is S.PAUSED
    assert (await move.restart_target()).status is S.PAUSED
    assert (await move.target.verify(move.vm_id)).status is S.PAUSED
    await move.source.release(move.vm_id, move.migration_id)
    assert await move.other.silent(move.vm_id)
    assert move.ticks() == before


async def test_taken_back_it_is_paused_at_its_source_and_goes_on_there(hosts: Hosts) -> None:
    move = PausedMove(hosts)
    await move.begin()
    at = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, paused=True)
    )
    await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing)
    assert (await move.source.reclaim(move.vm_id, move.migration_id)).status is S.PAUSED
    await move.target.discard(move.vm_id, move.migration_id)
    assert await move.one.silent(move.vm_id)
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id)
    move.check()


async def sent_and_taken_back(hosts: Hosts) -> PausedMove:
    """All of it had come when it was called off, and nothing of it is on the target any more."""
    move = PausedMove(hosts)
    await move.begin()
    at = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, paused=True)
    )
    assert (await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing)).whole
    back = await move.source.reclaim(move.vm_id, move.migration_id)
    assert (back.status, back.resume_first) == (S.PAUSED, True)
    await move.target.discard(move.vm_id, move.migration_id)
    await move.target.forget(move.vm_id)
    return move


@pytest.mark.parametrize("agent_dies", [False, True])
async def test_taken_back_it_is_sent_again_once_it_has_run(hosts: Hosts, agent_dies: bool) -> None:
    """QEMU would refuse it before, and nothing but letting its guest run helps: so it is told, and nothing is begun."""
    move = await sent_and_taken_back(hosts)
    before = move.ticks()
    if agent_dies:
        assert (await move.restart_source()).resume_first
    with pytest.raises(StateConflict, match="sends it again once it has run") as wrong:
        await move.go(move.source, move.target, move.other, Tactics())
    assert wrong.value.reasons[0].remedy == "resume it first"
    assert move.at_source() is S.PAUSED
    await move.target.discard(move.vm_id, move.began)
    assert await move.one.silent(move.vm_id)
    assert move.ticks() == before
    assert not (await move.source.resume(move.vm_id)).resume_first
    await move.one.ticking(move.vm_id)
    assert not (await move.source.pause(move.vm_id)).resume_first
    await move.target.forget(move.vm_id)
    await move.go(move.source, move.target, move.other, Tactics())
    await move.target.resume(move.vm_id)
    await move.other.ticking(move.vm_id)
    move.check()


async def test_taken_back_its_disks_are_of_use_before_it_has_run(hosts: Hosts) -> None:
    """QEMU has let go of them, and ends by an assertion when it is told to write to one: they are held again first."""
    move = await sent_and_taken_back(hosts)
    before = move.ticks()
    launch = move.launch(move.one)
    larger = tuple(msgspec.structs.replace(disk, size_bytes=2 * SIZE) for disk in launch.spec.disks)
    wished = msgspec.structs.replace(launch, spec=msgspec.structs.replace(launch.spec, disks=larger))
    adjusted = await move.source.adjust(wished)
    assert [disk.size_bytes for disk in adjusted.now.disks] == [2 * SIZE], adjusted.pending
    for memory in (False, True):
        snapshot_id = an_id()
        await move.source.take_snapshot(move.vm_id, snapshot_id, memory=memory)
        await move.source.delete_snapshot(move.vm_id, snapshot_id)
    assert (await move.source.look(move.vm_id)).status is S.PAUSED
    assert await move.one.silent(move.vm_id)
    assert move.ticks() == before
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id)
    move.check()


async def test_taken_back_its_disks_change_their_place_before_it_has_run(hosts: Hosts) -> None:
    move = await sent_and_taken_back(hosts)
    launch, path = move.launch(move.one), move.disk.with_name("elsewhere.qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE))
    files = tuple(msgspec.structs.replace(disk, source=FileAt(path)) for disk in launch.disks)
    there = tuple(msgspec.structs.replace(disk, pool_id="elsewhere") for disk in launch.spec.disks)
    here = an_id()
    await move.source.copy_here(move.vm_id, here, files, Goals(), nothing)
    wanted = msgspec.structs.replace(launch.spec, disks=there)
    assert (await move.source.pivot(move.vm_id, here, wanted)).status is S.PAUSED
    assert await move.one.silent(move.vm_id)
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING
    await move.one.ticking(move.vm_id)
    move.check()


async def test_disks_that_another_still_holds_are_not_touched(hosts: Hosts) -> None:
    move = PausedMove(hosts)
    await move.begin()
    at = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, paused=True)
    )
    await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing)
    await move.source.reclaim(move.vm_id, move.migration_id)
    with pytest.raises(MonitorFailed):
        await move.source.take_snapshot(move.vm_id, an_id())
    await move.target.discard(move.vm_id, move.migration_id)
    await move.source.take_snapshot(move.vm_id, an_id())
    assert (await move.source.resume(move.vm_id)).status is S.RUNNING


async def test_disks_that_come_with_it_hold_what_it_wrote(hosts: Hosts) -> None:
    move = DiskMove(hosts, pages=20)
    await move.source.start(move.launch(move.one))
    await move.one.ticking(move.vm_id)
    await move.source.pause(move.vm_id)
    before = len(move.one.ticks(move.vm_id))
    at = await move.target.accept(
        move.launch(move.other),
        Awaited(migration_id=move.migration_id, host=LOOPBACK, receives=move.volumes, paused=True),
    )
    await move.copy(at)
    await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing, volume_ids=move.volumes)
    arrival = await move.target.take_over(move.vm_id, move.migration_id, 2, move.volumes)
    assert arrival.report.status is S.PAUSED
    await move.target.verify(move.vm_id)
    await move.source.release(move.vm_id, move.migration_id)
    assert await move.other.silent(move.vm_id)
    assert len(move.other.ticks(move.vm_id)) + before == len(move.one.ticks(move.vm_id))
    await move.target.resume(move.vm_id)
    await move.other.ticking(move.vm_id)
    move.check()
    for number in range(2):
        tool("qemu-img", "compare", "-U", "-q", str(move.path(move.one, number)), str(move.path(move.other, number)))


async def test_one_that_dies_waiting_is_told(hosts: Hosts) -> None:
    move = PausedMove(hosts)
    await move.begin()
    at = await move.target.accept(
        move.launch(move.other), Awaited(migration_id=move.migration_id, host=LOOPBACK, paused=True)
    )
    for pid in move.other.pids():
        rom_machine.kill(pid)
    with pytest.raises(MigrationFailed):
        await move.source.send(move.vm_id, move.migration_id, at, Goals(), nothing)
    assert move.at_source() is S.PAUSED
    assert await move.one.silent(move.vm_id)
