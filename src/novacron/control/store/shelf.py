"""The cache of one kind of record: every record by its id, names, VM, node, labels and marks, oldest first."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Generic, TypeVar

import msgspec

from novacron.control.store.kinds import Kind, R

K = TypeVar("K")


class Stored(msgspec.Struct, Generic[R], frozen=True, gc=False):
    """A record and the store revision that last changed it (its ETag)."""

    record: R
    modified: int


class Shelf(Generic[R]):
    """All records of one kind. Lists of ids are in order of birth: ids are born ascending."""

    def __init__(self, kind: Kind[R]) -> None:
        self._kind = kind
        self.by_id: dict[str, Stored[R]] = {}
        self.by_name: dict[str, str] = {}
        self.order: list[str] = []
        self._by_vm: dict[str, list[str]] = {}
        self._by_node: dict[str, list[str]] = {}
        self._by_label: dict[tuple[str, str], list[str]] = {}
        self._by_mark: dict[str, list[str]] = {}
        self._busy: set[str] = set()

    def ids_of(self, vm_id: str) -> list[str]:
        """Of the records of that VM; none of a kind whose records have no VM."""
        return self._by_vm.get(vm_id, [])

    def ids_on(self, node_id: str) -> list[str]:
        """Of the records on that node; none of a kind whose records are on no node."""
        return self._by_node.get(node_id, [])

    def ids_marked(self, mark: str) -> list[str]:
        """Of the records that have that mark."""
        return self._by_mark.get(mark, [])

    def busy(self) -> list[str]:
        """Ids of those that have a task; none of a kind whose records have none."""
        return sorted(self._busy)

    def narrowed(self, labels: Iterable[tuple[str, str]], node_id: str) -> list[str]:
        """The shortest list known that holds every record with all these labels (key and value) and on that node.

        It may hold others. No labels: whatever they are; empty node_id: wherever it is.
        """
        lists = [self._by_label.get(label, []) for label in labels]
        if node_id:
            lists.append(self.ids_on(node_id))
        return min(lists, key=len, default=self.order)

    def put(self, stored: Stored[R]) -> R | None:
        """The record as it is from now on; what it was before, or None: it is new."""
        record, record_id = stored.record, stored.record.id
        held = self.by_id.get(record_id)
        before = held.record if held else None
        self.by_id[record_id] = stored
        if before is None:
            _file(self.order, record_id)
        else:
            self._forget_names(before)
        for name in self._kind.called(record):
            self.by_name[name] = record_id
        self._refile(self._by_vm, record_id, self._kind.vm_of(before) if before else "", self._kind.vm_of(record))
        self._refile(self._by_node, record_id, self._kind.node_of(before) if before else "", self._kind.node_of(record))
        self._relabel(record_id, self._kind.labels_of(before) if before else {}, self._kind.labels_of(record))
        self._remark(record_id, self._kind.marks_of(before) if before else frozenset(), self._kind.marks_of(record))
        if self._kind.is_busy(record):
            self._busy.add(record_id)
        elif before is not None:
            self._busy.discard(record_id)
        return before

    def drop(self, record_id: str) -> R | None:
        """Without it from now on; what it was, or None: it was not there."""
        before = self.by_id.pop(record_id, None)
        if before is None:
            return None
        _take_out(self.order, record_id)
        self._busy.discard(record_id)
        self._forget_names(before.record)
        self._refile(self._by_vm, record_id, self._kind.vm_of(before.record), "")
        self._refile(self._by_node, record_id, self._kind.node_of(before.record), "")
        self._relabel(record_id, self._kind.labels_of(before.record), {})
        self._remark(record_id, self._kind.marks_of(before.record), frozenset())
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
            _unfile(files, record_id, before)
        if now:
            _file(files.setdefault(now, []), record_id)

    def _relabel(self, record_id: str, before: dict[str, str], now: dict[str, str]) -> None:
        if before == now:
            return
        for label in before.items():
            if now.get(label[0]) != label[1]:
                _unfile(self._by_label, record_id, label)
        for label in now.items():
            if before.get(label[0]) != label[1]:
                _file(self._by_label.setdefault(label, []), record_id)

    def _remark(self, record_id: str, before: frozenset[str], now: frozenset[str]) -> None:
        for mark in before - now:
            _unfile(self._by_mark, record_id, mark)
        for mark in now - before:
            _file(self._by_mark.setdefault(mark, []), record_id)


def _file(ids: list[str], one: str) -> None:
    if not ids or ids[-1] < one:  # as all do that come while the cache is filled
        ids.append(one)
    else:
        bisect.insort(ids, one)


def _unfile(files: dict[K, list[str]], record_id: str, key: K) -> None:
    mine = files[key]
    _take_out(mine, record_id)
    if not mine:
        del files[key]


def _take_out(ids: list[str], one: str) -> None:
    del ids[bisect.bisect_left(ids, one)]
