"""The spine on real processes: server, agents and QEMU, and what happens when each is killed in the middle of work."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novacron.client import images, migrations, nodes, vms
from novacron.lab.lab import Lab, open_lab
from novacron.lab.processes import until_ready
from novacron.lab.rom import rom
from novacron.model.image import FileRole

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"),
    pytest.mark.skipif(shutil.which("as") is None, reason="binutils are not installed: no guest can be built"),
]

SLOW = 2 << 20  # bytes/s: a transfer that lasts long enough to be struck
END_S = 60.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", bridged=False) as made:
            guest = rom(path / "cache", pages_per_tick=2, wss_pages=2048)
            await made.client.do(images.create(images.ImageCreate(name="ticker")))
            await made.client.upload("ticker", FileRole.FIRMWARE, guest)
            await made.client.do(images.seal("ticker"))
            yield made


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[vms.Vm]:
    """A running VM; deleted afterwards, whatever became of it."""
    wish = vms.VmCreate(name="spine", image="ticker", memory_mib=32, nics=[])
    made = await lab.client.do(vms.create(wish))
    yield await lab.client.wait_vm(made.id, "running", deadline_s=END_S)
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


async def begin_slowly(lab: Lab, vm: vms.Vm) -> migrations.Migration:
    """A migration that is transferring, at a rate that leaves time to strike."""
    wish = migrations.MigrationCreate(vm=vm.id, bandwidth_bytes_per_s=SLOW)
    begun = await lab.client.do(migrations.create(wish))
    async with asyncio.timeout(END_S):
        while begun.state != "transferring":
            begun = await lab.client.do(migrations.get(begun.id))
    return begun


def running_copies(vm_id: str) -> list[int]:
    """Pids of the QEMUs of a VM on this machine, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and vm_id.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


async def restart_server(lab: Lab) -> None:
    server = lab.children["server"]
    server.kill()
    server.start_again()
    await until_ready(server, int(lab.server.rpartition(":")[2]))


async def test_a_vm_lives_through_everything_one_asks_of_it(lab: Lab, vm: vms.Vm) -> None:
    client = lab.client
    assert vm.accelerator == "tcg" or vm.accelerator == "kvm"
    await client.do(vms.pause(vm.id))
    await client.wait_vm(vm.id, "paused", deadline_s=END_S)
    frozen = await last_tick(lab, vm.id)
    await client.do(vms.resume(vm.id))
    await client.wait_vm(vm.id, "running", deadline_s=END_S)
    await ticks_on(lab, vm.id)
    assert (await last_tick(lab, vm.id))[0] > frozen[0]
    pid = (await client.do(vms.get(vm.id))).pid
    await client.do(vms.stop(vm.id, vms.StopRequest(force=True)))
    await client.wait_vm(vm.id, "stopped", deadline_s=END_S)
    assert running_copies(vm.id) == []
    await client.do(vms.start(vm.id))
    started = await client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert started.pid != pid


async def test_a_live_migration_moves_the_guest_and_measures_it(lab: Lab, vm: vms.Vm) -> None:
    await ticks_on(lab, vm.id)
    begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    moved = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert moved.node_id == begun.target_node_id != vm.node_id
    assert running_copies(vm.id) == [moved.pid]
    await ticks_on(lab, vm.id)
    figures = done.figures
    assert figures.bytes_transferred
    assert figures.total_ms
    assert figures.downtime_qemu_ms is not None
    assert figures.downtime_stopped_ms is not None
    assert figures.downtime_stopped_ms > 0


async def test_a_resized_machine_moves_as_it_runs(lab: Lab, vm: vms.Vm) -> None:
    await lab.client.do(vms.update(vm.id, vms.VmUpdate(memory_mib=48)))
    begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    await ticks_on(lab, vm.id)


async def test_a_server_killed_in_a_migration_is_followed_by_another(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    await restart_server(lab)
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    moved = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert running_copies(vm.id) == [moved.pid]
    await ticks_on(lab, vm.id)


async def test_a_killed_server_stops_no_vm(lab: Lab, vm: vms.Vm) -> None:
    await ticks_on(lab, vm.id)
    await restart_server(lab)
    again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert again.pid == vm.pid
    await ticks_on(lab, vm.id)


async def test_both_agents_killed_stop_no_vm(lab: Lab, vm: vms.Vm) -> None:
    for name in lab.nodes:
        lab.children[name].kill()
        lab.children[name].start_again()
    async with asyncio.timeout(END_S):
        while True:
            page = await lab.client.do(nodes.search())
            if all(node.state == "up" and (node.heard_ago_s or 99) < 2 for node in page.items):
                break
            await asyncio.sleep(0.05)
    again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert again.pid == vm.pid
    await ticks_on(lab, vm.id)


async def test_a_migration_can_be_cancelled_while_it_streams(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    await lab.client.do(migrations.cancel(begun.id))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "cancelled"
    stayed = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert (stayed.node_id, stayed.pid) == (vm.node_id, vm.pid)
    assert running_copies(vm.id) == [vm.pid]
    await ticks_on(lab, vm.id)


async def test_the_target_killed_while_it_streams_costs_only_the_attempt(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    (target,) = [pid for pid in running_copies(vm.id) if pid != vm.pid]
    os.kill(target, signal.SIGKILL)
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "rolled_back"
    assert done.problem is not None
    assert done.problem.remedy
    stayed = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert stayed.pid == vm.pid
    await ticks_on(lab, vm.id)


async def test_a_qemu_that_is_killed_is_an_error_with_a_remedy_and_starts_again(lab: Lab, vm: vms.Vm) -> None:
    assert vm.pid is not None
    os.kill(vm.pid, signal.SIGKILL)
    ill = await lab.client.wait_vm(vm.id, "error", deadline_s=END_S)
    assert ill.problem is not None
    assert ill.problem.code == "machine.crashed"
    assert ill.problem.remedy == "novacron vm start spine"
    await lab.client.do(vms.start(vm.id))
    well = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert well.problem is None
    await ticks_on(lab, vm.id)
