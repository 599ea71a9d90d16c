"""Machines that boot from the network, from a DHCP and TFTP server that is no part of NovaCron."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from novacron.agent.drivers.qemu.firmware import find_uefi, has_network_rom
from novacron.client import devices, images, migrations, vms
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab, open_lab
from novacron.lab.network import BRIDGE, FABRIC_BRIDGE, fabric_address
from novacron.model.image import FileRole
from tests.system import boot_media
from tests.system.spine import needs_guest

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.root,
    *needs_guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed"),
]
needs_rom = pytest.mark.skipif(
    not has_network_rom(Path(shutil.which("qemu-system-x86_64") or "")), reason="iPXE is not installed (ipxe-qemu)"
)
needs_ovmf = pytest.mark.skipif(find_uefi(secure=False) is None, reason="OVMF is not installed")
BOOT_S = 120.0
END_S = 60.0
UEFI_CLIENT = 7  # as option 93 of DHCP says it


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """Two nodes on a bridge where somebody offers programs to boot, and an image that boots, too."""
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", bridged=True) as made, contextlib.AsyncExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, boot_server(made, path / "tftp"))
            disk = boot_media.disk(path / "disk.raw", boot_media.bios_program("disk", path))
            await made.client.do(images.create(images.ImageCreate(name="disk")))
            await made.client.upload("disk", FileRole.DISK, disk)
            await made.client.do(images.seal("disk"))
            yield made


@contextlib.contextmanager
def boot_server(lab: Lab, folder: Path) -> Iterator[None]:
    """A dnsmasq beside the nodes, as an operator has one in a rack."""
    folder.mkdir(mode=0o755)
    (folder / "bios").write_bytes(boot_media.bios_program("network", folder))
    (folder / "uefi").write_bytes(boot_media.uefi_program("uefi-network", folder))
    command = [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--log-facility=-"),
        *(f"--pid-file={folder}/pid", f"--dhcp-leasefile={folder}/leases"),
        *(f"--interface={FABRIC_BRIDGE}", "--bind-interfaces", "--dhcp-range=10.77.0.200,10.77.0.220"),
        *("--enable-tftp", f"--tftp-root={folder}", f"--dhcp-match=set:uefi,option:client-arch,{UEFI_CLIENT}"),
        *(f"--dhcp-boot=tag:!uefi,bios,,{fabric_address()}", f"--dhcp-boot=tag:uefi,uefi,,{fabric_address()}"),
    ]
    assert lab.fabric is not None
    with (folder / "log").open("wb") as log:
        server = lab.fabric.fabric.run(lambda: subprocess.Popen(command, stdout=log, stderr=log))
    try:
        yield
        assert server.poll() is None, (folder / "log").read_text()
    finally:
        server.kill()
        server.wait()


def card(boot_order: int = 1) -> devices.NicIn:
    return devices.NicIn(network="bridge", bridge=BRIDGE, boot_order=boot_order)


async def machine(lab: Lab, **more: object) -> vms.Vm:
    asked = {"name": "pxe", "image": "disk", "memory_mib": 256, "node": "node-1", "nics": [card()], **more}
    made = await lab.client.do(vms.create(vms.VmCreate(**asked)))  # type: ignore[arg-type]
    return await lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)


async def says(lab: Lab, vm: vms.Vm, word: str) -> None:
    """Return when it says that and nothing else: its last line is that, and then another."""
    before: list[str] = []
    async with asyncio.timeout(BOOT_S):
        while True:
            lines = (await lab.client.do(vms.console_log(vm.id))).text.split("\n")[:-1]
            if before and lines != before:
                return
            before = lines if lines and lines[-1].strip() == word else []
            await asyncio.sleep(0.1)


async def settled(lab: Lab, vm: vms.Vm) -> vms.Vm:
    return await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)


async def moved(lab: Lab, vm: vms.Vm, node: str) -> None:
    asked = migrations.MigrationCreate(vm=vm.id, target_node=node)
    done = await lab.client.wait_migration((await lab.client.do(migrations.create(asked))).id, deadline_s=END_S)
    assert done.state == "completed", done.problem


async def restarted(lab: Lab, vm: vms.Vm) -> vms.Vm:
    await lab.client.do(vms.restart(vm.id, vms.StopRequest(force=True)))
    return await settled(lab, vm)


@needs_rom
async def test_it_boots_from_the_network_and_a_change_of_that_waits_for_the_next_start(lab: Lab) -> None:
    client = lab.client
    vm = await machine(lab)
    await says(lab, vm, "network")
    await moved(lab, vm, "node-2")  # with the card's ROM
    await says(lab, vm, "network")

    await client.do(vms.update_nic(vm.id, vm.nics[0].id, devices.NicUpdate(boot_order=0)))
    vm = await settled(lab, vm)
    assert [(one.code, one.subject) for one in vm.pending] == [("boot_order.waits", vm.nics[0].id)]
    await moved(lab, vm, "node-1")  # as it runs, not as it is wished to
    await says(lab, vm, "network")
    assert [one.code for one in (await settled(lab, vm)).pending] == ["boot_order.waits"]
    vm = await restarted(lab, vm)
    assert vm.pending == []
    await says(lab, vm, "disk")

    await client.do(vms.attach_nic(vm.id, card()))
    vm = await settled(lab, vm)
    assert [(one.code, one.subject) for one in vm.pending] == [("boot_order.waits", vm.nics[1].id)]
    await moved(lab, vm, "node-2")  # without a ROM, as it was plugged in
    await says(lab, vm, "disk")
    vm = await restarted(lab, vm)
    assert (vm.pending, [nic.boot_order for nic in vm.nics]) == ([], [0, 1])
    await says(lab, vm, "network")


@needs_ovmf
async def test_uefi_boots_from_the_network_without_a_rom(lab: Lab) -> None:
    vm = await machine(lab, firmware="uefi")
    await says(lab, vm, "uefi-network")
    await moved(lab, vm, "node-2")
    await says(lab, vm, "uefi-network")
