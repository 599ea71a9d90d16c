"""The spine on real processes: server, agents and QEMU, and what happens when each is killed in the middle of work."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, nodes, vms
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab
from tests.system.spine import (
    END_S,
    a_lab,
    a_vm,
    begin_slowly,
    its_node_answers,
    last_tick,
    living_copies,
    needs_guest,
    restart,
    ticks_on,
)

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def lab() -> AsyncIterator[Lab]:
    async with a_lab() as made:
        yield made


@pytest.fixture
async def vm(lab: Lab) -> AsyncIterator[vms.Vm]:
    async with a_vm(lab) as made:
        yield made


async def test_a_vm_lives_through_everything_one_asks_of_it(lab: Lab, vm: vms.Vm) -> None:
    client = lab.client
    assert vm.accelerator in ("tcg", "kvm")
    await client.do(vms.pause(vm.id))
    await client.wait_vm(vm.id, vm_settles("paused"), deadline_s=END_S)
    frozen = await last_tick(lab, vm.id)
    await client.do(vms.resume(vm.id))
    await client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    await ticks_on(lab, vm.id)
    assert (await last_tick(lab, vm.id))[0] > frozen[0]
    pid = (await client.do(vms.get(vm.id))).pid
    await client.do(vms.stop(vm.id, vms.StopRequest(force=True)))
    await client.wait_vm(vm.id, vm_settles("stopped"), deadline_s=END_S)
    assert living_copies(vm.id) == []
    await client.do(vms.start(vm.id))
    started = await client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    assert started.pid != pid


async def test_a_live_migration_moves_the_guest_and_measures_it(lab: Lab, vm: vms.Vm) -> None:
    await ticks_on(lab, vm.id)
    begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    moved = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert moved.node_id == begun.target_node_id != vm.node_id
    assert living_copies(vm.id) == [moved.pid]
    await ticks_on(lab, vm.id)
    figures = done.figures
    assert figures.bytes_transferred
    assert figures.total_ms
    assert figures.downtime_qemu_ms is not None
    assert figures.downtime_stopped_ms is not None
    assert figures.downtime_stopped_ms > 0


async def test_a_resized_machine_moves_as_it_runs(lab: Lab, vm: vms.Vm) -> None:
    await lab.client.do(vms.update(vm.id, vms.VmUpdate(memory_mib=48)))
    waits = await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    assert waits.pending  # under TCG memory does not grow as it runs
    begun = await lab.client.do(migrations.create(migrations.MigrationCreate(vm=vm.id)))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    await ticks_on(lab, vm.id)


async def test_a_server_killed_in_a_migration_is_followed_by_another(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    await restart(lab, "server")
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "completed"
    moved = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert living_copies(vm.id) == [moved.pid]
    await ticks_on(lab, vm.id)


async def test_a_killed_server_stops_no_vm(lab: Lab, vm: vms.Vm) -> None:
    await ticks_on(lab, vm.id)
    await restart(lab, "server")
    again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert again.pid == vm.pid
    await its_node_answers(lab, vm.id)
    await ticks_on(lab, vm.id)


async def test_both_agents_killed_stop_no_vm(lab: Lab, vm: vms.Vm) -> None:
    for name in lab.nodes:
        await restart(lab, name)
    async with asyncio.timeout(END_S):
        while True:
            page = await lab.client.do(nodes.search())
            if all(node.state == "up" and (node.heard_ago_s or 99) < 2 for node in page.items):
                break
            await asyncio.sleep(0.05)
    again = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert again.pid == vm.pid
    await its_node_answers(lab, vm.id)  # what was heard may have been the agent before
    await ticks_on(lab, vm.id)


async def test_a_migration_can_be_cancelled_while_it_streams(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    await lab.client.do(migrations.cancel(begun.id))
    done = await lab.client.wait_migration(begun.id, deadline_s=END_S)
    assert done.state == "cancelled"
    stayed = await lab.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert (stayed.node_id, stayed.pid) == (vm.node_id, vm.pid)
    assert living_copies(vm.id) == [vm.pid]
    await ticks_on(lab, vm.id)


async def test_the_target_killed_while_it_streams_costs_only_the_attempt(lab: Lab, vm: vms.Vm) -> None:
    begun = await begin_slowly(lab, vm)
    (target,) = [pid for pid in living_copies(vm.id) if pid != vm.pid]
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
    well = await lab.client.wait_vm(vm.id, vm_settles("running"), deadline_s=END_S)
    assert well.problem is None
    await ticks_on(lab, vm.id)
