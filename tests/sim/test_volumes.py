"""Volumes through troubles: agents and servers that die at the wrong moment, requests that cross each other."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from novacron.config import ServerConfig
from novacron.control.ha.admission import Admission
from novacron.control.once import Once
from novacron.control.pools.service import PoolService
from novacron.control.room import Room
from novacron.control.store.kinds import IMAGES, POOLS, VMS, VOLUMES
from novacron.control.vms.disks import DiskService
from novacron.control.vms.service import VmService
from novacron.control.volumes.service import VolumeService
from novacron.errors import Busy, Conflict, NoRoom, Unsupported
from novacron.model.image import FileRole, Image, ImageFile, ImageState
from novacron.model.machine import MachineStatus
from novacron.model.pool import spec_of
from novacron.model.vm import TaskKind, Vm, VmState, status_of
from novacron.model.volume import Volume, VolumeState, VolumeTask, state_of
from novacron.testing.fake_driver import FakeDriver
from novacron.testing.sim_pool import POOL_ID, SimPool
from novacron.wire.rest.devices import DiskIn
from novacron.wire.rest.pools import PoolCreate
from novacron.wire.rest.vms import StopRequest, VmCreate
from novacron.wire.rest.volumes import VolumeCreate, VolumeUpdate
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio

GIB = 1 << 30
CONTENT = b"a disk, as far as this house knows"


class Desk:
    """A house, and the services that people ask."""

    def __init__(self, h: House, config: ServerConfig) -> None:
        self.h = h
        room = Room(h.records, config)
        admission = Admission(h.records, room, h.protected, POOL_ID, config.ha_admission)
        self.volumes = VolumeService(h.records, room, h.clock, POOL_ID)
        self.vms = VmService(h.records, h.cluster, room, h.clock, POOL_ID, admission)
        self.disks = DiskService(h.records, room, h.clock, POOL_ID)
        self.pools = PoolService(h.records, room, h.clock, POOL_ID)
        self.once = Once(h.records.store, "", "", h.clock.wall())

    async def volume(self, name: str = "data", **wish: Any) -> Volume:
        wish = {"size_bytes": GIB} | wish
        made: Volume = (await self.volumes.create(VolumeCreate(name=name, **wish), self.once)).stored.record
        return made

    async def vm(self, name: str = "web", **wish: Any) -> Vm:
        """One that runs."""
        if not self.h.records.all(IMAGES):
            await self.h.records.create(IMAGES, an_image(self.h))
        asked = VmCreate.model_validate({"name": name, "image": "tiny", "memory_mib": 64, **wish})
        made: Vm = (await self.vms.create(asked, "test", self.once)).stored.record
        if made.task is not None:
            await self.h.until(lambda: self.h.state(made.id) is VmState.RUNNING and not self.now(made).task, "it runs")
        return made

    def now(self, vm: Vm) -> Vm:
        return self.h.records.find(VMS, vm.id).record

    def find(self, name: str = "data") -> Volume | None:
        found = [one.record for one in self.h.records.all(VOLUMES) if one.record.name == name]
        return found[0] if found else None

    def state(self, name: str = "data") -> VolumeState | None:
        found = self.find(name)
        return state_of(found) if found else None

    def files(self) -> list[str]:
        return self.h.cluster.pool.volumes()

    async def settled(self, name: str = "data") -> Volume:
        def so() -> bool:
            found = self.find(name)
            return found is not None and found.task is None

        await self.h.until(so, f"{name} has no task: {self.find(name)}")
        found = self.find(name)
        assert found is not None
        return found

    async def gone(self, name: str = "data") -> None:
        await self.h.until(lambda: self.find(name) is None, f"{name} is gone: {self.find(name)}")

    def opened(self, vm: Vm) -> list[str]:
        """Ids of the volumes its machine has open."""
        agent = next(one for one in self.h.cluster.agents.values() if one.node_id == self.now(vm).node_id)
        machine = agent.host.machines.get(vm.id)
        if machine is None or machine.report.status in (MachineStatus.STOPPED, MachineStatus.CRASHED):
            return []
        return [disk.volume_id for disk in machine.launch.spec.disks]


def an_image(h: House) -> Image:
    now = h.clock.wall()
    digest = hashlib.sha256(CONTENT).hexdigest()
    lies_at = h.cluster.pool.image_path(digest)
    lies_at.parent.mkdir(parents=True, exist_ok=True)
    lies_at.write_bytes(CONTENT)
    file = ImageFile(role=FileRole.DISK, digest=digest, size_bytes=len(CONTENT), virtual_size_bytes=GIB)
    return Image(
        id=h.records.new_id(), name="tiny", state=ImageState.READY, created_at=now, updated_at=now, files=(file,)
    )


@asynccontextmanager
async def a_desk(root: Path) -> AsyncIterator[Desk]:
    async with house(root) as h:
        yield Desk(h, ServerConfig(data_dir=root, pool_dir=root))


@pytest.fixture(autouse=True)
def placed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "name", "qemu")


# -- agents that die ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
async def test_a_volume_is_made_once_whatever_is_lost(tmp_path: Path, after: bool) -> None:
    async with a_desk(tmp_path) as desk:
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.create", after=after, times=2)
        made = await desk.volume()
        assert (await desk.settled()).problem is None
        assert desk.files() == [made.id]


async def test_a_volume_waits_for_a_node_and_another_takes_over(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        for name in ("a", "b"):
            await desk.h.cluster.kill(name)
        made = await desk.volume()
        await desk.h.clock.advance(20)
        assert desk.state() is VolumeState.CREATING
        assert desk.files() == []
        await desk.h.cluster.boot("b")
        await desk.settled()
        assert desk.files() == [made.id]


async def test_an_agent_killed_as_it_makes_a_volume_leaves_it_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_desk(tmp_path) as desk:
        whole, begun = SimPool.ensure_volume, []

        async def slowly(pool: SimPool, *args: Any, **more: Any) -> Any:
            begun.append(args)
            if len(begun) == 1:
                await desk.h.clock.sleep(1000)
            return await whole(pool, *args, **more)

        monkeypatch.setattr(SimPool, "ensure_volume", slowly)
        made = await desk.volume()
        await desk.h.until(lambda: bool(begun), "it is being made")
        await desk.h.cluster.kill("a")
        await desk.settled()
        assert (desk.state(), desk.files(), len(begun)) == (VolumeState.AVAILABLE, [made.id], 2)
        await desk.h.cluster.boot("a")
        await desk.h.clock.advance(2000)
        assert desk.files() == [made.id]


async def test_a_refusal_is_the_volumes_problem_and_nothing_is_left(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.create", error=NoRoom("the pool is full"))
        await desk.volume()
        failed = await desk.settled()
        assert failed.problem is not None
        assert (failed.problem.code, desk.state()) == ("no_room", VolumeState.ERROR)
        await desk.volumes.delete("data", None)
        await desk.gone()
        assert desk.files() == []


async def test_growing_that_failed_may_be_asked_for_again(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        made = await desk.volume()
        await desk.settled()
        desk.h.cluster["a"].lose("volume.grow", error=Unsupported("not here"))
        await desk.volumes.update("data", VolumeUpdate(size_bytes=2 * GIB), "test", None)
        assert (await desk.settled()).problem is not None
        await desk.volumes.update("data", VolumeUpdate(size_bytes=2 * GIB), "test", None)
        assert (await desk.settled()).problem is None
        assert (await desk.h.cluster.pool.extent(made.id)).size_bytes == 2 * GIB


# -- servers that die --------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3])
async def test_a_server_that_dies_at_every_write_loses_no_volume(tmp_path: Path, every: int) -> None:
    """The whole life of two volumes, the worker replaced again and again."""
    async with a_desk(tmp_path) as desk:
        h, seen = desk.h, [0]

        def count(changes: Any) -> None:
            seen[0] += sum(change.kind is VOLUMES for change in changes)

        h.records.subscribe(count)

        async def through(so: Any, what: str) -> None:
            mark = seen[0]
            while not so():
                if seen[0] - mark >= every:
                    mark = seen[0]
                    await h.replace_worker("volumes")
                await h.until(lambda mark=mark: so() or seen[0] - mark >= every, what)
            await h.replace_worker("volumes")

        made = await desk.volume()
        await h.replace_worker("volumes")
        await through(lambda: desk.state() is VolumeState.AVAILABLE, "made")
        clone = await desk.volume("clone", size_bytes=None, volume="data")
        await h.replace_worker("volumes")
        await through(lambda: desk.state("clone") is VolumeState.AVAILABLE, "cloned")
        assert desk.files() == sorted([made.id, clone.id])
        await desk.volumes.update("clone", VolumeUpdate(size_bytes=3 * GIB), "test", None)
        await h.replace_worker("volumes")
        await through(lambda: desk.find("clone").task is None, "grown")  # type: ignore[union-attr]
        assert (await h.cluster.pool.extent(clone.id)).size_bytes == 3 * GIB
        for name in ("data", "clone"):
            await desk.volumes.delete(name, None)
            await h.replace_worker("volumes")
            await desk.gone(name)
        assert desk.files() == []


# -- requests that cross -----------------------------------------------------------------------------------


async def test_a_volume_deleted_as_it_is_made_is_gone(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.create", after=True)
        made = await desk.volume()
        await desk.h.until(lambda: made.id in desk.files(), "its file is there")
        assert desk.state() is VolumeState.CREATING
        await desk.volumes.delete("data", None)
        await desk.gone()
        assert desk.files() == []


async def test_a_long_copy_is_left_off_when_its_volume_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_desk(tmp_path) as desk:
        source = await desk.volume()
        await desk.settled()
        whole = SimPool.clone_volume

        async def slowly(pool: SimPool, *args: Any) -> None:
            await desk.h.clock.sleep(1000)
            await whole(pool, *args)

        monkeypatch.setattr(SimPool, "clone_volume", slowly)
        await desk.volume("copy", size_bytes=None, volume="data")
        await desk.h.clock.advance(1)
        began_s = desk.h.clock.monotonic_s()
        await desk.volumes.delete("copy", None)
        await desk.gone("copy")
        assert desk.h.clock.monotonic_s() - began_s < 100
        await desk.h.clock.advance(2000)
        assert desk.files() == [source.id]


async def test_of_attaching_and_deleting_one_wins(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        await desk.vm(desired="stopped")
        await desk.volume()
        await desk.settled()
        await desk.volumes.delete("data", None)
        with pytest.raises(Conflict):
            await desk.disks.attach("web", DiskIn(volume="data"), "test", None, desk.once)
        await desk.gone()
        await desk.volume("other")
        await desk.disks.attach("web", DiskIn(volume="other"), "test", None, desk.once)
        with pytest.raises(Conflict, match="belongs to VM web"):
            await desk.volumes.delete("other", None)


async def test_a_vm_takes_its_own_disks_along_and_leaves_the_others(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        made = await desk.volume()
        vm = await desk.vm(disks=[{"volume": "data"}, {"size_bytes": GIB}])
        assert len(desk.opened(vm)) == 3
        assert [disk.volume_id for disk in vm.spec.disks][1] == made.id
        await desk.vms.delete("web", "test", None, force=True)
        await desk.h.until(lambda: desk.h.records.get(VMS, vm.id) is None, "the VM is gone")
        left = [stored.record for stored in desk.h.records.all(VOLUMES)]
        assert [(one.name, state_of(one)) for one in left] == [("data", VolumeState.AVAILABLE)]
        assert desk.files() == [made.id]


async def test_a_vm_waits_for_a_volume_that_is_being_made(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.create", times=4)
        made = await desk.volume()
        vm = await desk.vm(disks=[{"volume": "data"}])
        assert desk.state() is VolumeState.ATTACHED
        assert made.id in desk.opened(vm)


# -- while it runs -----------------------------------------------------------------------------------------


async def test_a_disk_comes_and_goes_as_the_machine_runs(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        vm = await desk.vm()
        await desk.disks.attach("web", DiskIn(size_bytes=GIB), "test", None, desk.once)
        await desk.h.until(lambda: len(desk.opened(vm)) == 2 and not desk.now(vm).task, "it is plugged in")
        added = desk.now(vm).spec.disks[1].volume_id
        assert added in desk.files()

        agent = next(one for one in desk.h.cluster.agents.values() if one.node_id == vm.node_id)
        agent.host.machines[vm.id].guest_takes_s = 5.0
        await desk.disks.detach("web", added, "test", None)
        await desk.h.clock.advance(1.0)
        assert desk.h.records.find(VOLUMES, added).record.vm_id == vm.id  # the guest has it yet
        with pytest.raises(Conflict):
            await desk.volumes.delete(added, None)
        await desk.h.until(lambda: not desk.h.records.find(VOLUMES, added).record.vm_id, "it is free")
        assert added not in desk.opened(vm)
        await desk.volumes.delete(added, None)
        await desk.h.until(lambda: added not in desk.files(), "it is gone")
        assert desk.h.state(vm.id) is VmState.RUNNING


async def test_a_disk_grows_as_the_machine_runs_and_as_it_does_not(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        vm = await desk.vm()
        root = vm.spec.disks[0].volume_id
        await desk.volumes.update(root, VolumeUpdate(size_bytes=2 * GIB), "test", None)
        assert desk.now(vm).task is not None
        await desk.settled("web-0")
        booted = desk.now(vm).booted
        assert booted is not None
        assert booted.disks[0].size_bytes == 2 * GIB

        await desk.vms.stop("web", StopRequest(force=True), "test", None, desk.once)
        await desk.h.until(lambda: status_of(desk.now(vm)) is MachineStatus.STOPPED and not desk.now(vm).task, "off")
        await desk.volumes.update(root, VolumeUpdate(size_bytes=3 * GIB), "test", None)
        await desk.vms.start("web", "test", None, desk.once)
        await desk.h.until(lambda: desk.h.state(vm.id) is VmState.RUNNING, "it runs again")
        assert desk.find("web-0").task is None  # type: ignore[union-attr]
        assert (await desk.h.cluster.pool.extent(root)).size_bytes == 3 * GIB


async def test_a_machine_that_ends_before_it_has_grown_has_its_disk_grown_at_rest(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        vm = await desk.vm()
        agent = next(one for one in desk.h.cluster.agents.values() if one.node_id == vm.node_id)
        agent.lose("machine.adjust", times=1000)
        root = vm.spec.disks[0].volume_id
        await desk.volumes.update(root, VolumeUpdate(size_bytes=2 * GIB), "test", None)
        await desk.h.clock.advance(1.0)
        assert desk.find("web-0").task is VolumeTask.GROW  # type: ignore[union-attr]
        agent.host.crash(vm.id)
        await desk.settled("web-0")
        assert (await desk.h.cluster.pool.extent(root)).size_bytes == 2 * GIB


async def test_a_source_is_not_started_while_it_is_cloned(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        vm = await desk.vm()
        await desk.vms.stop("web", StopRequest(force=True), "test", None, desk.once)
        await desk.h.until(lambda: not desk.now(vm).task, "off")
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.clone", times=4)
        clone = await desk.volume("copy", size_bytes=None, volume="web-0")
        await desk.vms.start("web", "test", None, desk.once)

        def not_both() -> bool:
            assert desk.find("copy").task is None or not desk.opened(vm)  # type: ignore[union-attr]
            return desk.h.state(vm.id) is VmState.RUNNING

        await desk.h.until(not_both, "it runs")
        assert clone.id in desk.files()


async def test_a_machine_whose_volume_is_missing_for_ever_does_not_hold_up_others(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        for agent in desk.h.cluster.agents.values():
            agent.lose("volume.create", times=1000)
        await desk.volume()
        stuck = await desk.vms.create(
            VmCreate.model_validate({"name": "stuck", "image": await _image(desk), "disks": [{"volume": "data"}]}),
            "test",
            desk.once,
        )
        await desk.vm("other")
        assert desk.h.state(stuck.stored.record.id) is VmState.CREATING
        task = desk.now(stuck.stored.record).task
        assert task is not None
        assert task.kind is TaskKind.CREATE
        with pytest.raises(Busy):
            await desk.vms.pause("stuck", "test", None, desk.once)
        await desk.vms.delete("stuck", "test", None, force=True)
        await desk.h.until(lambda: desk.h.records.get(VMS, stuck.stored.record.id) is None, "it is gone")


async def _image(desk: Desk) -> str:
    await desk.h.records.create(IMAGES, an_image(desk.h))
    return "tiny"


# -- pools -------------------------------------------------------------------------------------------------


async def test_nodes_say_what_they_reach_and_disks_lie_there(tmp_path: Path) -> None:
    async with a_desk(tmp_path) as desk:
        wish = PoolCreate.model_validate({"name": "fast", "driver": "directory", "options": {"path": "/srv/fast"}})
        pool = (await desk.pools.create(wish, desk.once)).stored.record
        await desk.h.until(lambda: len(desk.h.records.find(POOLS, pool.id).record.reach) == 2, "both nodes were asked")
        vm = await desk.vm(root_pool="fast")
        assert desk.files() == []
        volume = desk.find("web-0")
        assert volume is not None
        assert (volume.pool_id, volume.node_id) == (pool.id, vm.node_id)
        beside = desk.h.cluster.pool.sibling(spec_of(pool))
        assert beside.volumes() == [volume.id]
        await desk.vms.delete("web", "test", None, force=True)
        await desk.h.until(lambda: desk.h.records.get(VMS, vm.id) is None, "the VM is gone")
        assert beside.volumes() == []
