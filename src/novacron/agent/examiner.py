"""The verbs that look at a machine after its move: what is here of it, and whether its guest lives."""

from __future__ import annotations

import msgspec

from novacron.agent.drivers.base import Driver, FileAt
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.provisioner import Provisioner
from novacron.errors import NotFound
from novacron.model.blocks import BlockDigests
from novacron.model.machine import MachineReport
from novacron.model.verdict import Signs
from novacron.wire import moving


class Examiner:
    """Takes no turn: it waits for no other verb's work on the machine, and none for it."""

    def __init__(self, ledger: Ledger, provisioner: Provisioner, driver: Driver, machines: Machines) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._machines = machines

    async def examine(self, args: moving.Examine) -> Signs:
        """Its guest's heartbeat and clock. :raise NotFound: it is not this node's own. Else raises as the driver."""
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.role is not Role.OWNED:
            raise NotFound(f"machine {args.vm_id} is not this node's own")
        return await self._driver.examine(args.vm_id)

    async def read_blocks(self, args: moving.ReadBlocks) -> BlockDigests:
        """What is in blocks of a disk. :raise NotFound: nothing of the migration is here. Else raises as the driver."""
        holding = self._ledger.check(args.vm_id, args.generation)
        mine = holding is not None and holding.role in (Role.OWNED, Role.LEAVING)
        if holding is None or not mine or holding.migration_id != args.migration_id:
            raise NotFound(f"migration {args.migration_id} has left nothing of machine {args.vm_id} here")
        if args.ends:
            await self._driver.unwatch(args.vm_id, args.volume_id)
            return BlockDigests(blocks=(), digests=())
        if args.written:
            return await self._driver.digest_blocks(args.vm_id, args.volume_id, args.blocks, written=True)
        if args.sample is not None:
            found = await self._driver.sample_blocks(args.vm_id, args.volume_id, args.sample)
        else:
            found = await self._driver.digest_blocks(args.vm_id, args.volume_id, args.blocks)
        return msgspec.structs.replace(found, at=await self._place(holding, args.volume_id))

    async def _place(self, holding: Holding, volume_id: str) -> str:
        disks = holding.spec.disks if holding.spec else ()
        disk = next((one for one in disks if one.volume_id == volume_id), None)
        if holding.spec is None or disk is None:
            return ""
        source = (await self._provisioner.volume(holding.spec, disk)).source
        return str(source.path) if isinstance(source, FileAt) else ""

    async def whereabouts(self, args: moving.Whereabouts) -> MachineReport:
        """What the hypervisor says now. Nothing of it here: absent, or how it ended.

        :raise StaleGeneration: this node knows of a newer owner than who asks.
        """
        self._ledger.check(args.vm_id, args.generation)
        if self._driver.report(args.vm_id) is not None:
            await self._driver.look(args.vm_id)
        return self._machines.report_or_absent(args.vm_id, args.generation)
