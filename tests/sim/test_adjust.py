"""Hardware changed while a machine runs, through the production parts: what is done, what waits, and every fault."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest

from novacron.control.store.kinds import VMS
from novacron.control.vms import hardware
from novacron.control.vms.asked import Ask
from novacron.errors import MonitorFailed, NodeUnreachable
from novacron.model.machine import HOT_SLOT, Disk, MachineSpec, Nic
from novacron.model.migration import MigrationState
from novacron.model.vm import Desired, Task, TaskKind, Vm, VmSpec, VmState
from tests.sim.house import House, house

pytestmark = pytest.mark.anyio


async def wish(h: House, vm_id: str, **changes: object) -> None:
    """What the service records when a request changes the spec."""

    def change(vm: Vm) -> Vm:
        ask = Ask(task_id=h.records.new_id(), by="me", now=h.clock.wall())
        return hardware.wish(vm, msgspec.structs.replace(vm.spec, **changes), ask)

    await h.records.change(VMS, vm_id, change)


async def attach(h: House, vm_id: str) -> Disk:
    vm = h.vm(vm_id)
    disk = Disk(volume_id=h.records.new_id(), size_bytes=1 << 20, slot=hardware.free_disk_slot(vm))
    h.cluster.pool.make(disk.volume_id)
    await wish(h, vm_id, disks=(*vm.spec.disks, disk))
    return disk


async def settled(h: House, vm_id: str) -> Vm:
    await h.until(lambda: h.vm(vm_id).task is None, "the adjustment ends")
    return h.vm(vm_id)


def told(h: House, vm_id: str, node: str = "a") -> MachineSpec:
    """What the node's hypervisor runs."""
    return h.cluster[node].host.machines[vm_id].launch.spec


async def test_a_disk_comes_and_goes(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        disk = await attach(h, vm_id)
        assert disk.slot == HOT_SLOT
        vm = await settled(h, vm_id)
        assert told(h, vm_id).disks == vm.spec.disks == (vm.booted.disks if vm.booted else ())
        assert (vm.pending, vm.problem) == ((), None)
        await wish(h, vm_id, disks=vm.spec.disks[:1])
        vm = await settled(h, vm_id)
        assert vm.booted == vm.spec
        assert len(told(h, vm_id).disks) == 1


async def test_what_cannot_be_done_now_waits_and_is_said(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await wish(h, vm_id, memory_mib=128, vcpus=2)
        vm = await settled(h, vm_id)
        assert {reason.subject for reason in vm.pending} == {"memory_mib", "vcpus"}
        assert vm.booted is not None
        assert (vm.spec.memory_mib, vm.booted.memory_mib) == (128, 64)
        assert h.state(vm_id) is VmState.RUNNING


async def test_a_place_in_the_starting_order_waits_for_the_next_start(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        card = Nic(id=h.records.new_id(), mac="52:54:00:00:00:01", slot=HOT_SLOT, boot_order=2)
        await wish(h, vm_id, nics=(card,))
        vm = await settled(h, vm_id)
        assert [(reason.code, reason.subject) for reason in vm.pending] == [("boot_order.waits", card.id)]
        unbooted = msgspec.structs.replace(card, boot_order=0)
        assert vm.booted is not None  # it has the card, though not as it was told
        assert (vm.spec.nics, vm.booted.nics, told(h, vm_id).nics) == ((card,), (unbooted,), (unbooted,))
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert told(h, vm_id, "b").nics == (unbooted,)
        await wish(h, vm_id, nics=(unbooted,))
        vm = await settled(h, vm_id)
        assert (vm.pending, vm.booted) == ((), vm.spec)


async def test_a_guest_that_keeps_a_disk_keeps_it_in_the_record_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        disk = await attach(h, vm_id)
        vm = await settled(h, vm_id)
        h.cluster["a"].host.machines[vm_id].keeps = (disk.volume_id,)
        await wish(h, vm_id, disks=vm.spec.disks[:1])
        vm = await settled(h, vm_id)
        assert [reason.subject for reason in vm.pending] == [disk.volume_id]
        assert vm.booted is not None
        assert disk in vm.booted.disks
        assert hardware.free_disk_slot(vm) != disk.slot  # it still sits there
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert disk in told(h, vm_id, "b").disks  # and moves along


async def test_a_refusal_is_a_problem_and_the_wish_stays(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.fail("adjust", MonitorFailed("QEMU refused"))
        disk = await attach(h, vm_id)
        vm = await settled(h, vm_id)
        assert vm.problem is not None
        assert "QEMU refused" in vm.problem.message
        assert disk in vm.spec.disks


@pytest.mark.parametrize("after", [False, True], ids=["lost-call", "lost-reply"])
async def test_a_broken_line_is_only_a_delay(tmp_path: Path, after: bool) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].lose("machine.adjust", after=after, error=NodeUnreachable("the line broke"))
        disk = await attach(h, vm_id)
        vm = await settled(h, vm_id)
        assert vm.booted == vm.spec
        assert disk in told(h, vm_id).disks


async def test_an_agent_killed_while_it_adjusts(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].guest_takes_s = 5.0
        disk = await attach(h, vm_id)
        await h.until(lambda: h.cluster.waits_for("a"), "it is asked")
        await h.cluster.kill("a")
        assert disk not in told(h, vm_id).disks
        await h.cluster.boot("a")
        vm = await settled(h, vm_id)
        assert vm.booted == vm.spec
        assert disk in told(h, vm_id).disks


async def test_a_server_killed_while_it_waits(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].guest_takes_s = 5.0
        await attach(h, vm_id)
        await h.until(lambda: h.cluster.waits_for("a"), "it is asked")
        await h.replace_worker("reconciler")
        vm = await settled(h, vm_id)
        assert vm.booted == vm.spec == msgspec.structs.replace(vm.spec, disks=told(h, vm_id).disks)


async def test_a_newer_wish_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].guest_takes_s = 5.0
        first = await attach(h, vm_id)
        await h.until(lambda: h.cluster.waits_for("a"), "it is asked")
        second = await attach(h, vm_id)
        assert (first.slot, second.slot) == (HOT_SLOT, HOT_SLOT + 1)
        vm = await settled(h, vm_id)
        assert {first, second} <= set(told(h, vm_id).disks)
        assert vm.booted == vm.spec


async def test_a_crash_meanwhile_is_seen_for_what_it_is(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        h.cluster["a"].host.machines[vm_id].guest_takes_s = 5.0
        await attach(h, vm_id)
        await h.until(lambda: h.cluster.waits_for("a"), "it is asked")
        h.cluster["a"].host.crash(vm_id)
        vm = await settled(h, vm_id)
        assert vm.problem is not None


async def test_a_wish_during_other_work_comes_after_it(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        task = Task(id=h.records.new_id(), kind=TaskKind.PAUSE, requested_at=h.clock.wall())
        pausing = {"task": task, "desired": Desired.PAUSED}
        await h.records.change(VMS, vm_id, lambda vm: msgspec.structs.replace(vm, **pausing))
        disk = await attach(h, vm_id)
        vm = await settled(h, vm_id)
        assert disk in told(h, vm_id).disks
        assert vm.booted == vm.spec
        assert h.state(vm_id) is VmState.PAUSED


def test_slots_are_given_once() -> None:
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    disks = tuple(Disk(volume_id=str(n), size_bytes=1, slot=n) for n in (1, 2, HOT_SLOT, HOT_SLOT + 2))
    spec = VmSpec(image_id="i", disks=disks)
    vm = Vm(id="v", name="v", spec=spec, desired=Desired.RUNNING, created_at=at, updated_at=at)
    assert hardware.free_disk_slot(vm) == HOT_SLOT + 1
    booted = msgspec.structs.replace(spec, disks=(*disks, Disk(volume_id="x", size_bytes=1, slot=HOT_SLOT + 1)))
    assert hardware.free_disk_slot(msgspec.structs.replace(vm, booted=booted)) == HOT_SLOT + 3


async def test_memory_plugged_in_is_told_to_the_next_node_as_such(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        vm_id = await h.running_vm("a")
        await wish(h, vm_id, max_memory_mib=1024)
        assert [reason.subject for reason in (await settled(h, vm_id)).pending] == ["max_memory_mib"]
        machine = h.cluster["a"].host.machines[vm_id]
        grows = msgspec.structs.replace(machine.launch.spec, max_memory_mib=1024)  # as if it had been started so
        machine.launch = msgspec.structs.replace(machine.launch, spec=grows)
        await wish(h, vm_id, memory_mib=192)
        vm = await settled(h, vm_id)
        assert (vm.dimms_mib, vm.booted and vm.booted.memory_mib) == ((128,), 192)
        assert await h.ended(await h.migrate(vm_id, "b")) is MigrationState.COMPLETED
        assert (told(h, vm_id, "b").memory_mib, told(h, vm_id, "b").dimms_mib) == (192, (128,))
