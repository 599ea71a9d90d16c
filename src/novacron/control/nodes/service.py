"""Decides what requests about nodes mean and records it."""

from __future__ import annotations

import msgspec

from novacron.clock import Clock
from novacron.control.answers import check_match
from novacron.control.joining import ledger
from novacron.control.once import Change, Outcome
from novacron.control.room import Room
from novacron.control.store.kinds import FENCE_DEVICES, LINKS, NODES
from novacron.control.store.records import WRITE_TRIES, Records, Write, remove
from novacron.errors import CompareFailed, Conflict, Reason, StateConflict
from novacron.model.node import Node, NodeState
from novacron.model.placement import Taint
from novacron.wire.rest.nodes import NodeUpdate

GONE = (NodeState.DOWN, NodeState.FENCED)


class NodeService:
    """Nodes come by themselves (their agents join); here they are labelled, cordoned and forgotten."""

    def __init__(self, records: Records, room: Room, clock: Clock) -> None:
        self._records = records
        self._room = room
        self._clock = clock

    async def update(self, ref: str, asked: NodeUpdate, held: frozenset[str] | None) -> Outcome:
        """Change labels or taints, or cordon it: no new VM is then placed there; those that run go on.

        :raise NotFound, PreconditionFailed
        """
        named = asked.model_dump(exclude_none=True)
        if asked.taints is not None:
            named["taints"] = tuple(Taint(key=one.key, value=one.value, effect=one.effect) for one in asked.taints)

        def change(node: Node) -> Node:
            new = msgspec.structs.replace(node, **named)
            return node if new == node else msgspec.structs.replace(new, updated_at=self._clock.wall())

        return await Change(self._records, NODES, ref, held).write(change)

    async def delete(self, ref: str, held: frozenset[str] | None) -> None:
        """Forget a node that is down and owns no VM; its certificates count no more. To come back, it joins anew.

        :raise StateConflict: it is not down. :raise Conflict: VMs belong to it; a reason for each kind of tie.
        :raise NotFound, PreconditionFailed
        """
        for _ in range(WRITE_TRIES):
            async with self._room.turn():
                ticket = await self._room.ticket()
                stored = self._records.find(NODES, ref)
                check_match(held, stored)
                self._check_forgettable(stored.record)
                gone = await ledger.revocation(self._records.store, stored.record.id, "the node was deleted")
                writes = [remove(NODES, stored), *self._links_of(stored.record), *((gone,) if gone else ()), ticket]
                try:
                    await self._records.commit(*writes)
                except CompareFailed:
                    await self._records.refresh()
                    continue
                return
        raise CompareFailed(f"node {ref!r} is being changed by others: try again")

    def _links_of(self, node: Node) -> list[Write]:
        """What was measured between it and others goes with it, and how its power was reached."""
        every = self._records.all(LINKS)
        links = [remove(LINKS, one) for one in every if node.id in (one.record.source_node, one.record.target_node)]
        device = self._records.get(FENCE_DEVICES, node.id)
        return [*links, *([remove(FENCE_DEVICES, device)] if device else [])]

    def _check_forgettable(self, node: Node) -> None:
        if node.state not in GONE:
            raise StateConflict.of(f"node {node.name}", node.state.value, [state.value for state in GONE], "delete")
        mine = self._room.promised().get(node.id)
        if mine is not None and (mine.vm_count or mine.memory_mib):
            raise Conflict(
                f"cannot delete node {node.name}: {mine.vm_count} VMs belong to it",
                [Reason("node.not_empty", "VMs belong to it", subject=node.name, remedy="move or delete them first")],
            )
