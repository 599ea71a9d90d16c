"""Strays: what migrations long over left on a node that was away when it should have been taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec
import structlog

from novacron.control.link import Agents
from novacron.control.store.records import MIGRATIONS, VMS, Records
from novacron.errors import NovaCronError
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.migration import Figures, Migration, is_final
from novacron.model.vm import Vm
from novacron.wire import agent as wire

DEADLINE_S = 30.0


def ending(node_id: str, report: MachineReport, vm: Vm | None, migration: Migration | None) -> msgspec.Struct | None:
    """The verb that ends a stray, or None when this machine is none, or must not be ended on what we know.

    Only what does not run is ended: remains of a machine that has ended here and is another node's by now, and halves
    that stand still, once their migration is over and where the record names another owner (a source) or another copy
    as the running one (a target).
    """
    if vm is None:
        return None
    generation = max(vm.generation, report.generation)
    if report.status in ENDED:
        passed = vm.node_id != node_id and report.generation < vm.generation and not vm.migration_id
        return wire.Release(vm_id=vm.id, generation=generation, migration_id=report.migration_id) if passed else None
    if migration is None or not is_final(migration) or vm.migration_id == migration.id:
        return None
    if report.status is MachineStatus.INCOMING and not _took_over(vm, node_id, migration):
        return wire.Discard(vm_id=vm.id, generation=generation, migration_id=migration.id)
    if report.status is MachineStatus.HANDED_OFF and vm.node_id != node_id:
        return wire.Release(vm_id=vm.id, generation=generation, migration_id=migration.id)
    return None


def _took_over(vm: Vm, node_id: str, migration: Migration) -> bool:
    return vm.node_id == node_id and migration.target_node == node_id


class Sweeper:
    """Ends strays as nodes report them; one attempt at a time for each, repeated with the next report."""

    def __init__(self, records: Records, agents: Agents) -> None:
        self._records = records
        self._agents = agents
        self._ending: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._log = structlog.get_logger("sweeper")

    def look(self, node_id: str, reports: Iterable[MachineReport]) -> None:
        """Called with every complete report of a node."""
        for report in reports:
            stored_vm = self._records.get(VMS, report.vm_id)
            stored = self._records.get(MIGRATIONS, report.migration_id) if report.migration_id else None
            verb = ending(node_id, report, stored_vm.record if stored_vm else None, stored.record if stored else None)
            key = (node_id, report.vm_id)
            if verb is not None and key not in self._ending:
                work = asyncio.create_task(self._end(node_id, verb), name=f"sweep-{report.vm_id}")
                self._ending[key] = work
                work.add_done_callback(lambda _, key=key: self._ending.pop(key, None))  # type: ignore[misc]

    async def _end(self, node_id: str, verb: msgspec.Struct) -> None:
        answer: type = Figures if isinstance(verb, wire.Release) else type(None)
        try:
            await self._agents.call(node_id, verb, answer, deadline_s=DEADLINE_S)
            self._log.info("ended a stray half of a migration", node_id=node_id, verb=wire.NAME_OF[type(verb)])
        except NovaCronError as error:
            self._log.warning("a stray is left", node_id=node_id, why=error.message)
