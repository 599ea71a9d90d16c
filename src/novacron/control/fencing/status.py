"""What high availability could do this moment: who vouches by what, what brakes it, whom a node's loss would strand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.ha import brake, spare
from novacron.control.ha.claims import claim_of
from novacron.control.ha.sights import Sights
from novacron.control.ha.takeover import Claim
from novacron.control.room import Room
from novacron.control.store.kinds import FENCE_DEVICES, FENCES, NODES, VMS
from novacron.control.store.records import Records
from novacron.model.ha import FenceClass, FenceLog, HaPolicy, Proof
from novacron.model.node import Node
from novacron.model.timing import Timing


class Status:
    """Of one server: brakes by what it has seen itself, the rest from the records."""

    def __init__(
        self, records: Records, sights: Sights, room: Room, clock: Clock, timing: Timing, pool_id: str
    ) -> None:
        self._records = records
        self._sights = sights
        self._room = room
        self._clock = clock
        self._timing = timing
        self._pool_id = pool_id

    async def now(self) -> dict[str, Any]:
        """The shape of wire.rest.fencing.HaStatus. Others go on while it is worked out, node by node."""
        claims: dict[str, list[Claim]] = {}
        for stored in self._records.all(VMS):
            if stored.record.spec.ha.policy is not HaPolicy.NONE and stored.record.node_id:
                one = claim_of(self._records, stored.record, self._pool_id)
                claims.setdefault(stored.record.node_id, []).append(one)
        nodes = [
            self._node(stored.record, claims.get(stored.record.id, []))
            async for stored in breathing(self._records.all(NODES), 1)
        ]
        log = self._records.get(FENCES, FenceLog().id)
        fences = log.record if log else FenceLog()
        held = brake.storm(tuple(self._sights.all().values()), self._clock.monotonic_s(), self._timing)
        held = held or brake.spent(fences, self._timing)
        return {
            "brake": msgspec.structs.asdict(held) if held else None,
            "recent_fences": len(fences.recent),
            "fence_limit": self._timing.fences,
            "fence_window_s": self._timing.fence_window_s,
            "by_fence_class": dict(Counter(one["fence_class"] or "none" for one in nodes)),
            "survives_any_node": not any(one["stranded"] or one["unguaranteed"] for one in nodes),
            "nodes": sorted(nodes, key=lambda one: str(one["node"])),
        }

    def _node(self, node: Node, claims: list[Claim]) -> dict[str, Any]:
        sight, device = self._sights.get(node.id), self._records.get(FENCE_DEVICES, node.id)
        member = sight.member if sight else None
        fence_class = member.fence_class if member else FenceClass.NONE
        return {
            "node": node.name,
            "node_id": node.id,
            "state": node.state,
            "fence_class": fence_class.name.lower() if member else None,
            "fence_device": device.record.kind if device else None,
            "proof": member.proof if member and member.proof is not Proof.NONE else None,
            "guarded": len(spare.guarded(claims)),
            "stranded": list(spare.stranded(claims, self._room.draft())) if claims else [],
            "unguaranteed": list(spare.unguaranteed(claims, fence_class, provable=device is not None)),
        }
