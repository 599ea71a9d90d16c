"""The VMs that high availability is concerned with, kept up with the records: node by node, and those out of order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, Seen
from novacron.control.store.shelf import Stored
from novacron.model.ha import HaPolicy
from novacron.model.machine import ENDED
from novacron.model.vm import Vm, is_wanted, status_of

OURS = "ha."
"""How the codes of problems begin that are written here."""


def concerns(vm: Vm) -> bool:
    """Whether it is to be restarted, or its record says something of ours that must be taken back one day."""
    return vm.spec.ha.policy is not HaPolicy.NONE or _is_told(vm)


def is_uneasy(vm: Vm) -> bool:
    """Whether there may be something to do for it on a node that is up: it has ended there, or something is said."""
    return (is_wanted(vm) and status_of(vm) in ENDED) or _is_told(vm)


def _is_told(vm: Vm) -> bool:
    return vm.problem is not None and vm.problem.code.startswith(OURS)


class Protected:
    """Looks at every VM once, and from then on at those that change: most stay as they are for days."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._on_node: dict[str, dict[str, None]] = {}  # ids of nodes and of their VMs
        self._memory_mib: dict[str, int] = {}  # by node, of all of them together
        self._uneasy: set[str] = set()
        for stored in records.all(VMS):
            self._put(stored.record)
        records.subscribe(self._notice)

    def heaviest(self) -> list[str]:
        """Ids of the nodes that have some, those with the most memory of them first."""
        return sorted(self._memory_mib, key=lambda node_id: (-self._memory_mib[node_id], node_id))

    def count(self, node_id: str) -> int:
        """How many are on a node."""
        return len(self._on_node.get(node_id, ()))

    def on_node(self, node_id: str) -> Iterator[Stored[Vm]]:
        """Those of a node as they stand now; to be gone through at once, before anything is awaited."""
        return self._stored(self._on_node.get(node_id, ()))

    def uneasy(self) -> list[Stored[Vm]]:
        """Those for which there may be something to do where they are, oldest first (see `is_uneasy`)."""
        return list(self._stored(sorted(self._uneasy)))

    def _stored(self, ids: Iterable[str]) -> Iterator[Stored[Vm]]:
        return (stored for vm_id in ids if (stored := self._records.get(VMS, vm_id)) is not None)

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is not VMS:
                continue
            if change.before is not None:
                self._drop(change.before)
            if change.now is not None:
                self._put(change.now)

    def _put(self, vm: Vm) -> None:
        if concerns(vm):
            self._on_node.setdefault(vm.node_id, {})[vm.id] = None
            self._memory_mib[vm.node_id] = self._memory_mib.get(vm.node_id, 0) + vm.spec.memory_mib
            if is_uneasy(vm):
                self._uneasy.add(vm.id)

    def _drop(self, vm: Vm) -> None:
        self._uneasy.discard(vm.id)
        mine = self._on_node.get(vm.node_id)
        if mine is None or vm.id not in mine:
            return
        del mine[vm.id]
        self._memory_mib[vm.node_id] -= vm.spec.memory_mib
        if not mine:
            del self._on_node[vm.node_id], self._memory_mib[vm.node_id]
