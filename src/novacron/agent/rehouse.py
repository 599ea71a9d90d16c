"""The disks of a machine into other pools of this node: copied as it runs (or rests), then it works with the copies.

copy_here → pivot (or, at rest, halt) → tidy       reclaim undoes copy_here
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from novacron.agent.cold import Cold
from novacron.agent.drivers.base import Driver, ProgressListener
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.provisioner import Provisioner
from novacron.errors import MigrationFailed, NotFound, StateConflict
from novacron.model.machine import MachineReport
from novacron.wire import moving


class Rehouse:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(
        self,
        ledger: Ledger,
        provisioner: Provisioner,
        driver: Driver,
        cold: Cold,
        teller: Callable[[str], ProgressListener],
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._cold = cold
        self._teller = teller

    async def copy_here(self, args: moving.CopyHere) -> moving.DisksCopied:
        """Make the new volumes, noted first, and copy. Joins a copy under way; cancelled, it goes on.

        :raise NotFound: nothing of it is here. :raise Conflict: one of the volumes is there already.
        :raise MigrationFailed: a disk could not be copied; it runs as before.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is not None and holding.called_off == args.migration_id:
                raise MigrationFailed(f"migration {args.migration_id} was called off")
            again = holding is not None and holding.migration_id == args.migration_id and bool(holding.received)
            if not again:
                await self._provisioner.check_absent(args.wanted, args.volumes)
            if args.at_rest:
                await self._cold.open_disks(holding, args)
                holding = self._ledger.get(args.vm_id)
            await self._ledger.put(self._leaving(holding, args))
            files = [
                await self._provisioner.placed(args.wanted, disk)
                for disk in args.wanted.disks
                if disk.volume_id in args.volumes
            ]
        tell = self._teller(args.migration_id)
        copied = await self._driver.copy_here(args.vm_id, args.migration_id, tuple(files), args.goals, tell)
        return moving.DisksCopied(copied_bytes=copied)

    def _leaving(self, holding: Holding | None, args: moving.CopyHere) -> Holding:
        if holding is None or (not args.at_rest and self._driver.report(args.vm_id) is None):
            raise NotFound(f"no machine {args.vm_id} runs on this node")
        if holding.role not in (Role.OWNED, Role.LEAVING):
            raise StateConflict.of(f"machine {args.vm_id}", holding.role, ("owned",), "copy the disks of")
        return msgspec.structs.replace(
            holding,
            role=Role.LEAVING,
            generation=args.generation,
            migration_id=args.migration_id,
            received=args.volumes,
            elsewhere=args.wanted,
        )

    async def pivot(self, args: moving.Pivot) -> MachineReport:
        """It works with the copies alone; noted first. :raise MigrationFailed: it does not, with none of them."""
        async with self._ledger.turn(args.vm_id):
            holding = self._of(args.vm_id, args.generation, args.migration_id)
            await self._ledger.put(msgspec.structs.replace(holding, pivoting=args.migration_id))
            try:
                return await self._driver.pivot(args.vm_id, args.migration_id, args.wanted)
            except MigrationFailed:
                await self._ledger.put(msgspec.structs.replace(holding, pivoting=""))
                raise

    async def tidy(self, args: moving.Tidy) -> None:
        """The machine is this node's own again, and what its disks were before is deleted."""
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is not None and holding.migration_id == args.migration_id:
                seen = self._driver.report(args.vm_id)
                if holding.at_rest and seen is not None:
                    await self._driver.forget(args.vm_id)
                own = msgspec.structs.replace(
                    holding,
                    role=Role.OWNED,
                    spec=args.wanted,
                    migration_id="",
                    received=(),
                    elsewhere=None,
                    pivoting="",
                    at_rest=False,
                    halted="",
                )
                await self._ledger.put(own)
            await self._provisioner.remove_volumes(args.volumes, args.spec)

    def _of(self, vm_id: str, generation: int, migration_id: str) -> Holding:
        holding = self._ledger.check(vm_id, generation)
        if holding is None or holding.role is not Role.LEAVING or holding.migration_id != migration_id:
            raise NotFound(f"migration {migration_id} moves no disks of machine {vm_id} here")
        return holding
