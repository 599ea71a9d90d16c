"""A node of real QEMU machines is emptied while they tick, with the server killed in the middle, and filled again."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from novacron.client import bulk_migrations, nodes, vms
from novacron.client.bulk_migrations import BulkMigrationCreate
from novacron.client.goals import vm_settles
from novacron.lab.lab import Lab, open_lab
from novacron.lab.rom import rom
from tests.system.rom_image import an_image
from tests.system.spine import END_S, last_tick, living_copies, needs_guest, restart, ticks_on

pytestmark = [pytest.mark.anyio, pytest.mark.system, *needs_guest]
COUNT = 4
BUDGET = 8 << 20  # bytes/s of all together: a drain that lasts long enough to be struck
ENDS_S = 240.0


@asynccontextmanager
async def three_nodes() -> AsyncIterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="nc-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o711)
        async with open_lab(path / "lab", nodes=3, bridged=False) as made:
            guest = rom(path / "cache", pages_per_tick=2, wss_pages=2048)
            await an_image(made.client, "ticker", guest)
            yield made


async def tickers(lab: Lab) -> list[str]:
    """VMs on node-1 that tick; the last of them is at rest."""
    made = []
    for number in range(COUNT):
        wish = vms.VmCreate(name=f"ticker-{number}", image="ticker", memory_mib=32, nics=[], node="node-1")
        made.append((await lab.client.do(vms.create(wish))).id)
    for vm_id in made:
        await lab.client.wait_vm(vm_id, vm_settles("running"), deadline_s=END_S)
        await ticks_on(lab, vm_id)
    await lab.client.do(vms.stop(made[-1], vms.StopRequest(force=True)))
    await lab.client.wait_vm(made[-1], vm_settles("stopped"), deadline_s=END_S)
    return made


async def where(lab: Lab, vm_ids: list[str]) -> Counter[str | None]:
    return Counter([(await lab.client.do(vms.get(vm_id))).node for vm_id in vm_ids])


async def one_has_moved(lab: Lab, bulk_id: str) -> None:
    async with asyncio.timeout(ENDS_S):
        while not (await lab.client.do(bulk_migrations.get(bulk_id))).counts.get("done"):
            await asyncio.sleep(0.05)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_node_is_emptied_while_its_guests_tick_and_filled_again() -> None:
    async with three_nodes() as lab:
        client = lab.client
        guests = await tickers(lab)
        running = guests[:-1]
        wish = BulkMigrationCreate(drain="node-1", bandwidth_budget_bytes_per_s=BUDGET)
        plan = await client.do(bulk_migrations.plan(wish))
        assert plan.stays == 0
        assert plan.forecast.share_bytes_per_s == BUDGET // 2
        begun = await client.do(bulk_migrations.create(plan.start))
        planned = {entry.vm_id: entry.target_node for entry in plan.entries}
        assert begun.entries is not None
        assert {entry.vm_id: entry.target_node for entry in begun.entries} == planned
        await one_has_moved(lab, begun.id)
        await restart(lab, "server")
        done = await client.wait_bulk_migration(begun.id, deadline_s=ENDS_S)
        assert (done.state, done.counts) == ("completed", {"done": COUNT})
        assert await where(lab, guests) == Counter(planned.values())
        assert (await client.do(nodes.get("node-1"))).cordoned
        for vm_id in running:
            assert len(living_copies(vm_id)) == 1
            await ticks_on(lab, vm_id)
        before = {vm_id: (await last_tick(lab, vm_id))[0] for vm_id in running}
        back = await client.do(bulk_migrations.create(BulkMigrationCreate(bring_back="node-1")))
        home = await client.wait_bulk_migration(back.id, deadline_s=ENDS_S)
        assert (home.state, home.counts) == ("completed", {"done": COUNT})
        assert await where(lab, guests) == {"node-1": COUNT}
        for vm_id in running:
            await ticks_on(lab, vm_id)
            assert (await last_tick(lab, vm_id))[0] > before[vm_id]
        assert (await client.do(vms.get(guests[-1]))).state == "stopped"
        loss = await client.do(bulk_migrations.node_loss("node-1"))
        assert (len(loss.restarts), loss.no_room, loss.at_rest) == (COUNT - 1, 0, 1)
