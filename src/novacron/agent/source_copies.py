"""Copies of disks that a move left at its source and its VM left: deleted here when a person says so."""

from __future__ import annotations

from collections.abc import Iterator

from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.provisioner import Provisioner
from novacron.errors import Reason, StateConflict
from novacron.wire import moving


class SourceCopies:
    """The verb takes its wire struct. Nothing is noted: asked again it finds its work done."""

    def __init__(self, ledger: Ledger, provisioner: Provisioner) -> None:
        self._ledger = ledger
        self._provisioner = provisioner

    async def discard(self, args: moving.DiscardCopies) -> None:
        """Delete them. After a failure some may be left: ask again.

        :raise StaleGeneration: the VM has moved on since who asks looked: its disks may be here again.
        :raise StateConflict: one is a disk of a machine here, or is about to be. :raise Unavailable: no such pool now.
        """
        async with self._ledger.turn(args.vm_id):
            self._ledger.check(args.vm_id, args.generation)
            for copy in args.copies:
                for holding in self._ledger.all():
                    if copy.volume_id in _claims(holding):
                        raise _in_use(copy.volume_id, holding)
                await self._provisioner.remove_volume(copy.volume_id, copy.pool)


def _claims(holding: Holding) -> Iterator[str]:
    """Volumes that are the machine's on this node, whole or in part."""
    for spec in (holding.spec, holding.elsewhere):
        if spec is not None and holding.role is not Role.GONE:
            yield from (disk.volume_id for disk in spec.disks)
    if holding.kept is not None:
        yield from holding.kept.volumes


def _in_use(volume_id: str, holding: Holding) -> StateConflict:
    words = f"volume {volume_id} is a disk of machine {holding.vm_id} on this node"
    remedy = "leave it if it is the disk itself; if it has one in another pool, ask again once it is elsewhere"
    return StateConflict(words, [Reason("volume.in_use", words, subject=volume_id, remedy=remedy)])
