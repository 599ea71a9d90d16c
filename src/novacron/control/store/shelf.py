"""The cache of one kind of record: every record by its id, its names, its VM and its node, oldest first."""

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
    """All records of one kind. `order`, `ids_of` and `ids_on` are in order of birth: ids are born ascending."""

    def __init__(self, kind: Kind[R]) -> None:
        self._kind = kind
        self.by_id: dict[str, Stored[R]] = {}
        self.by_name: dict[str, str] = {}
        self.order: list[str] = []
        self._by_vm: dict[str, list[str]] = {}
        self._by_node: dict[str, list[str]] = {}

    def ids_of(self, vm_id: str) -> list[str]:
        """Of the records of that VM; none of a kind whose records have no VM."""
        return self._by_vm.get(vm_id, [])

    def ids_on(self, node_id: str) -> list[str]:
        """Of the records on that node; none of a kind whose records are on no node."""
        return self._by_node.get(node_id, [])

    def put(self, stored: Stored[R]) -> R | None:
        """The record as it is from now on; what it was before, or None: it is new."""
        record, record_id = stored.record, stored.record.id
        held = self.by_id.get(record_id)
        before = held.record if held else None
        self.by_id[record_id] = stored
        if before is None:
            bisect.insort(self.order, record_id)
        else:
            self._forget_names(before)
        for name in self._kind.called(record):
            self.by_name[name] = record_id
        self._refile(self._by_vm, record_id, self._kind.vm_of(before) if before else "", self._kind.vm_of(record))
        self._refile(self._by_node, record_id, self._kind.node_of(before) if before else "", self._kind.node_of(record))
        return before

    def drop(self, record_id: str) -> R | None:
        """Without it from now on; what it was, or None: it was not there."""
        before = self.by_id.pop(record_id, None)
        if before is None:
            return None
        _take_out(self.order, record_id)
        self._forget_names(before.record)
        self._refile(self._by_vm, record_id, self._kind.vm_of(before.record), "")
        self._refile(self._by_node, record_id, self._kind.node_of(before.record), "")
        return before.record

    def _forget_names(self, record: R) -> None:
        for name in self._kind.called(record):
            if self.by_name.get(name) == record.id:  # else another has it by now
                del self.by_name[name]

    def _refile(self, files: dict[str, list[str]], record_id: str, before: str, now: str) -> None:
        """Move its id from what it was filed under to what it is now; empty: under nothing."""
        if before == now:
            return
        if before:
            mine = files[before]
            _take_out(mine, record_id)
            if not mine:
                del files[before]
        if now:
            bisect.insort(files.setdefault(now, []), record_id)


def _take_out(ids: list[str], one: str) -> None:
    del ids[bisect.bisect_left(ids, one)]
