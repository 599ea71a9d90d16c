"""What came of a machine's disks with a migration that failed: kept here for a while, for the next one to go on with.

It is no disk: no machine starts with it, and it goes when the next migration does not go on with it, when the server
says that it is of no use any more, when its machine is to start here in another way, or when its time is over.
"""

from __future__ import annotations

import datetime

import msgspec
import structlog

from novacron.agent.ledger import Holding, Kept, Ledger, Role
from novacron.agent.provisioner import Provisioner
from novacron.clock import Clock
from novacron.errors import NovaCronError
from novacron.model.machine import Disk, MachineSpec
from novacron.wire import agent as wire

LOOK_INTERVAL_S = 60.0


def going_on(kept: Kept | None, spec: MachineSpec, receives: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the volumes to be received that are there in part, of the same size and in the same place. Pure."""
    if kept is None or kept.spec.pools != spec.pools:
        return ()
    there = {disk.volume_id: _place(disk) for disk in kept.spec.disks if disk.volume_id in kept.volumes}
    wanted = {disk.volume_id: _place(disk) for disk in spec.disks if disk.volume_id in receives}
    return tuple(volume_id for volume_id, place in wanted.items() if there.get(volume_id) == place)


def _place(disk: Disk) -> tuple[int, str, str]:
    return disk.size_bytes, disk.pool_id, disk.backing_digest


class Remains:
    """Its methods but `expire` are for who has the machine's turn in the ledger."""

    def __init__(self, ledger: Ledger, provisioner: Provisioner, clock: Clock) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._clock = clock
        self._log = structlog.get_logger("kept")

    def all(self) -> tuple[wire.KeptCopy, ...]:
        """What is kept on this node."""
        return tuple(
            wire.KeptCopy(vm_id=one.vm_id, generation=one.generation, migration_id=one.kept.migration_id)
            for one in self._ledger.all()
            if one.kept is not None
        )

    def kept(self, holding: Holding, keep_s: float) -> Kept | None:
        """How it is noted that what has come of an incoming machine's disks stays; None: nothing can."""
        if holding.spec is None or not holding.resumable:
            return None
        until = self._clock.wall() + datetime.timedelta(seconds=keep_s)
        return Kept(migration_id=holding.migration_id, spec=holding.spec, volumes=holding.resumable, until=until)

    async def drop(self, holding: Holding, but: tuple[str, ...] = ()) -> Holding:
        """Delete it, but for these volumes, and know of it no more."""
        if holding.kept is None:
            return holding
        going = tuple(volume_id for volume_id in holding.kept.volumes if volume_id not in but)
        await self._provisioner.remove_volumes(going, holding.kept.spec)
        without = msgspec.structs.replace(holding, kept=None)
        if not but:
            await self._ledger.put(without)
        return without

    async def expire(self) -> None:
        """For as long as the agent runs: what has had its time goes."""
        while True:
            for holding in self._ledger.all():
                if holding.kept is not None and holding.kept.until <= self._clock.wall():
                    await self._expire(holding.vm_id)
            await self._clock.sleep(LOOK_INTERVAL_S)

    async def _expire(self, vm_id: str) -> None:
        async with self._ledger.turn(vm_id):
            holding = self._ledger.get(vm_id)
            if holding is None or holding.role is not Role.GONE or holding.kept is None:
                return
            try:
                await self.drop(holding)
            except NovaCronError as wrong:
                self._log.warning("what is left of a copy cannot be deleted", vm_id=vm_id, why=wrong.message)
