"""The room that is left: what is promised on each node by the records, and the queue in which promises are made.

A promise (create, start, migrate) decides from the records how much room there is. Two at once must not both get the
last of it, nor the same isolation slot, so each takes the next ticket in its own transaction: who loses looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from novacron.config import ServerConfig
from novacron.control.promises import Promises
from novacron.control.scheduler.draft import Draft
from novacron.control.scheduler.fleet import Committed, Fleet
from novacron.control.scheduler.placement import Candidate, Limits
from novacron.control.scheduler.snapshot import Need
from novacron.control.slots import Slots
from novacron.control.store.base import Expect, Put
from novacron.control.store.kinds import MEMBERS, NODES
from novacron.control.store.records import Records, Write
from novacron.model.membership import Membership
from novacron.model.node import Node

TICKET = "scheduler/ticket"
_NOTHING = Committed()


class Room:
    """Candidates for placement, and the queue of promises."""

    def __init__(self, records: Records, config: ServerConfig) -> None:
        self._records = records
        self._turn = asyncio.Lock()
        self.limits = Limits(
            cpu_overcommit=config.cpu_overcommit,
            memory_reserve_mib=config.memory_reserve_mib,
            disk_overcommit=config.disk_overcommit,
            policy=config.placement_policy,
            weights=config.placement_weights,
        )
        self._promises = Promises(records, self.limits)
        self._slots = Slots(records)

    def promised(self) -> Mapping[str, Committed]:
        """By node id, what is promised there now."""
        return self._promises.fleet().committed

    def draft(self) -> Draft:
        """To place VMs one after the other, as things stand now."""
        return Draft(self._promises.fleet())

    def candidates(self) -> list[Candidate]:
        """Every node with what is promised on it now."""
        fleet = self._promises.fleet()
        return [_candidate(fleet, stored.record) for stored in self._records.all(NODES)]

    def candidate(self, node_id: str) -> Candidate | None:
        """The same of one node; None: it is not known."""
        stored = self._records.get(NODES, node_id)
        return _candidate(self._promises.fleet(), stored.record) if stored else None

    def member(self, node_id: str) -> Membership | None:
        """How the node takes part now; None: it does not."""
        stored = self._records.get(MEMBERS, node_id)
        return stored.record if stored else None

    def in_company(self, need: Need, vm_id: str = "") -> Need:
        """The need with what rules between VMs come to now, for those who look at one node at a time.

        vm_id: of the VM whose need it is, when it is there already.
        """
        draft = self.draft()
        draft.without(vm_id)
        return draft.with_company(need)

    def free_slots(self) -> Iterator[int]:
        """Isolation slots that no VM has, smallest first. :raise NoRoom: there is no other."""
        return self._slots.free()

    def turn(self) -> asyncio.Lock:
        """`async with room.turn():` one promise at a time in this process."""
        return self._turn

    async def ticket(self) -> Write:
        """Makes it one promise at a time in the whole cluster: take it before looking at the room that is left, and
        commit it with the promise. When that loses (CompareFailed), take another and look again.
        """
        entry = await self._records.store.get(TICKET)
        await self._records.caught_up(entry.modified if entry else 0)
        return _ticket(entry.modified if entry else 0)

    def next_ticket(self, revision: int) -> Write:
        """The ticket after one that was committed at that revision, for several by one look at the room."""
        return _ticket(revision)


def _ticket(after: int) -> Write:
    return Write((Put(TICKET, b"1"),), (Expect(TICKET, after),))


def _candidate(fleet: Fleet, node: Node) -> Candidate:
    mine = fleet.committed.get(node.id, _NOTHING)
    rooms = {pool_id: fleet.pool_room_bytes(pool_id, node.id) for pool_id in fleet.pools}
    return Candidate(
        node=node,
        committed_memory_mib=mine.memory_mib,
        committed_vcpus=mine.vcpus,
        pools={pool_id: seen.reached[node.id] for pool_id, seen in fleet.pools.items() if node.id in seen.reached},
        pool_room_bytes={pool_id: room for pool_id, room in rooms.items() if room is not None},
    )
