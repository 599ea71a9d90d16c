"""The VMs whose records say that their node is lost, kept up with the records: usually none of very many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, Seen
from novacron.control.store.shelf import Stored
from novacron.model.vm import Vm


class LostVms:
    """Looks at every VM once, and from then on at those that change, until it is closed."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ids = {stored.record.id for stored in records.all(VMS) if stored.record.node_lost}
        self.close = records.subscribe(self._notice)

    def to_mark(self, lost: Mapping[str, bool]) -> list[Stored[Vm]]:
        """The VMs whose records say other than `lost` does of their node, by its id. VMs of nodes not in it: none."""
        found = [stored for stored in map(self._stored, sorted(self._ids)) if stored is not None]
        back = [stored for stored in found if not lost.get(stored.record.node_id, True)]
        gone = (node_id for node_id, is_lost in lost.items() if is_lost)
        return [*back, *self._unmarked(gone)]

    def _stored(self, vm_id: str) -> Stored[Vm] | None:
        return self._records.get(VMS, vm_id)

    def _unmarked(self, node_ids: Iterable[str]) -> list[Stored[Vm]]:
        on_them = (stored for node_id in node_ids for stored in self._records.on_node(VMS, node_id))
        return [stored for stored in on_them if not stored.record.node_lost]

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is not VMS:
                continue
            if change.now is not None and change.now.node_lost:
                self._ids.add(change.now.id)
            elif change.before is not None:
                self._ids.discard(change.before.id)
