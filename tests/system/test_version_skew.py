"""Two versions at once, N and N-1, of servers and agents: processes of an earlier revision beside those of this one."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from novacron.client import migrations, servers, vms
from novacron.client.goals import vm_settles
from novacron.client.ha import Ha
from tests.system.skew_site import EARLIER, TICK_S, Site, a_site, has, why_not_there
from tests.system.spine import living_copies, needs_guest
from tests.system.three_servers import end_machines

BEFORE_SEVERAL, BEFORE_OWNERSHIP = EARLIER["one_server"], EARLIER["several_servers"]
RESTARTED = Ha(policy="restart", min_fence_class="timer")
KNOWS_HA = "src/novacron/client/ha.py"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.system,
    *needs_guest,
    *(pytest.mark.skipif(bool(why), reason=why) for why in map(why_not_there, (BEFORE_SEVERAL, BEFORE_OWNERSHIP))),
]


@asynccontextmanager
async def a_guest(site: Site) -> AsyncIterator[vms.Vm]:
    """A VM that runs; deleted afterwards, by whichever version is there then."""
    made = await site.client.do(vms.create(vms.VmCreate(name="ticks", image="ticker", memory_mib=32, nics=[])))
    try:
        yield await site.client.wait_vm(made.id, vm_settles("running"), deadline_s=TICK_S)
        await site.client.do(vms.delete(made.id, force=True))
        await site.client.wait_vm_gone(made.id, deadline_s=TICK_S)
    finally:
        end_machines(made.id)


async def moves(site: Site, vm_id: str) -> None:
    """The VM is moved to the other node, alive: the guest counts on."""
    before = await site.ticks_beyond(vm_id, 0)
    source = (await site.client.do(vms.get(vm_id))).node
    begun = await site.client.do(migrations.create(migrations.MigrationCreate(vm=vm_id)))
    done = await site.client.wait_migration(begun.id, deadline_s=TICK_S)
    assert done.state == "completed", done
    moved = await site.client.wait_vm(vm_id, "running", deadline_s=TICK_S)
    assert moved.node != source
    assert living_copies(vm_id) == [moved.pid]
    await site.ticks_beyond(vm_id, before)


@pytest.mark.parametrize("old_server", [True, False], ids=["old server", "new server"])
async def test_agents_of_either_version_under_a_server_of_one_and_moves_between_them(*, old_server: bool) -> None:
    async with a_site(BEFORE_SEVERAL, ["s1"], old=old_server) as site:
        await site.run("node-old", old=True)
        await site.run("node-new", old=False)
        await site.all_up("node-old", "node-new")
        async with a_guest(site) as vm:
            await moves(site, vm.id)
            await moves(site, vm.id)
            tick, pids = await site.ticks_beyond(vm.id, 0), living_copies(vm.id)
            if not old_server:  # the way back begins with agents: one that takes part heeds nobody who names no epoch
                await site.run("node-new", old=True)
            await site.run("s1", old=not old_server)  # upgraded, or rolled back, on the same store
            await site.all_up("node-old", "node-new")
            await site.ticks_beyond(vm.id, tick)
            assert living_copies(vm.id) == pids
            await moves(site, vm.id)
        assert site.complaints() == []


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
async def test_a_rolling_upgrade_and_back_under_a_guest_that_never_stops() -> None:
    async with a_site(BEFORE_OWNERSHIP, ["s1", "s2"], old=True, on_etcd=True) as site:
        for name in ("node-1", "node-2"):
            await site.run(name, old=True)
        await site.all_up("node-1", "node-2")
        async with a_guest(site) as vm:
            following, leading = await by_lead(site)
            await rolls(site, vm.id, (following, leading, "node-1"), old=False)
            await moves(site, vm.id)  # between nodes of two versions
            await rolls(site, vm.id, ("node-2",), old=False)
            wish = vms.VmCreate(name="new", image="ticker", memory_mib=32, nics=[], desired="stopped", ha=RESTARTED)
            protected = await site.client.do(vms.create(wish))
            await moves(site, vm.id)
            await rolls(site, vm.id, ("node-2", "node-1", leading, following), old=True)
            read = await site.client.do(vms.get(protected.id))  # by an old server
            ha = RESTARTED if has(BEFORE_OWNERSHIP, KNOWS_HA) else Ha()
            assert (read.name, read.ha) == ("new", ha), "what it knows of it"
            await moves(site, vm.id)
        assert site.complaints() == []


async def by_lead(site: Site) -> list[str]:
    """The servers, the one that leads last: so that leading changes once."""
    found = (await site.client.do(servers.search())).items
    return [one.name for one in sorted(found, key=lambda one: one.leads)]


async def rolls(site: Site, vm_id: str, names: tuple[str, ...], *, old: bool) -> None:
    """One after the other is put to that version; all nodes are up after each, and the guest's process is untouched."""
    for name in names:
        tick, pids = await site.ticks_beyond(vm_id, 0), living_copies(vm_id)
        await site.run(name, old=old)
        await site.all_up("node-1", "node-2")
        await site.ticks_beyond(vm_id, tick)
        assert living_copies(vm_id) == pids
