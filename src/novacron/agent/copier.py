"""The disks of a machine that runs on, copied for the machine of a rehearsal: nothing of the original changes."""

from __future__ import annotations

from collections.abc import Callable

from novacron.agent.drivers.base import Driver, ProgressListener
from novacron.agent.drivers.handoff import DiskReception
from novacron.agent.ledger import Ledger, Role
from novacron.errors import NotFound, StateConflict
from novacron.model.migration import Goals
from novacron.wire import moving


class Copier:
    """Verbs take their wire struct and answer its result. Nothing is noted: who asked has the VM held meanwhile."""

    def __init__(self, ledger: Ledger, driver: Driver, teller: Callable[[str], ProgressListener]) -> None:
        self._ledger = ledger
        self._driver = driver
        self._teller = teller

    async def copy_out(self, args: moving.CopyOut) -> moving.DisksCopied:
        """Copy its disks into the target's. Joins a copy under way; cancelled, it goes on.

        :raise NotFound: nothing of it runs here. :raise StateConflict: a migration has it.
        :raise MigrationFailed: a disk could not be copied; it runs as before.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or self._driver.report(args.vm_id) is None:
                raise NotFound(f"no machine {args.vm_id} runs on this node")
            if holding.role is not Role.OWNED:
                raise StateConflict.of(f"machine {args.vm_id}", holding.role, ("owned",), "copy the disks of")
        goals = Goals(bandwidth_bytes_per_s=args.bandwidth_bytes_per_s)
        tell = self._teller(args.rehearsal_id)
        copied = await self._driver.copy_out(
            args.vm_id, args.rehearsal_id, place_of(args.to), args.exports, goals, tell
        )
        return moving.DisksCopied(copied_bytes=copied)

    async def drop_copy(self, args: moving.DropCopy) -> None:
        """Nothing of the copying is left. A machine that is another node's by now took nothing of it along.

        :raise StaleGeneration: this node knows of a newer owner than who asks.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is not None and holding.role is Role.OWNED:
                await self._driver.drop_copy(args.vm_id, args.rehearsal_id)


def place_of(at: moving.DisksAt) -> DiskReception:
    """Where the target takes in disks, as the driver is told."""
    return DiskReception(
        host=at.host,
        port=at.port,
        key_hex=at.key_hex,
        layered=at.layered,
        resumable=at.resumable,
        resumed=at.resumed,
        resumes=at.resumes,
    )
