"""Which isolation slots are free, known without a look at every VM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, Seen
from novacron.errors import NoRoom, Reason

MAX_SLOT = 0xFFFFF
"""How many VMs a cluster can have: each has an unprivileged uid of its own, the agents' base and its slot."""


class Slots:
    """Always as the records are, once it has been asked."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._taken: set[int] = set()
        self._lowest = 1  # all below are taken
        self._is_kept_up = False

    def free(self) -> Iterator[int]:
        """Those that no VM has, smallest first; read within one turn (see control.room). :raise NoRoom: no other is."""
        self._keep_up()
        lowest = self._lowest
        while lowest in self._taken:
            lowest += 1
        self._lowest = lowest
        yield from (slot for slot in range(lowest, MAX_SLOT + 1) if slot not in self._taken)
        raise NoRoom("there is no isolation slot left", [Reason("slots.short", f"{MAX_SLOT} VMs exist")])

    def _keep_up(self) -> None:
        if not self._is_kept_up:
            self._is_kept_up = True
            self._records.subscribe(self._take_in)
            self._taken = {stored.record.isolation_slot for stored in self._records.all(VMS)}

    def _take_in(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is not VMS:
                continue
            if change.now is not None:
                self._taken.add(change.now.isolation_slot)
            elif change.before is not None:
                self._taken.discard(change.before.isolation_slot)
                self._lowest = min(self._lowest, max(1, change.before.isolation_slot))
