"""The VMs that high availability is concerned with, kept up with the records: most clusters have many more besides."""

from __future__ import annotations

from collections.abc import Sequence

from novacron.control.store.kinds import VMS
from novacron.control.store.records import Records, Seen
from novacron.control.store.shelf import Stored
from novacron.model.ha import HaPolicy
from novacron.model.vm import Vm

OURS = "ha."
"""How the codes of problems begin that are written here."""


def concerns(vm: Vm) -> bool:
    """Whether it is to be restarted, or its record says something of ours that must be taken back one day."""
    return vm.spec.ha.policy is not HaPolicy.NONE or (vm.problem is not None and vm.problem.code.startswith(OURS))


class Protected:
    """Looks at every VM once, and from then on at those that change."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._ids = {stored.record.id for stored in records.all(VMS) if concerns(stored.record)}
        records.subscribe(self._notice)

    def all(self) -> list[Stored[Vm]]:
        """As they stand now, oldest first."""
        found = (self._records.get(VMS, vm_id) for vm_id in sorted(self._ids))
        return [stored for stored in found if stored is not None]

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            vm = change.now or change.before
            if change.kind is not VMS or vm is None:
                continue
            if change.now is not None and concerns(change.now):
                self._ids.add(vm.id)
            else:
                self._ids.discard(vm.id)
