"""Snapshots as stories: production control and agents on simulated hosts, on a hand-wound clock."""

from __future__ import annotations

import datetime
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from novacron.control.once import Once
from novacron.control.snapshots import timing
from novacron.control.snapshots.schedules import ScheduleService
from novacron.control.store.kinds import IMAGES, SCHEDULES, SNAPSHOTS, VMS, VOLUMES
from novacron.control.store.records import update
from novacron.control.vms import asked
from novacron.control.vms.asked import Ask
from novacron.errors import Busy, Conflict, DriverError, NovaCronError, StateConflict, Unsupported
from novacron.model.image import ImageState
from novacron.model.machine import Disk, MachineStatus
from novacron.model.migration import MigrationState
from novacron.model.snapshot import Consistency, Snapshot, SnapshotState
from novacron.model.vm import Desired, Vm, VmState, status_of
from novacron.model.volume import Volume
from novacron.testing import fake_snapshots
from novacron.wire.rest.snapshots import ExportRequest, ScheduleCreate, SnapshotCreate, SnapshotUpdate
from tests.sim.house import House
from tests.sim.house import house as any_house

pytestmark = pytest.mark.anyio

house = functools.partial(any_house, heartbeats=False)  # hours pass
READY = SnapshotState.READY
EVERY_S = 600
"""A schedule's slot. Each second of it costs: whoever looks every second does."""


class Story:
    """One VM with a disk on node a, and what is done with its snapshots."""

    def __init__(self, at: House) -> None:
        self.house = at
        self.vm_id = ""

    async def begin(self) -> None:
        self.vm_id = await self.house.running_vm("a")

    @property
    def vm(self) -> Vm:
        return self.house.vm(self.vm_id)

    def once(self) -> Once:
        return Once(self.house.records.store, "", "", self.house.clock.wall())

    def snapshot(self, snapshot_id: str) -> Snapshot:
        return self.house.records.find(SNAPSHOTS, snapshot_id).record

    def names(self) -> list[str]:
        return [stored.record.name for stored in self.house.records.all(SNAPSHOTS)]

    async def ask(self, name: str | None = None, **how: bool) -> str:
        outcome = await self.house.snapshots.create(self.vm_id, SnapshotCreate(name=name, **how), "tester")
        return str(outcome.stored.record.id)

    async def take(self, name: str | None = None, **how: bool) -> str:
        snapshot_id = await self.ask(name, **how)
        await self.settled(snapshot_id)
        return snapshot_id

    async def revert(self, snapshot_id: str, *, start: bool = False) -> None:
        await self.house.snapshots.revert(snapshot_id, "tester", None, self.once(), start=start)
        await self.settled(snapshot_id)

    async def delete(self, snapshot_id: str) -> None:
        await self.house.snapshots.delete(snapshot_id, "tester", None)
        await self.house.until(lambda: self.house.records.get(SNAPSHOTS, snapshot_id) is None, "it is gone")

    async def settled(self, snapshot_id: str) -> None:
        await self.house.until(
            lambda: self.snapshot(snapshot_id).state in (READY, SnapshotState.ERROR) and self.vm.task is None,
            f"snapshot settles: {self.snapshot(snapshot_id)}",
        )

    async def act(self, verb: str, *, force: bool = False) -> None:
        ask = Ask(task_id=self.house.records.new_id(), by="tester", now=self.house.clock.wall(), force=force)
        await self.house.records.change(VMS, self.vm_id, lambda vm: getattr(asked, verb)(vm, ask))

    async def stop(self) -> None:
        await self.act("stop")
        await self.house.until(lambda: self.house.state(self.vm_id) is VmState.STOPPED, "it stops")

    def path(self) -> Path:
        return self.house.root / "pool" / "volumes" / f"{self.vm.spec.disks[0].volume_id}.qcow2"

    def write(self, content: str) -> None:
        fake_snapshots.write(self.path(), content)

    @property
    def content(self) -> str:
        return fake_snapshots.read(self.path()).content

    def remember(self, what: str) -> None:
        self.house.cluster["a"].host.machines[self.vm_id].memory = what


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[Story]:
    async with house(tmp_path) as made:
        told = Story(made)
        await told.begin()
        yield told
        assert made.cluster.world.violations == []


async def test_a_tree_with_branches(story: Story) -> None:
    story.write("one")
    one = await story.take("one")
    story.write("two")
    two = await story.take("two")
    await story.revert(one)
    assert story.content == "one"
    assert (status_of(story.vm), story.vm.desired) == (MachineStatus.STOPPED, Desired.STOPPED)
    story.write("branch")
    branch = await story.take("branch")
    assert story.snapshot(branch).consistency is Consistency.STOPPED
    assert [story.snapshot(one_).parent_id for one_ in (one, two, branch)] == ["", one, one]
    assert story.vm.snapshot_id == branch
    await story.delete(one)
    assert [story.snapshot(one_).parent_id for one_ in (two, branch)] == ["", ""]
    await story.revert(two, start=True)
    await story.house.until(lambda: story.house.state(story.vm_id) is VmState.RUNNING, "it runs")
    assert (story.content, story.vm.snapshot_id) == ("two", two)
    await story.delete(two)
    assert (story.vm.snapshot_id, status_of(story.vm)) == ("", MachineStatus.RUNNING)


async def test_memory_runs_on_from_the_snapshot(story: Story) -> None:
    story.write("then")
    story.remember("then")
    snapshot = await story.take(memory=True)
    seen = story.snapshot(snapshot)
    assert (seen.consistency, seen.state) == (Consistency.MEMORY, READY)
    assert seen.size_bytes > 0
    assert seen.stood_still_ms > 0
    story.write("later")
    story.remember("later")
    await story.revert(snapshot)
    assert (story.content, story.house.cluster["a"].host.machines[story.vm_id].memory) == ("then", "then")
    assert story.house.state(story.vm_id) is VmState.RUNNING
    await story.stop()
    await story.revert(snapshot)
    assert (story.house.state(story.vm_id), story.vm.desired) == (VmState.RUNNING, Desired.RUNNING)


async def test_a_moved_vm_has_its_snapshots_there(story: Story) -> None:
    story.write("then")
    story.remember("then")
    snapshot = await story.take(memory=True)
    assert await story.house.ended(await story.house.migrate(story.vm_id, "b")) is MigrationState.COMPLETED
    story.write("later")
    await story.revert(snapshot)
    assert story.content == "then"
    assert await story.house.check_peace(story.vm_id) == "b"
    await story.delete(snapshot)


@pytest.mark.parametrize("verb", ["take", "revert", "delete"])
@pytest.mark.parametrize("fate", ["server", "agent", "lost", "answer lost"])
async def test_whoever_dies_meanwhile_it_is_done_once(story: Story, verb: str, fate: str) -> None:
    story.write("then")
    snapshot = await story.ask("one") if verb == "take" else await story.take("one")
    story.write("later") if verb != "take" else None
    a = story.house.cluster["a"]
    if fate.endswith("lost"):
        a.lose(f"snapshot.{verb}", after=fate == "answer lost", times=2)
    if verb == "revert":
        await story.house.snapshots.revert(snapshot, "tester", None, story.once(), start=False)
    elif verb == "delete":
        await story.house.snapshots.delete(snapshot, "tester", None)
    if fate == "server":
        for _ in range(3):
            await story.house.replace_worker("snapshots")
            await story.house.clock.advance(0.01)
    if fate == "agent":
        await story.house.cluster.kill("a")
        await story.house.clock.advance(1)
        await story.house.cluster.boot("a")
    if verb == "delete":
        await story.house.until(lambda: story.house.records.get(SNAPSHOTS, snapshot) is None, "it is gone")
        assert fake_snapshots.read(story.path()).snapshots == {}
    else:
        await story.settled(snapshot)
        assert story.snapshot(snapshot).state is READY
        assert fake_snapshots.read(story.path()).snapshots == {snapshot: "then"}
        assert story.content == "then"
    await story.house.until(lambda: story.vm.task is None, "the VM is let go")


async def test_one_thing_at_a_time(story: Story) -> None:
    done = await story.take("done")
    story.house.cluster["a"].lose("snapshot.take", times=10**6)
    snapshot = await story.ask("slow")
    for refused in (story.ask("other"), story.revert(done), story.delete(done), story.act("stop")):
        with pytest.raises(Busy, match="snapshot is under way"):
            await refused
    with pytest.raises(Busy, match="creating"):
        await story.delete(snapshot)
    with pytest.raises(Busy):
        await story.house.snapshots.export(snapshot, ExportRequest(image="x"), None, story.once())


async def test_a_migration_and_a_snapshot_do_not_meet(story: Story) -> None:
    story.house.cluster.world.transfer_s = 60
    migration = await story.house.migrate(story.vm_id, "b")
    with pytest.raises(Busy, match="migration"):
        await story.ask()
    assert await story.house.ended(migration) is MigrationState.COMPLETED
    await story.take()


async def test_forced_work_pushes_a_snapshot_aside_and_says_so(story: Story) -> None:
    story.house.cluster["a"].lose("snapshot.take", times=10**6)
    snapshot = await story.ask("slow")
    await story.act("stop", force=True)
    await story.house.until(lambda: story.house.state(story.vm_id) is VmState.STOPPED, "it stops")
    await story.settled(snapshot)
    seen = story.snapshot(snapshot)
    assert seen.state is SnapshotState.ERROR
    assert seen.problem is not None
    assert "gave way" in seen.problem.message
    assert "novacron snapshot delete" in seen.problem.remedy
    await story.delete(snapshot)


async def test_a_refusal_is_kept_with_its_reason_and_the_vm_goes_on(story: Story) -> None:
    story.house.cluster["a"].host.fail("take_snapshot", DriverError("the disk is full"))
    snapshot = await story.take("one")
    seen = story.snapshot(snapshot)
    assert seen.state is SnapshotState.ERROR
    assert seen.problem is not None
    assert "the disk is full" in seen.problem.message
    assert (story.vm.problem, story.house.state(story.vm_id)) == (None, VmState.RUNNING)
    await story.delete(snapshot)
    good = await story.take("good", memory=True)
    story.house.cluster["a"].host.fail("restore", Unsupported("another hypervisor"))
    await story.revert(good)
    assert story.snapshot(good).state is READY
    assert story.vm.problem is not None
    assert story.vm.problem.remedy == f"novacron snapshot revert {good}"
    assert story.house.state(story.vm_id) is VmState.ERROR
    await story.revert(good)
    assert story.house.state(story.vm_id) is VmState.RUNNING


async def test_what_cannot_be_is_refused_at_once(story: Story) -> None:
    await story.take("one")
    for how, error in (
        ({"name": "one"}, Conflict),
        ({"quiesce": True}, Unsupported),
        ({"memory": True, "quiesce": True}, NovaCronError),
    ):
        with pytest.raises(error) as refused:
            await story.ask(**how)  # type: ignore[arg-type]
        assert refused.value.reasons[0].remedy
    await story.stop()
    with pytest.raises(StateConflict):
        await story.ask(memory=True)
    assert story.names() == ["one"]
    stored = story.house.records.find(VMS, story.vm_id)
    bare = msgspec.structs.replace(stored.record, spec=msgspec.structs.replace(stored.record.spec, disks=()))
    await story.house.records.commit(update(VMS, stored, bare))
    with pytest.raises(Unsupported, match="no disk"):
        await story.ask()


async def test_disks_that_came_or_went_since_are_named(story: Story) -> None:
    snapshot = await story.take("one")
    await story.stop()
    stored = story.house.records.find(VMS, story.vm_id)
    other = Disk(volume_id=story.house.records.new_id(), size_bytes=1 << 20)
    spec = msgspec.structs.replace(stored.record.spec, disks=(other,))
    await story.house.records.commit(update(VMS, stored, msgspec.structs.replace(stored.record, spec=spec)))
    with pytest.raises(Conflict) as refused:
        await story.revert(snapshot)
    codes = {reason.code: reason for reason in refused.value.reasons}
    assert set(codes) == {"snapshot.volume_detached", "snapshot.volume_attached"}
    assert all(reason.remedy for reason in codes.values())


async def test_a_disk_that_grew_is_as_small_again(story: Story) -> None:
    snapshot = await story.take("one")
    await story.stop()
    stored = story.house.records.find(VMS, story.vm_id)
    disk = stored.record.spec.disks[0]
    grown = msgspec.structs.replace(stored.record.spec, disks=(msgspec.structs.replace(disk, size_bytes=1 << 30),))
    await story.house.records.commit(update(VMS, stored, msgspec.structs.replace(stored.record, spec=grown)))
    await story.revert(snapshot)
    assert story.vm.spec.disks == (disk,)
    volume = story.house.records.get(VOLUMES, disk.volume_id)
    assert volume is None or volume.record.size_bytes == disk.size_bytes


async def test_an_export_is_an_image(story: Story) -> None:
    story.write("x" * 512)  # the server looks into the file: a raw disk of one sector
    snapshot = await story.take("one")
    ask = ExportRequest(image="golden", labels={"from": "one"})
    await story.house.snapshots.export(snapshot, ask, None, story.once())
    with pytest.raises(Busy, match="exporting"):
        await story.delete(snapshot)
    await story.settled(snapshot)
    seen = story.snapshot(snapshot)
    assert (seen.state, seen.export, seen.problem) == (READY, None, None)
    image = story.house.records.find(IMAGES, "golden").record
    assert (image.state, image.labels) == (ImageState.READY, {"from": "one"})
    assert (story.house.root / "pool" / "images" / image.files[0].digest).exists()


async def test_an_export_whose_image_is_deleted_leaves_no_file(story: Story) -> None:
    snapshot = await story.take("one")
    outcome = await story.house.snapshots.export(snapshot, ExportRequest(image="golden"), None, story.once())
    await story.house.images.delete(outcome.stored.record.id, None)
    await story.settled(snapshot)
    seen = story.snapshot(snapshot)
    assert (seen.state, seen.export) == (READY, None)
    assert seen.problem is not None
    folder = story.house.root / "pool" / "images"
    await story.house.until(lambda: not folder.exists() or list(folder.iterdir()) == [], "no file is left")


async def test_names_may_change_and_stay_unique(story: Story) -> None:
    one, two = await story.take("one"), await story.take("two")
    await story.house.snapshots.update(one, SnapshotUpdate(name="first", labels={"a": "b"}), None)
    assert (story.snapshot(one).name, story.snapshot(one).labels) == ("first", {"a": "b"})
    with pytest.raises(Conflict):
        await story.house.snapshots.update(two, SnapshotUpdate(name="first"), None)


async def test_a_deleted_vm_takes_its_snapshots_along(story: Story) -> None:
    await story.take("one")
    await story.take("two", memory=True)
    await story.act("delete", force=True)
    await story.house.until(lambda: story.house.records.get(VMS, story.vm_id) is None, "it is gone")
    assert story.names() == []


async def test_a_volume_that_outlives_its_vm_keeps_no_snapshot_of_it(story: Story) -> None:
    snapshot = await story.take("one")
    disk, now = story.vm.spec.disks[0], story.house.clock.wall()
    mine = Volume(
        id=disk.volume_id, name="data", pool_id="", size_bytes=1, vm_id=story.vm_id, created_at=now, updated_at=now
    )  # fmt: skip
    await story.house.records.create(VOLUMES, mine)
    path = story.path()
    assert set(fake_snapshots.read(path).snapshots) == {snapshot}
    await story.act("delete", force=True)
    await story.house.until(lambda: story.house.records.get(VMS, story.vm_id) is None, "it is gone")
    assert (path.exists(), fake_snapshots.read(path).snapshots) == (True, {})
    assert story.names() == []


# -- schedules -----------------------------------------------------------------------------------------------


async def scheduled(story: Story, **changed: object) -> str:
    wanted = {"name": "often", "selector": {"tier": "db"}, "every_s": EVERY_S, "keep": 2} | changed
    service = ScheduleService(story.house.records, story.house.clock)
    outcome = await service.create(ScheduleCreate.model_validate(wanted), story.once())
    return str(outcome.stored.record.id)


async def label(story: Story, **labels: str) -> None:
    await story.house.records.change(VMS, story.vm_id, lambda vm: msgspec.structs.replace(vm, labels=labels))


async def slots_pass(story: Story, count: float) -> None:
    """Let so much time pass, in steps as the keeper sees them."""
    end = story.house.clock.wall() + datetime.timedelta(seconds=count * EVERY_S)
    while story.house.clock.wall() < end:
        await story.house.clock.advance(EVERY_S / 12)
        await story.house.until(lambda: story.vm.task is None, "the VM is let go")


async def test_a_schedule_keeps_the_newest(story: Story) -> None:
    schedule = await scheduled(story)
    own = await story.take("own")
    await label(story, tier="db")
    await slots_pass(story, 0.9)
    assert story.names() == ["own"]
    await slots_pass(story, 4.2)
    await story.house.until(lambda: len(story.names()) == 3, "two are left, and what a person took")
    kept = [stored.record for stored in story.house.records.all(SNAPSHOTS)]
    assert own in {one.id for one in kept}
    mine = [one for one in kept if one.schedule_id == schedule]
    assert len(mine) == 2
    assert all(one.labels == {"schedule": "often"} for one in mine)
    found = story.house.records.find(SCHEDULES, schedule).record
    slots = [timing.slot(found, one.created_at) for one in mine]
    assert slots == [found.created_at + datetime.timedelta(seconds=number * EVERY_S) for number in (4, 5)]
    assert mine[0].description == "crash-consistent: the VM has no guest agent"
    assert found.last_at is not None
    assert timing.slot(found, found.last_at) == slots[1]


async def test_missed_runs_are_not_made_up_for(story: Story) -> None:
    await scheduled(story, keep=50)
    await label(story, tier="db")
    await story.house.kill_worker("schedules")
    await story.house.clock.advance(5 * EVERY_S)
    story.house.start_worker("schedules")
    await story.house.until(lambda: len(story.names()) == 1, "one is taken")
    await slots_pass(story, 0.5)
    assert len(story.names()) == 1
    await slots_pass(story, 0.6)
    assert len(story.names()) == 2


async def test_a_paused_schedule_and_one_that_selects_others_take_none(story: Story) -> None:
    await scheduled(story, paused=True)
    await scheduled(story, name="others", selector={"tier": "web"})
    await label(story, tier="db")
    await slots_pass(story, 3)
    assert story.names() == []


async def test_a_busy_vm_is_asked_again(story: Story) -> None:
    await scheduled(story, memory=True)
    await label(story, tier="db")
    story.house.cluster["a"].host.fail("take_snapshot", DriverError("no room"))
    await slots_pass(story, 1.1)
    assert [stored.record.state for stored in story.house.records.all(SNAPSHOTS)] == [SnapshotState.ERROR]
    await slots_pass(story, 1)
    await story.house.until(lambda: len(story.names()) == 1, "the failed one goes when another slot has begun")
    only = story.house.records.all(SNAPSHOTS)[0].record
    assert (only.state, only.consistency) == (READY, Consistency.MEMORY)
