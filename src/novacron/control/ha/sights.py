"""What this server has seen of every node's membership, by its own clock: kept up with the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from novacron.clock import Clock
from novacron.control.ha.sight import Sight, looked, promised
from novacron.control.store.kinds import MEMBERS, NODES
from novacron.control.store.records import Records, Seen
from novacron.model.ha import FenceClass
from novacron.model.membership import Membership
from novacron.model.node import NodeState


class Sights:
    """Counts from its making on: what was seen before is not known, and is waited for again."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._sights: dict[str, Sight] = {}
        for stored in records.all(MEMBERS):
            self._look(stored.record)
        records.subscribe(self._notice)

    def all(self) -> Mapping[str, Sight]:
        """By node id, of the nodes that count: known, taking part, and not long known to be down, which is no news that
        others fall silent with.
        """
        return {node_id: one for node_id, one in self._sights.items() if self._counts(one)}

    def _counts(self, sight: Sight) -> bool:
        node = self._records.get(NODES, sight.member.id)
        takes_part = sight.member.fence_class is not FenceClass.NONE
        return takes_part and node is not None and node.record.state is not NodeState.DOWN

    def get(self, node_id: str) -> Sight | None:
        """None: it takes no part in memberships."""
        return self._sights.get(node_id)

    def promise(self, node_id: str) -> None:
        """This server leaves the node alone for a while (rule R10)."""
        sight = self._sights.get(node_id)
        if sight is not None:
            self._sights[node_id] = promised(sight, self._clock.monotonic_s())

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is MEMBERS and change.now is not None:
                self._look(change.now)

    def _look(self, member: Membership) -> None:
        self._sights[member.id] = looked(self._sights.get(member.id), member, self._clock.monotonic_s())
