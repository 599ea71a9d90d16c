"""The room that is left: what is promised on each node by the records, and the queue in which promises are made.

A promise (create, start, migrate) decides from the records how much room there is. Two at once must not both get the
last of it, nor the same isolation slot, so each takes the next ticket in its own transaction: who loses looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from novacron.config import ServerConfig
from novacron.control.scheduler.placement import Candidate, Limits
from novacron.control.store.base import Expect, Put
from novacron.control.store.kinds import MIGRATIONS, NODES, POOLS, VMS
from novacron.control.store.records import Records, Write
from novacron.model.machine import ENDED
from novacron.model.migration import is_final
from novacron.model.vm import Desired, Vm, running_spec, status_of

TICKET = "scheduler/ticket"


class Committed(msgspec.Struct):
    """What is promised on one node: VMs it owns; memory and virtual CPUs of those that run or are to run."""

    vm_count: int = 0
    memory_mib: int = 0
    vcpus: int = 0


def holds_room(vm: Vm) -> bool:
    """Whether its memory is promised: it is wanted running or paused, or it still runs."""
    return vm.desired in (Desired.RUNNING, Desired.PAUSED) or status_of(vm) not in ENDED


def committed(records: Records) -> dict[str, Committed]:
    """By node id. A machine that is migrating holds room on both sides."""
    found: dict[str, Committed] = {}
    for stored in records.all(VMS):
        vm = stored.record
        mine = found.setdefault(vm.node_id, Committed())
        mine.vm_count += 1
        if holds_room(vm):  # what it runs with, or what it will be started with: whichever is more
            mine.memory_mib += max(vm.spec.memory_mib, running_spec(vm).memory_mib)
            mine.vcpus += max(vm.spec.vcpus, running_spec(vm).vcpus)
        if vm.migration_id:
            _add_other_side(records, vm, found)
    return found


def _add_other_side(records: Records, vm: Vm, found: dict[str, Committed]) -> None:
    migration = records.get(MIGRATIONS, vm.migration_id)
    if migration is None or is_final(migration.record):
        return
    for node_id in {migration.record.source_node, migration.record.target_node} - {vm.node_id}:
        other = found.setdefault(node_id, Committed())
        other.memory_mib += running_spec(vm).memory_mib
        other.vcpus += running_spec(vm).vcpus


def _reached(records: Records) -> dict[str, dict[str, str]]:
    """By node id: the pools it was asked for, and why it does not reach them."""
    found: dict[str, dict[str, str]] = {}
    for stored in records.all(POOLS):
        for node_id, reach in stored.record.reach.items():
            why_not = "" if reach.available else reach.reason or "no reason was given"
            found.setdefault(node_id, {})[stored.record.id] = why_not
    return found


class Room:
    """Candidates for placement, and the queue of promises."""

    def __init__(self, records: Records, config: ServerConfig) -> None:
        self._records = records
        self._turn = asyncio.Lock()
        self._counted: Mapping[str, Committed] = {}
        self._counted_at = -1
        self.limits = Limits(cpu_overcommit=config.cpu_overcommit, memory_reserve_mib=config.memory_reserve_mib)

    def promised(self) -> Mapping[str, Committed]:
        """`committed`, counted again only when a record has changed."""
        if self._counted_at != self._records.revision:
            self._counted, self._counted_at = committed(self._records), self._records.revision
        return self._counted

    def candidates(self) -> list[Candidate]:
        """Every node with what is promised on it now."""
        promised = self.promised()
        nothing = Committed()
        reached = _reached(self._records)
        return [
            Candidate(
                node=stored.record,
                committed_memory_mib=promised.get(stored.record.id, nothing).memory_mib,
                committed_vcpus=promised.get(stored.record.id, nothing).vcpus,
                pools=reached.get(stored.record.id, {}),
            )
            for stored in self._records.all(NODES)
        ]

    def turn(self) -> asyncio.Lock:
        """`async with room.turn():` one promise at a time in this process."""
        return self._turn

    async def ticket(self) -> Write:
        """Makes it one promise at a time in the whole cluster: take it before looking at the room that is left, and
        commit it with the promise. When that loses (CompareFailed), take another and look again.
        """
        entry = await self._records.store.get(TICKET)
        await self._records.caught_up(entry.modified if entry else 0)
        return Write((Put(TICKET, b"1"),), (Expect(TICKET, entry.modified if entry else 0),))
