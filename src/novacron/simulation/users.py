"""What people ask of the cluster, through the services that answer the REST API; a refusal is told, not raised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

from novacron.clock import Clock
from novacron.control.once import Once
from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.simulation.chronicle import Chronicle
from novacron.simulation.fleet import Fleet
from novacron.simulation.reading import asked_of
from novacron.simulation.scenario import NodeGroup, VmGroup
from novacron.simulation.server import Server
from novacron.simulation.world import PacedWorld
from novacron.wire.rest.bulk_migrations import BulkMigrationCreate
from novacron.wire.rest.migrations import MigrationCreate
from novacron.wire.rest.nodes import NodeUpdate
from novacron.wire.rest.vms import StopRequest

WHO = "simulation"
_MIB = 1 << 20


class Users:
    """They ask whichever server answers; when none does, that is a refusal too."""

    def __init__(self, fleet: Fleet, world: PacedWorld, records: Records, clock: Clock, chronicle: Chronicle) -> None:
        """records: to look at."""
        self._fleet = fleet
        self._world = world
        self._records = records
        self._clock = clock
        self._chronicle = chronicle
        self._made: Counter[str] = Counter()  # VMs by group

    def vms_of(self, refs: tuple[str, ...], groups: dict[str, VmGroup]) -> list[str]:
        """Names of VMs; the name of a group means those of it that there are."""
        names = [stored.record.name for stored in self._records.all(VMS)]
        found = [
            name
            for ref in refs
            for name in ([one for one in names if one.rpartition("-")[0] == ref] if ref in groups else [ref])
        ]
        return list(dict.fromkeys(found))

    async def label(self, group: NodeGroup, name: str) -> None:
        """Give a node the labels that its group has."""
        labels = group.labels | ({"zone": group.zone} if group.zone else {})
        if labels:
            update = NodeUpdate(labels=dict(labels))
            await self._ask("label", name, lambda server: server.services.nodes.update(name, update, None))

    async def create(self, group: VmGroup) -> str:
        """The name of the next VM of the group; empty: it was refused."""
        self._made[group.name] += 1
        asked = asked_of(group, self._made[group.name], group.name)

        async def make(server: Server) -> None:
            outcome = await server.services.vms.create(asked, WHO, self._once(server))
            self._world.dirtied_bytes_per_s[outcome.stored.record.id] = group.dirty_mib_per_s * _MIB

        return asked.name if await self._ask("create", asked.name, make) else ""

    async def start(self, name: str) -> None:
        """Have a VM run."""
        await self._ask("start", name, lambda one: one.services.vms.start(name, WHO, None, self._once(one)))

    async def stop(self, name: str) -> None:
        """Have a VM end."""
        how = StopRequest()
        await self._ask("stop", name, lambda one: one.services.vms.stop(name, how, WHO, None, self._once(one)))

    async def delete(self, name: str) -> None:
        """Have a VM ended and forgotten."""
        await self._ask("delete", name, lambda one: one.services.vms.delete(name, WHO, None, force=True))

    async def migrate(self, name: str, to: str | None) -> None:
        """Have a VM moved."""
        asked = MigrationCreate(vm=name, target_node=to)
        await self._ask("migrate", name, lambda one: one.services.migrations.create(asked, WHO, self._once(one)))

    async def drain(self, node: str, max_concurrent: int) -> str:
        """The id of what empties the node; empty: it was refused."""
        return await self._bulk("drain", node, BulkMigrationCreate(drain=node, max_concurrent=max_concurrent))

    async def bring_back(self, node: str, max_concurrent: int) -> str:
        """The id of what brings back what a drain took away; empty: it was refused."""
        return await self._bulk("bring back", node, BulkMigrationCreate(bring_back=node, max_concurrent=max_concurrent))

    async def _bulk(self, what: str, node: str, asked: BulkMigrationCreate) -> str:
        made: list[str] = []
        labelled = asked.model_copy(update={"labels": {"node": node}})

        async def begin(server: Server) -> None:
            outcome = await server.services.bulk.create(labelled, WHO, self._once(server))
            made.append(outcome.stored.record.id)

        await self._ask(what, node, begin)
        return made[0] if made else ""

    async def _ask(self, what: str, subject: str, do: Callable[[Server], Awaitable[object]]) -> bool:
        try:
            await do(self._fleet.a_server())
        except NovaCronError as error:
            self._chronicle.refused(what, subject, error)
            return False
        self._chronicle.done[what] += 1
        return True

    def _once(self, server: Server) -> Once:
        return Once(server.records.store, "", "", self._clock.wall())
