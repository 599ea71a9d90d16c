"""The verbs that bring what belongs to a machine and is no volume to a node that does not share its source's pool.

source  pack        target  accept (makes its directory, noted) → unpack → ...      discard deletes it again
"""

from __future__ import annotations

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Ledger, Role
from novacron.agent.provisioner import Provisioner
from novacron.errors import NotFound, StateConflict
from novacron.model.machine import ENDED, MachineStatus
from novacron.wire.belongings import Belongings, PackBelongings, UnpackBelongings


class Carry:
    """Verbs take their wire struct and answer its result. All are idempotent; what they carry is never logged."""

    def __init__(self, ledger: Ledger, provisioner: Provisioner, driver: Driver) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver

    async def pack(self, args: PackBelongings) -> Belongings:
        """(source) :raise StateConflict: it may write them this moment. :raise Unavailable: its pool is not there."""
        async with self._ledger.turn(args.vm_id):
            self._ledger.check(args.vm_id, args.generation)
            seen = self._driver.report(args.vm_id)
            still = ENDED if args.with_tpm else ENDED | {MachineStatus.HANDED_OFF}
            if seen is not None and seen.status not in still:
                raise StateConflict.of(f"machine {args.vm_id}", seen.status, sorted(still), "copy the belongings of")
            keep = await self._provisioner.belongings_of(args.vm_id)
            return Belongings(files=await self._driver.pack(keep, with_tpm=args.with_tpm))

    async def unpack(self, args: UnpackBelongings) -> None:
        """(target) :raise NotFound: nothing of that migration waits here, or it brings no belongings."""
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            waits = holding is not None and holding.role is Role.INCOMING and holding.belongings
            if holding is None or holding.spec is None or not waits or holding.migration_id != args.migration_id:
                raise NotFound(f"migration {args.migration_id} awaits no belongings of machine {args.vm_id} here")
            uid = self._provisioner.uid_of(holding.spec)
            keep = await self._provisioner.belongings_of(args.vm_id)
            await self._driver.unpack(keep, args.files, uid)
