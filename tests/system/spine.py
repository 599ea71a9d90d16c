"""A lab with a ticking guest, and what the tests of the spine ask of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from novacron.client import migrations, vms
from novacron.client.goals import vm_settles
from novacron.errors import Unavailable
from novacron.lab.lab import Lab, open_lab
from novacron.lab.processes import until_ready
from novacron.lab.rom import rom
from tests.system.rom_image import an_image

SLOW = 2 << 20  # bytes/s: a transfer that lasts long enough to be struck
END_S = 60.0

needs_guest = [
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed: no guest can be built"),
]


@asynccontextmanager
async def a_lab(
    *, bridged: bool = False, pages: int = 2, wss_pages: int = 2048, over_fabric: bool = False, heartbeat_s: float = 2.0
) -> AsyncIterator[Lab]:
    """Two nodes, and the image `ticker`; gone afterwards with everything in it.

    bridged: each has a link of its own. pages: so many its guest writes in a tick, wss_pages: to so many in all. The
    guest knows the power button. over_fabric, heartbeat_s: see open_lab.
    """
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        made_as = {"bridged": bridged, "over_fabric": over_fabric}
        async with open_lab(path / "lab", **made_as, heartbeat_s=heartbeat_s) as made:
            guest = rom(path / "cache", pages_per_tick=pages, wss_pages=wss_pages, button=True)
            await an_image(made.client, "ticker", guest)
            yield made


@asynccontextmanager
async def a_vm(lab: Lab, memory_mib: int = 32, image: str = "ticker", **more: Any) -> AsyncIterator[vms.Vm]:
    """A running VM, with more of what VmCreate has; deleted afterwards, whatever became of it."""
    wish = vms.VmCreate(name="spine", image=image, memory_mib=memory_mib, nics=[], **more)
    made = await lab.client.do(vms.create(wish))
    yield await lab.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
    await lab.client.do(vms.delete(made.id, force=True))
    await lab.client.wait_vm_gone(made.id, deadline_s=END_S)


async def last_tick(lab: Lab, vm_id: str) -> tuple[int, int]:
    """The newest (sequence number, bad pages) on the guest's console."""
    text = (await lab.client.do(vms.console_log(vm_id))).text
    ticks = [line.split() for line in text.splitlines() if line.startswith("T ")]
    whole = [tick for tick in ticks if len(tick) == 3 and len(tick[2]) == 8]
    return (int(whole[-1][1], 16), int(whole[-1][2], 16)) if whole else (0, 0)


async def ticks_on(lab: Lab, vm_id: str) -> None:
    """Return when the guest has ticked since; it has lost no page."""
    before, _ = await last_tick(lab, vm_id)
    async with asyncio.timeout(END_S):
        while (now := await last_tick(lab, vm_id))[0] <= before:
            await asyncio.sleep(0.05)
    assert now[1] == 0


async def its_node_answers(lab: Lab, vm_id: str) -> None:
    """Return when the server has a line to the node of the VM."""
    async with asyncio.timeout(END_S):
        while True:
            try:
                await lab.client.do(vms.console_log(vm_id))
            except Unavailable:
                await asyncio.sleep(0.05)
            else:
                return


async def begin_slowly(lab: Lab, vm: vms.Vm) -> migrations.Migration:
    """A migration that is transferring, at a rate that leaves time to strike."""
    wish = migrations.MigrationCreate(vm=vm.id, bandwidth_bytes_per_s=SLOW, transport="direct")
    begun = await lab.client.do(migrations.create(wish))
    async with asyncio.timeout(END_S):
        while begun.state != "transferring":
            begun = await lab.client.do(migrations.get(begun.id))
    return begun


def living_copies(vm_id: str) -> list[int]:
    """Pids of the QEMUs of a VM on this machine, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and vm_id.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def restart(lab: Lab, name: str) -> None:
    """kill -9, and again from the start; a server is waited for."""
    child = lab.children[name]
    child.kill()
    child.start_again()
    if name == "server":
        await until_ready(child)
