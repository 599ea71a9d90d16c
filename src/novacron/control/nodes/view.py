"""A node as the API shows it: the shape of wire.rest.nodes.Node.

What a node uses changes with every heartbeat and is in no record, so its view is made anew for each answer.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from novacron.control.room import Room
from novacron.control.scheduler.fleet import Committed
from novacron.control.store.shelf import Stored
from novacron.model.node import DriverFacts, Node, NodeFacts, NodeUsage

_all_of = msgspec.structs.asdict
_encode = msgspec.json.Encoder().encode
_NOTHING = Committed()


class Pulse(Protocol):
    """What the line to each agent last brought."""

    def usage(self, node_id: str) -> NodeUsage | None:
        """As of the last heartbeat; None: none came since this server started."""
        ...

    def heard_ago_s(self, node_id: str) -> float | None:
        """Seconds since the node's last frame; None: it has no line."""
        ...


class NodeView:
    """`data` builds the object, `encoded` its bytes."""

    def __init__(self, room: Room, pulse: Pulse) -> None:
        self._room = room
        self._pulse = pulse

    def encoded(self, node: Stored[Node]) -> bytes:
        return _encode(self.data(node.record, node.modified))

    def data(self, node: Node, revision: int) -> dict[str, Any]:
        usage = self._pulse.usage(node.id)
        member = self._room.member(node.id)
        mine = self._room.promised().get(node.id, _NOTHING)
        return {
            "id": node.id,
            "name": node.name,
            "labels": node.labels,
            "state": node.state,
            "state_reason": node.state_reason,
            "state_since": node.state_since,
            "cordoned": node.cordoned,
            "taints": [_all_of(taint) for taint in node.taints],
            "facts": _facts(node.facts) if node.facts else None,
            "usage": _all_of(usage) if usage else None,
            "heard_ago_s": self._pulse.heard_ago_s(node.id),
            "epoch": member.epoch if member else None,
            "fence_class": member.fence_class.name.lower() if member else None,
            "vm_count": mine.vm_count,
            "memory_committed_mib": mine.memory_mib,
            "created_at": node.created_at,
            "updated_at": node.updated_at,
            "revision": revision,
        }


def _facts(facts: NodeFacts) -> dict[str, Any]:
    return {**_all_of(facts), "drivers": [_driver(driver) for driver in facts.drivers]}


def _driver(driver: DriverFacts) -> dict[str, Any]:
    return {**_all_of(driver), "accelerator": _all_of(driver.accelerator) if driver.accelerator else None}
