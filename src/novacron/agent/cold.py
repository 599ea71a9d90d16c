"""A move without memory, as this node does its half: shut down here, boot there, or boot here again after all."""

from __future__ import annotations

import msgspec

from novacron.agent.drivers.base import Driver
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.provisioner import Provisioner
from novacron.agent.undo import Undo
from novacron.clock import Clock
from novacron.errors import MigrationFailed, NotFound, StateConflict
from novacron.model.machine import ENDED, Firmware, MachineReport, MachineSpec, MachineStatus, StopMode
from novacron.wire import moving

BARE_MEMORY_MIB = 32
REMAINING_DEADLINE_S = 60.0
"""How long a guest that was asked to shut down is still waited for when it is to run here again."""


def bare(spec: MachineSpec | None) -> MachineSpec:
    """The machine as far as it takes to have its disks open. :raise NotFound: there is no spec."""
    if spec is None:
        raise NotFound("it is not known what the machine is made of")
    return MachineSpec(
        vm_id=spec.vm_id,
        generation=spec.generation,
        vcpus=1,
        memory_mib=BARE_MEMORY_MIB,
        machine_type=spec.machine_type,
        cpu_model=spec.cpu_model,
        machine=spec.machine,
        firmware=Firmware.BIOS,
        disks=spec.disks,
        pools=spec.pools,
        isolation_slot=spec.isolation_slot,
    )


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

    async def rehearse(self, spec: MachineSpec, receives: tuple[str, ...]) -> None:
        """(target) Make all it needs here and take it away again, so that what is missing is known while it runs.

        receives: volumes that are made here, and stay, to be filled.
        """
        async with Undo() as undo:
            await self._provisioner.prepare(spec, undo, fresh=receives)

    async def open_disks(self, holding: Holding | None, args: moving.CopyDisks | moving.CopyHere) -> None:
        """(source) Have the disks of a machine at rest open, noted first: from here on only `reclaim` lets it run.

        :raise StateConflict: it runs, or its other half is here.
        """
        seen = self._driver.report(args.vm_id)
        if holding is not None and holding.at_rest and holding.migration_id == args.migration_id:
            before = holding
        elif (seen is not None and seen.status not in ENDED) or (holding and holding.role is Role.INCOMING):
            status = seen.status if seen else MachineStatus.INCOMING
            raise StateConflict.of(f"machine {args.vm_id}", status, sorted(ENDED), "copy the disks of")
        else:
            before = holding or Holding(vm_id=args.vm_id, generation=args.generation, role=Role.GONE)
            before = await self._machines.remains.drop(before)
        leaving = msgspec.structs.replace(
            before,
            role=Role.LEAVING,
            generation=args.generation,
            spec=args.spec,
            migration_id=args.migration_id,
            boot_id=self._machines.boot_id,
            at_rest=True,
        )
        await self._ledger.put(leaving)
        await self._provisioner.boot(bare(args.spec), lambda launch: self._driver.open_disks(launch, args.migration_id))

    async def close_disks(self, holding: Holding, args: moving.Reclaim) -> MachineReport:
        """(source) A machine at rest is at rest again, here."""
        seen = self._driver.report(holding.vm_id)
        if seen is not None:
            await self._driver.stop(holding.vm_id, StopMode.FORCED, 0.0)
            await self._driver.forget(holding.vm_id)
        if holding.elsewhere is not None:
            await self._provisioner.remove_volumes(holding.received, holding.elsewhere)
        ended = MachineReport(
            vm_id=holding.vm_id,
            generation=args.generation,
            status=MachineStatus.STOPPED,
            since=self._clock.wall(),
        )
        own = msgspec.structs.replace(
            holding,
            role=Role.OWNED,
            generation=args.generation,
            migration_id="",
            called_off=args.migration_id,
            ended=holding.ended or ended,
            received=(),
            elsewhere=None,
            at_rest=False,
        )
        await self._ledger.put(own)
        return ended

    async def halt(self, args: moving.Halt) -> moving.Departed:
        """(source) End it, noted first: from here on only `reclaim` makes it run here.

        Holds no turn while the guest takes its time, so that a `reclaim` or a forced stop can overtake it.

        :raise NotFound: nothing of it is here. :raise MigrationFailed: it ended by itself, or was called off, or its
        disks are not surely alike on both sides.
        """
        asked_at_s = self._clock.monotonic_s()
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or holding.role not in (Role.OWNED, Role.LEAVING):
                raise NotFound(f"machine {args.vm_id} is not this node's own")
            if holding.called_off == args.migration_id:
                raise MigrationFailed(f"migration {args.migration_id} was called off")
            if holding.halted != args.migration_id and not holding.at_rest:
                await self._note_halt(holding, args)
        await self._driver.halt(args.vm_id, args.migration_id, args.volumes, args.deadline_s)
        async with self._ledger.turn(args.vm_id):
            await self._machines.keep_end(args.vm_id)
        return moving.Departed(stopped_ago_ms=(self._clock.monotonic_s() - asked_at_s) * 1e3)

    async def _note_halt(self, holding: Holding, args: moving.Halt) -> None:
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
