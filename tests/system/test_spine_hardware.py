"""Hardware changed while it runs, the whole way: client, server, agent, QEMU; then a move."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import devices, images, migrations, vms
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab
from novacron.model.image import FileRole
from tests.system.spine import END_S, a_lab, needs_guest, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with a_lab() as made:
        yield made


def an_iso(directory: Path) -> Path:
    path = directory / "tools.iso"
    head = b"\1CD001".ljust(80, b"\0") + struct.pack("<I", 20)
    path.write_bytes((bytes(16 * 2048) + head).ljust(20 * 2048, b"\0"))
    return path


async def adjusted(lab: Lab, vm: vms.Vm) -> vms.Vm:
    """The VM once nothing is being done to it."""
    return await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)


async def test_cards_media_and_sizes_change_as_it_runs_and_it_moves_with_them(lab: Lab, tmp_path: Path) -> None:
    client = lab.client
    await client.do(images.create(images.ImageCreate(name="tools")))
    await client.upload("tools", FileRole.CDROM, an_iso(tmp_path))
    await client.do(images.seal("tools"))
    wish = vms.VmCreate(name="plug", image="ticker", memory_mib=128, nics=[], media=[devices.MediaIn()], max_vcpus=4)
    made = await client.do(vms.create(wish))
    await client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)

    await client.do(vms.load_media(made.id, made.media[0].id, "tools"))
    vm = await adjusted(lab, made)
    assert (vm.pending, vm.problem, len(vm.media[0].digest)) == ([], None, 64)
    for _ in range(2):
        await client.do(vms.attach_nic(made.id, devices.NicIn(forwards=[devices.ForwardIn(guest_port=7)])))
        vm = await adjusted(lab, made)
    assert (vm.pending, vm.problem, len(vm.nics), len(vm.endpoints)) == ([], None, 2, 2)

    moved = await client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    done = await client.wait_migration(moved.id, deadline_s=END_S)
    assert done.state == "completed", done
    await ticks_on(lab, vm.id)
    vm = await adjusted(lab, made)
    assert len(vm.endpoints) == 2

    await client.do(vms.load_media(vm.id, vm.media[0].id, None))
    vm = await adjusted(lab, made)
    assert (vm.pending, vm.media[0].digest) == ([], "")
    await client.do(vms.update(vm.id, vms.VmUpdate(vcpus=2)))
    vm = await adjusted(lab, made)
    assert vm.accelerator != "tcg" or [waiting.code for waiting in vm.pending] == ["tcg.keeps"]
    await ticks_on(lab, vm.id)
    await client.do(vms.restart(vm.id, vms.StopRequest(force=True)))
    vm = await adjusted(lab, made)
    assert (vm.pending, vm.vcpus, len(vm.endpoints)) == ([], 2, 2)
    await client.do(vms.delete(vm.id, force=True))
    await client.wait_vm_gone(vm.id, deadline_s=END_S)
