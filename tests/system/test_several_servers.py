"""Three servers, three etcd members, two agents, real QEMU: leaders killed, stopped and frozen in migrations."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator

import pytest

from novacron.client import migrations, servers, vms
from novacron.client.goals import vm_settles
from tests.system.spine import END_S, SLOW, living_copies, needs_guest
from tests.system.three_servers import Trio, end_machines, three_servers

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
pytestmark = [pytest.mark.anyio, pytest.mark.system, pytest.mark.alone, needs_etcd, *needs_guest]

FAILOVER_S = 5.0


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def trio() -> AsyncIterator[Trio]:
    async with three_servers() as made:
        yield made


@pytest.fixture
async def vm(trio: Trio) -> AsyncIterator[vms.Vm]:
    made = await trio.client.do(vms.create(vms.VmCreate(name="spine", image="ticker", memory_mib=32, nics=[])))
    try:
        yield await trio.client.wait_vm(made.id, vm_settles("running"), deadline_s=END_S)
        await trio.client.do(vms.delete(made.id, force=True))
        await trio.client.wait_vm_gone(made.id, deadline_s=END_S)
    finally:
        end_machines(made.id)


async def transferring(trio: Trio, vm: vms.Vm) -> migrations.Migration:
    wish = migrations.MigrationCreate(vm=vm.id, bandwidth_bytes_per_s=SLOW // 2, transport="direct")
    begun = await trio.client.do(migrations.create(wish))
    async with asyncio.timeout(END_S):
        while begun.state != "transferring":
            begun = await trio.client.do(migrations.get(begun.id))
    return begun


async def ends_rightly(trio: Trio, vm: vms.Vm, begun: migrations.Migration) -> None:
    """The move is completed, one copy lives on, and its guest ticks."""
    done = await trio.client.wait_migration(begun.id, deadline_s=2 * END_S)
    assert done.state == "completed", done
    moved = await trio.client.wait_vm(vm.id, "running", deadline_s=END_S)
    assert living_copies(vm.id) == [moved.pid]
    before = await console(trio, vm)
    async with asyncio.timeout(END_S):
        while len(await console(trio, vm)) <= len(before):
            await asyncio.sleep(0.05)


async def console(trio: Trio, vm: vms.Vm) -> str:
    return (await trio.client.do(vms.console_log(vm.id))).text


async def test_a_leader_killed_in_a_migration_is_followed_within_five_seconds(trio: Trio, vm: vms.Vm) -> None:
    leader = await trio.a_leader()
    begun = await transferring(trio, vm)
    killed_s = time.monotonic()
    trio.kill(leader.name)
    other = await trio.a_leader(leader.name)
    took_s = time.monotonic() - killed_s
    print(f"another led after {took_s:.2f} s")  # noqa: T201
    assert took_s < FAILOVER_S
    assert (other.term or 0) == (leader.term or 0) + 1
    await ends_rightly(trio, vm, begun)
    trio.start_server(leader.name)
    await trio.ready(leader.name)


async def test_a_leader_that_is_stopped_hands_over_at_once(trio: Trio, vm: vms.Vm) -> None:
    leader = await trio.a_leader()
    begun = await transferring(trio, vm)
    stopped_s = time.monotonic()
    trio.signal(leader.name, signal.SIGTERM)
    await trio.a_leader(leader.name)
    assert time.monotonic() - stopped_s < 2.0, "nobody waited for a lease to pass"
    await ends_rightly(trio, vm, begun)
    assert trio.processes.pop(leader.name).wait(END_S) == 0
    assert leader.name not in {one.name for one in (await trio.client.do(servers.search())).items}
    trio.start_server(leader.name)
    await trio.ready(leader.name)


async def test_a_leader_that_was_frozen_in_a_migration_finds_itself_followed(trio: Trio, vm: vms.Vm) -> None:
    leader = await trio.a_leader()
    begun = await transferring(trio, vm)
    trio.signal(leader.name, signal.SIGSTOP)
    try:
        await trio.a_leader(leader.name)
    finally:
        trio.signal(leader.name, signal.SIGCONT)
    await ends_rightly(trio, vm, begun)
    async with asyncio.timeout(END_S):
        while "this server leads no more" not in trio.said(leader.name):
            await asyncio.sleep(0.05)
    leading = [one.name for one in (await trio.client.do(servers.search())).items if one.leads]
    assert len(leading) == 1
    assert leading != [leader.name]
