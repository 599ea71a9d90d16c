"""Who takes part in a story of a cluster's faults, and what it sees to while something is broken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from novacron.client import migrations, vms
from novacron.client.asynchronous import AsyncClient
from novacron.errors import NovaCronError
from tests.system.cluster_site import ClusterSite, a_vm, end_vm, freeze, thaw, until
from tests.system.observer import Observer, kept, untouched

SLOW_BYTES_PER_S = 1 << 20
COUNT = "count"


class Cast(NamedTuple):
    """The VM whose node fails, and one on another node that nobody touches. The third node is empty."""

    site: ClusterSite
    struck: vms.Vm
    beside: vms.Vm

    @property
    def node(self) -> str:
        """Where the VM is that is struck."""
        assert self.struck.node is not None
        return self.struck.node


async def cleared(site: ClusterSite) -> None:
    """All is whole whatever the story before has left, and nothing of it is there."""
    await site.heal()
    await site.forgive_fences()
    for vm in [one async for one in site.client.each(vms.search())]:
        await end_vm(site, vm.id)


@contextlib.asynccontextmanager
async def a_cast(site: ClusterSite) -> AsyncIterator[Cast]:
    """Both run, and all is whole whatever the story before has left; they are gone afterwards."""
    await cleared(site)
    struck = await a_vm(site, "struck", node="node-1")
    beside = await a_vm(site, "beside", node="node-2")
    yield Cast(site, struck, beside)
    for vm in (struck, beside):
        await end_vm(site, vm.id)


def nobody_noticed(cast: Cast, seen: Observer) -> None:
    """Both machines ran on, and no node was fenced."""
    for vm in (cast.struck, cast.beside):
        assert not untouched(seen.copies[vm.id], seen.runs[vm.id])
    assert not [one for one in seen.readings if one.state in ("fencing", "fenced")]


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """They stand still while the block runs."""
    for pid in pids:
        freeze(pid)
    try:
        yield
    finally:
        for pid in pids:
            thaw(pid)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def begin_move(cast: Cast) -> migrations.Migration:
    """The struck VM is on its way to the empty node, slowly."""
    site = cast.site
    wish = migrations.MigrationCreate(
        vm=cast.struck.id, target_node="node-3", bandwidth_bytes_per_s=SLOW_BYTES_PER_S, transport="direct"
    )
    begun = [await site.client.do(migrations.create(wish))]

    async def transferring() -> bool:
        begun[0] = await site.client.do(migrations.get(begun[0].id))
        return begun[0].state == "transferring"

    await until(transferring, "the move does not begin to transfer", lambda: begun)
    return begun[0]


async def ended(site: ClusterSite, migration_id: str) -> migrations.Migration:
    return await site.client.wait_migration(migration_id, deadline_s=120.0)


class Writer:
    """Counts in a VM's labels, write after write: each that was acknowledged must be there for ever (I3)."""

    def __init__(self, site: ClusterSite, vm_id: str) -> None:
        self._site = site
        self._vm_id = vm_id
        self.tried = 0
        self.acknowledged = 0

    async def run(self) -> None:
        while True:
            self.tried += 1
            change = vms.VmUpdate(labels={COUNT: str(self.tried)})
            with contextlib.suppress(NovaCronError):
                await self._site.client.do(vms.update(self._vm_id, change))
                self.acknowledged = self.tried
            await asyncio.sleep(0.05)

    async def goes_on(self, more: int = 3) -> None:
        """Return when so many more writes were acknowledged."""
        before = self.acknowledged

        async def so() -> bool:
            return self.acknowledged >= before + more

        await until(so, "no write is acknowledged")


@contextlib.asynccontextmanager
async def writing(site: ClusterSite, vm: vms.Vm) -> AsyncIterator[Writer]:
    """Writes all the while; afterwards every server has what was acknowledged."""
    writer = Writer(site, vm.id)
    task = asyncio.create_task(writer.run())
    try:
        await writer.goes_on()
        yield writer
        await writer.goes_on()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await site.heal()
    for reader in site.readers.values():
        await _has(reader, vm.id, writer.acknowledged)


async def _has(reader: AsyncClient, vm_id: str, acknowledged: int) -> None:
    wrong: list[str] = []

    async def so() -> bool:
        wrong[:] = kept(acknowledged, int((await reader.do(vms.get(vm_id))).labels[COUNT]))
        return not wrong

    await until(so, "an acknowledged write is lost", lambda: wrong)
