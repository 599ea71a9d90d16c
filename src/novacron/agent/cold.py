"""A move without memory, as this node does its half: shut down here, boot there, or boot here again after all."""

from __future__ import annotations

import msgspec

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.provisioner import Provisioner
from novacron.agent.undo import Undo
from novacron.clock import Clock
from novacron.errors import MigrationFailed, NotFound
from novacron.model.machine import ENDED, MachineSpec, StopMode
from novacron.wire import agent as wire

REMAINING_DEADLINE_S = 60.0
"""How long a guest that was asked to shut down is still waited for when it is to run here again."""


class Cold:
    """Its callers hold the machine's turn in the ledger, but for `halt`, which takes it."""

    def __init__(
        self, ledger: Ledger, provisioner: Provisioner, driver: Driver, machines: Machines, clock: Clock
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._machines = machines
        self._clock = clock

    async def rehearse(self, spec: MachineSpec) -> None:
        """(target) Make all it needs here and take it away again, so that what is missing is known while it runs."""
        async with Undo() as undo:
            await self._provisioner.prepare(spec, undo)

    async def halt(self, args: wire.Halt) -> wire.Departed:
        """(source) End it, noted first: from here on only `reclaim` makes it run here.

        Holds no turn while the guest takes its time, so that a `reclaim` or a forced stop can overtake it.

        :raise NotFound: nothing of it is here. :raise MigrationFailed: it ended by itself, or was called off.
        """
        asked_at_s = self._clock.monotonic_s()
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or holding.role not in (Role.OWNED, Role.LEAVING):
                raise NotFound(f"machine {args.vm_id} is not this node's own")
            if holding.called_off == args.migration_id:
                raise MigrationFailed(f"migration {args.migration_id} was called off")
            if holding.halted != args.migration_id:
                await self._note_halt(holding, args)
        await self._driver.stop(args.vm_id, StopMode.GRACEFUL, args.deadline_s)
        async with self._ledger.turn(args.vm_id):
            await self._machines.keep_end(args.vm_id)
        return wire.Departed(stopped_ago_ms=(self._clock.monotonic_s() - asked_at_s) * 1e3)

    async def _note_halt(self, holding: Holding, args: wire.Halt) -> None:
        seen = self._driver.report(args.vm_id)
        if seen is None or seen.status in ENDED:
            raise MigrationFailed(f"machine {args.vm_id} ended by itself before it was moved")
        leaving = msgspec.structs.replace(
            holding,
            role=Role.LEAVING,
            generation=args.generation,
            migration_id=args.migration_id,
            halted=args.migration_id,
        )
        await self._ledger.put(leaving)

    async def boot_here(self, holding: Holding) -> None:
        """Boot it as this node's own, or find it booted. The holding is written first, and says OWNED.

        After a failure nothing of it runs; the ledger still says what it was told.
        """
        await self._ledger.put(holding)
        seen = self._driver.report(holding.vm_id)
        if holding.spec is None or (seen is not None and seen.status not in ENDED):
            return
        if seen is not None:
            await self._driver.forget(holding.vm_id)
        await self._provisioner.boot(holding.spec, self._machines.launch)

    async def revive(self, holding: Holding) -> None:
        """(source) Boot it here again after a `halt`. A guest on its way down is let come to its end first."""
        if self._driver.report(holding.vm_id) is not None:
            await self._driver.stop(holding.vm_id, StopMode.GRACEFUL, REMAINING_DEADLINE_S)
        await self.boot_here(holding)
