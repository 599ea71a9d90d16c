"""The cache of one kind of record: every record by its id, its names and its VM, oldest first."""

from __future__ import annotations

import bisect
from typing import Generic

import msgspec

from novacron.control.store.kinds import Kind, R


class Stored(msgspec.Struct, Generic[R], frozen=True):
    """A record and the store revision that last changed it (its ETag)."""

    record: R
    modified: int


class Shelf(Generic[R]):
    """All records of one kind. `order` and what `ids_of` answers are in order of birth: ids are born ascending."""

    def __init__(self, kind: Kind[R]) -> None:
        self._kind = kind
        self.by_id: dict[str, Stored[R]] = {}
        self.by_name: dict[str, str] = {}
        self.order: list[str] = []
        self._by_vm: dict[str, list[str]] = {}

    def ids_of(self, vm_id: str) -> list[str]:
        """Of the records of that VM; none of a kind whose records have no VM."""
        return self._by_vm.get(vm_id, [])

    def put(self, stored: Stored[R]) -> R | None:
        """The record as it is from now on; what it was before, or None: it is new."""
        record_id = stored.record.id
        before = self.by_id.get(record_id)
        if before is None:
            bisect.insort(self.order, record_id)
        else:
            self._forget(before.record)
        self.by_id[record_id] = stored
        for name in self._kind.called(stored.record):
            self.by_name[name] = record_id
        vm_id = self._kind.vm_of(stored.record)
        if vm_id:
            bisect.insort(self._by_vm.setdefault(vm_id, []), record_id)
        return before.record if before else None

    def drop(self, record_id: str) -> R | None:
        """Without it from now on; what it was, or None: it was not there."""
        before = self.by_id.pop(record_id, None)
        if before is None:
            return None
        _take_out(self.order, record_id)
        self._forget(before.record)
        return before.record

    def _forget(self, record: R) -> None:
        """All but its id by which the record was found."""
        for name in self._kind.called(record):
            if self.by_name.get(name) == record.id:  # else another has it by now
                del self.by_name[name]
        vm_id = self._kind.vm_of(record)
        if vm_id:
            mine = self._by_vm[vm_id]
            _take_out(mine, record.id)
            if not mine:
                del self._by_vm[vm_id]


def _take_out(ids: list[str], one: str) -> None:
    del ids[bisect.bisect_left(ids, one)]
