"""Strays: what migrations long over left on a node that was away when it should have been taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import msgspec
import structlog

from novacron.control.link import Agents
from novacron.control.migrations.copying import kept_s
from novacron.control.store.kinds import MIGRATIONS, NODES, VMS, VOLUMES
from novacron.control.store.records import Records
from novacron.errors import NovaCronError
from novacron.model.kept_copies import keeps_copies
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.migration import Figures, Migration, MigrationState, is_final
from novacron.model.vm import Vm
from novacron.model.volume import Place, Volume, places
from novacron.wire import agent as wire
from novacron.wire import moving

DEADLINE_S = 30.0


class Left(msgspec.Struct, frozen=True):
    """What moves left on a node, and is another node's by now: volumes (see `left_behind`), and what else belongs to
    the VM (see `leaves_belongings`).
    """

    volumes: tuple[str, ...] = ()
    belongings: bool = False


def ending(
    node_id: str,
    report: MachineReport,
    vm: Vm | None,
    migration: Migration | None,
    left: Left = Left(),  # noqa: B008
    keep_s: float = 0.0,
) -> msgspec.Struct | None:
    """The verb that ends a stray, or None when this machine is none, or must not be ended on what we know.

    left: what lies on this node and counts no more. keep_s: so long may what came of disks with the migration stay
    here.

    Only what does not run is ended: remains of a machine that has ended here and is another node's by now, and halves
    that stand still, once their migration is over and where the record names another owner (a source) or another copy
    as the running one (a target).
    """
    if vm is None:
        return None
    generation = max(vm.generation, report.generation)
    if report.status in ENDED:
        passed = vm.node_id != node_id and report.generation < vm.generation and not vm.migration_id
        verb = moving.Release(
            vm_id=vm.id,
            generation=generation,
            migration_id=report.migration_id,
            volumes=left.volumes,
            belongings=left.belongings,
        )
        return verb if passed else None
    if migration is None or not is_final(migration) or vm.migration_id == migration.id:
        return None
    if report.status is MachineStatus.INCOMING and not _took_over(vm, node_id, migration):
        return moving.Discard(vm_id=vm.id, generation=generation, migration_id=migration.id, keep_s=keep_s)
    if report.status is MachineStatus.HANDED_OFF and vm.node_id != node_id:
        return moving.Release(
            vm_id=vm.id,
            generation=generation,
            migration_id=migration.id,
            volumes=left.volumes,
            belongings=left.belongings,
        )
    return None


def useless(node_id: str, copy: wire.KeptCopy, vm: Vm | None) -> moving.Discard | None:
    """The verb that deletes what a node keeps of a copy that came in part; None: its VM is where it was, and may still
    go on with it.
    """
    if vm is not None and vm.generation == copy.generation and vm.node_id != node_id:
        return None
    generation = max(copy.generation, vm.generation if vm else 0)
    return moving.Discard(vm_id=copy.vm_id, generation=generation, migration_id=copy.migration_id)


def left_behind(node_id: str, migrations: Iterable[Migration], volumes: Mapping[str, Volume]) -> tuple[str, ...]:
    """Volumes that moves of a VM took away from the node, and that lie elsewhere now: what is here is of no use.

    migrations: of that VM; volumes: by id.
    """
    gone = [
        move
        for migration in migrations
        if migration.source_node == node_id
        and migration.state is MigrationState.COMPLETED
        and not keeps_copies(migration)
        for move in migration.disks
        if move.volume_id in volumes
    ]
    here = {
        volume_id for volume_id, volume in volumes.items() if any(_is_at(place, node_id) for place in places(volume))
    }
    return tuple(dict.fromkeys(move.volume_id for move in gone if move.volume_id not in here))


def leaves_belongings(node_id: str, vm: Vm, migrations: Iterable[Migration], pool_of: Mapping[str, str]) -> bool:
    """Whether files of the VM that moves took away from the node are of no use there: they lie in another pool now.

    migrations: of that VM; pool_of: by node, the default pool it has.
    """
    took = any(
        one.source_node == node_id and one.state is MigrationState.COMPLETED and one.belongings for one in migrations
    )
    there = pool_of.get(vm.node_id, "")
    return took and not vm.migration_id and there not in ("", pool_of.get(node_id, ""))


def _is_at(place: Place, node_id: str) -> bool:
    return place.node_id in ("", node_id)  # in a pool that nodes share it may be here as anywhere


def _took_over(vm: Vm, node_id: str, migration: Migration) -> bool:
    return vm.node_id == node_id and migration.target_node == node_id


class Sweeper:
    """Ends strays as nodes report them; one attempt at a time for each, repeated with the next report."""

    def __init__(self, records: Records, agents: Agents) -> None:
        self._records = records
        self._agents = agents
        self._ending: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._log = structlog.get_logger("sweeper")

    def look(self, node_id: str, reports: Iterable[MachineReport], copies: Iterable[wire.KeptCopy] = ()) -> None:
        """Called with every complete report of a node."""
        for copy in copies:
            stored_vm = self._records.get(VMS, copy.vm_id)
            self._begin(node_id, copy.vm_id, useless(node_id, copy, stored_vm.record if stored_vm else None))
        for report in reports:
            stored_vm = self._records.get(VMS, report.vm_id)
            stored = self._records.get(MIGRATIONS, report.migration_id) if report.migration_id else None
            vm, migration = stored_vm.record if stored_vm else None, stored.record if stored else None
            left = self._left_behind(node_id, vm) if vm is not None and vm.node_id != node_id else Left()
            keep_s = kept_s(self._records, migration) if migration is not None else 0.0
            self._begin(node_id, report.vm_id, ending(node_id, report, vm, migration, left, keep_s))

    def _begin(self, node_id: str, vm_id: str, verb: msgspec.Struct | None) -> None:
        key = (node_id, vm_id)
        if verb is not None and key not in self._ending:
            self._ending[key] = asyncio.create_task(self._end(node_id, verb), name=f"sweep-{vm_id}")
            self._ending[key].add_done_callback(lambda _: self._ending.pop(key, None))

    def _left_behind(self, node_id: str, vm: Vm) -> Left:
        mine = [stored.record for stored in self._records.of_vm(MIGRATIONS, vm.id)]
        found = (self._records.get(VOLUMES, move.volume_id) for one in mine for move in one.disks)
        volumes = left_behind(node_id, mine, {stored.record.id: stored.record for stored in found if stored})
        nodes = [stored.record for stored in self._records.all(NODES)]
        pool_of = {node.id: node.facts.pool_ids[0] for node in nodes if node.facts and node.facts.pool_ids}
        return Left(volumes, leaves_belongings(node_id, vm, mine, pool_of))

    async def _end(self, node_id: str, verb: msgspec.Struct) -> None:
        answer: type = Figures if isinstance(verb, moving.Release) else type(None)
        try:
            await self._agents.call(node_id, verb, answer, deadline_s=DEADLINE_S)
            self._log.info("ended a stray half of a migration", node_id=node_id, verb=wire.NAME_OF[type(verb)])
        except NovaCronError as error:
            self._log.warning("a stray is left", node_id=node_id, why=error.message)
