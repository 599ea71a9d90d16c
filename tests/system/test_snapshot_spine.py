"""Snapshots on real processes: server, agents and QEMU; what comes back is compared byte for byte."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import devices, images, migrations, snapshots, vms
from novacron.client.goals import vm_settles
from novacron.client.snapshots import ExportRequest, RevertRequest, SnapshotCreate
from novacron.errors import Busy, NovaCronError, Unsupported
from novacron.lab.lab import Lab
from tests.system.spine import END_S, a_lab, last_tick, living_copies, needs_guest, restart, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]
MIB = 1 << 20


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with a_lab() as made:
        yield made


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[vms.Vm]:
    """A running VM of two disks; deleted afterwards with its snapshots, whatever became of it."""
    disks = [devices.DiskIn(size_bytes=64 * MIB), devices.DiskIn(size_bytes=32 * MIB)]
    wish = vms.VmCreate(name="keeper", image="ticker", memory_mib=32, nics=[], disks=disks)
    made = await lab.client.do(vms.create(wish))
    yield await lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
    await lab.client.do(vms.delete(made.id, force=True))
    await lab.client.wait_vm_gone(made.id, deadline_s=END_S)
    assert [one async for one in lab.client.each(snapshots.search(vm=made.id))] == []


def volumes(lab: Lab, vm: vms.Vm) -> list[Path]:
    found = [next(Path(lab.path).rglob(f"{disk.volume_id}.qcow2")) for disk in vm.disks]
    assert len(found) == 2
    return found


def io(path: Path, verb: str, pattern: int) -> bool:
    said = subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"{verb} -P {pattern} 1M 8M", str(path)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return "Pattern verification failed" not in said


async def take(lab: Lab, vm: vms.Vm, name: str, **how: bool) -> snapshots.Snapshot:
    made = await lab.client.do(snapshots.create(vm.id, SnapshotCreate(name=name, **how)))
    return await lab.client.wait_snapshot(made.id, deadline_s=END_S)


async def revert(lab: Lab, snapshot: snapshots.Snapshot, *, start: bool = False) -> None:
    await lab.client.do(snapshots.revert(snapshot.id, RevertRequest(start=start)))
    await lab.client.wait_snapshot(snapshot.id, deadline_s=END_S)


async def delete(lab: Lab, snapshot: snapshots.Snapshot) -> None:
    await lab.client.do(snapshots.delete(snapshot.id))
    await lab.client.wait_snapshot_gone(snapshot.id, deadline_s=END_S)


async def stop(lab: Lab, vm: vms.Vm) -> None:
    await lab.client.do(vms.stop(vm.id, vms.StopRequest(force=True)))
    await lab.client.wait_vm(vm.id, vm_settles("stopped"), deadline_s=END_S)


async def test_a_tree_of_a_vm_that_runs_and_rests_comes_back_byte_for_byte(lab: Lab, vm: vms.Vm) -> None:
    paths = volumes(lab, vm)
    await stop(lab, vm)
    taken = []
    for number in (1, 2, 3):
        for path in paths:
            io(path, "write", number)
        taken.append(await take(lab, vm, f"at-{number}"))
    first, second, third = taken
    assert [one.consistency for one in taken] == ["stopped"] * 3
    assert [one.parent_id for one in taken] == [None, first.id, second.id]
    await revert(lab, first)
    assert all(io(path, "read", 1) for path in paths)
    for path in paths:
        io(path, "write", 9)
    await lab.client.do(vms.start(vm.id))
    await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    branch = await take(lab, vm, "branch")
    assert (branch.consistency, branch.parent_id) == ("crash", first.id)
    await delete(lab, second)  # while it runs
    await ticks_on(lab, vm.id)
    assert (await lab.client.do(snapshots.get(third.id))).parent_id == first.id
    for snapshot, pattern in ((third, 3), (branch, 9), (first, 1)):
        await revert(lab, snapshot)
        assert all(io(path, "read", pattern) for path in paths)
        assert (await lab.client.do(vms.get(vm.id))).snapshot_id == snapshot.id
    await revert(lab, third, start=True)
    await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    await ticks_on(lab, vm.id)


async def test_memory_goes_on_where_it_was_also_on_another_node(lab: Lab, vm: vms.Vm) -> None:
    await ticks_on(lab, vm.id)
    snapshot = await take(lab, vm, "warm", memory=True)
    assert snapshot.size_bytes > 0
    assert snapshot.stood_still_ms > 0
    kept, _ = await last_tick(lab, vm.id)
    async with asyncio.timeout(END_S):
        while (await last_tick(lab, vm.id))[0] < kept + 200:
            await asyncio.sleep(0.05)
    begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    with pytest.raises(Busy):
        await lab.client.do(snapshots.create(vm.id, SnapshotCreate()))
    assert (await lab.client.wait_migration(begun.id, deadline_s=END_S)).state == "completed"
    gone_by, _ = await last_tick(lab, vm.id)
    await revert(lab, snapshot)
    await ticks_on(lab, vm.id)  # and no page is bad
    back, _ = await last_tick(lab, vm.id)
    assert back < gone_by + 1000
    text = (await lab.client.do(vms.console_log(vm.id))).text
    seqs = [int(line.split()[1], 16) for line in text.splitlines() if line.startswith("T ") and len(line) == 19]
    assert any(after < before for before, after in itertools.pairwise(seqs)), "the counter went back"
    again = await lab.client.do(vms.get(vm.id))
    assert living_copies(vm.id) == [again.pid]
    assert again.node_id == begun.target_node_id


@pytest.mark.parametrize("who", ["server", "agent"])
@pytest.mark.parametrize("memory", [False, True])
async def test_whoever_is_killed_the_snapshot_is_whole(lab: Lab, vm: vms.Vm, who: str, memory: bool) -> None:
    agent = next(name for name in lab.children if name != "server" and vm.node is not None and name.endswith(vm.node))
    made = await lab.client.do(snapshots.create(vm.id, SnapshotCreate(name="struck", memory=memory)))
    await restart(lab, "server" if who == "server" else agent)
    seen = await lab.client.wait_snapshot(made.id, deadline_s=END_S)
    assert seen.state == "ready"
    await ticks_on(lab, vm.id)
    for path in volumes(lab, vm):
        told = subprocess.run(["qemu-img", "info", "-U", "--output=json", path], check=True, capture_output=True)
        assert [one["name"] for one in json.loads(told.stdout)["snapshots"]] == [made.id]
    await revert(lab, seen)
    await delete(lab, seen)


async def test_a_volume_as_it_was_becomes_an_image(lab: Lab, vm: vms.Vm) -> None:
    path = volumes(lab, vm)[0]
    await stop(lab, vm)
    io(path, "write", 5)
    snapshot = await take(lab, vm, "golden")
    io(path, "write", 6)
    await lab.client.do(vms.start(vm.id))
    await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    with pytest.raises(NovaCronError, match="volume_id"):
        await lab.client.do(snapshots.export(snapshot.id, ExportRequest(image="golden")))
    wish = ExportRequest(image="golden", volume_id=vm.disks[0].volume_id)
    image = await lab.client.do(snapshots.export(snapshot.id, wish))
    assert image.state == "pending"
    await lab.client.wait_snapshot(snapshot.id, deadline_s=END_S)
    image = await lab.client.do(images.get(image.id))
    assert (image.state, image.files[0].virtual_size_bytes) == ("ready", 64 * MIB)
    file = next(Path(lab.path).rglob(image.files[0].digest))
    assert io(file, "read", 5)
    copy = await lab.client.do(vms.create(vms.VmCreate(name="copy", image="golden", nics=[], desired="stopped")))
    await lab.client.do(vms.delete(copy.id, force=True))
    await lab.client.wait_vm_gone(copy.id, deadline_s=END_S)


async def test_what_a_vm_cannot_do_is_said_with_a_remedy(lab: Lab, vm: vms.Vm) -> None:
    with pytest.raises(Unsupported, match="guest agent") as refused:
        await lab.client.do(snapshots.create(vm.id, SnapshotCreate(quiesce=True)))
    assert refused.value.reasons[0].remedy
