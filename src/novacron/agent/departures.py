"""The migration verbs of a source: its disks are copied, it is sent, and it is let go of, or runs here as before.

(copy_disks) → send, or halt (agent.cold) → (stands still) → release            reclaim undoes these
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from novacron.agent.clearing import Clearing
from novacron.agent.cold import Cold
from novacron.agent.copier import place_of
from novacron.agent.drivers.base import Driver, ProgressListener
from novacron.agent.drivers.handoff import Departure, Reception
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.network import Travel
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.errors import MigrationFailed, NotFound, StateConflict
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.migration import Figures
from novacron.wire import moving


class Departures:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(
        self,
        ledger: Ledger,
        provisioner: Provisioner,
        driver: Driver,
        machines: Machines,
        cold: Cold,
        *,
        proxies: Proxies,
        travel: Travel,
        teller: Callable[[str], ProgressListener],
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._machines = machines
        self._cold = cold
        self._proxies = proxies
        self._travel = travel
        self._teller = teller
        self._clearing = Clearing(ledger, provisioner, driver)

    async def send(self, args: moving.Send) -> moving.Departed:
        """Move its state; answers when both sides stand still. Joins a transfer that is under way.

        Cancelling this stops the waiting, not the transfer: taking it back is `reclaim`'s work alone.

        :raise NotFound: nothing of it is here. :raise MigrationFailed: it runs as before.
        """
        async with self._ledger.turn(args.vm_id):
            holding, seen = self._ledger.check(args.vm_id, args.generation), self._driver.report(args.vm_id)
            if holding is None or holding.spec is None or seen is None:
                raise NotFound(f"no machine {args.vm_id} runs on this node")
            if holding.role not in (Role.OWNED, Role.LEAVING):
                raise StateConflict.of(f"machine {args.vm_id}", holding.role, ("owned",), "send")
            if holding.called_off == args.migration_id:
                raise MigrationFailed(f"migration {args.migration_id} was called off")
            leaving = msgspec.structs.replace(
                holding,
                role=Role.LEAVING,
                generation=args.generation,
                migration_id=args.migration_id,
                sent=args.migration_id,
            )
            await self._ledger.put(leaving)
        tell = self._teller(args.migration_id)

        def act(to: Reception) -> Awaitable[Departure]:
            return self._driver.send(args.vm_id, args.migration_id, to, args.goals, tell, args.tactics, args.volumes)

        again = holding.sent == args.migration_id  # it may be leaving by it already: its disks are copied first
        left = seen.status is MachineStatus.HANDED_OFF
        departure = await self._proxies.send(args, holding.spec, act, again=again, left=left)
        luggage = await self._travel.leaving(holding.spec)
        stopped_ago_ms = departure.stopped_ago_ms + luggage.packed_in_ms
        return moving.Departed(stopped_ago_ms=stopped_ago_ms, flows=luggage.flows)

    async def copy_disks(self, args: moving.CopyDisks) -> moving.DisksCopied:
        """Make the target's disks like its own, and keep them so. Joins a copy under way; cancelled, it goes on.

        :raise NotFound: nothing of it is here. :raise MigrationFailed: a disk could not be copied; it runs as before.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is not None and holding.called_off == args.migration_id:
                raise MigrationFailed(f"migration {args.migration_id} was called off")
            if args.at_rest:
                await self._cold.open_disks(holding, args)
            elif holding is None or self._driver.report(args.vm_id) is None:
                raise NotFound(f"no machine {args.vm_id} runs on this node")
            elif holding.role not in (Role.OWNED, Role.LEAVING):
                raise StateConflict.of(f"machine {args.vm_id}", holding.role, ("owned",), "copy the disks of")
            else:
                leaving = msgspec.structs.replace(
                    holding, role=Role.LEAVING, generation=args.generation, migration_id=args.migration_id
                )
                await self._ledger.put(leaving)
        tell = self._teller(args.migration_id)
        copied = await self._driver.copy_disks(
            args.vm_id, args.migration_id, place_of(args.to), args.volumes, args.goals, tell
        )
        return moving.DisksCopied(copied_bytes=copied)

    async def release(self, args: moving.Release) -> Figures:
        """End this node's claim. Its volumes are the target's now and stay, but for copies that the order names: those
        are deleted. Asked again: the same figures.

        :raise StateConflict: the machine is this node's own under that very generation.
        """
        async with self._ledger.turn(args.vm_id):
            before = self._ledger.check(args.vm_id, args.generation)
            if before is not None and before.role is Role.GONE and before.migration_id == args.migration_id:
                return before.figures or Figures()
            own = before is not None and before.role in (Role.OWNED, Role.INCOMING)
            if before is not None and own and before.generation == args.generation:
                raise StateConflict.of(f"machine {args.vm_id}", before.role, ("leaving",), "release")
            leaving = Holding(vm_id=args.vm_id, generation=args.generation, role=Role.LEAVING)
            if before is not None:  # the floor first: from here on nothing makes it run again
                leaving = msgspec.structs.replace(before, role=Role.LEAVING, generation=args.generation)
            await self._ledger.put(leaving)
            measured = await self._driver.release(args.vm_id, args.migration_id)
            figures = self._proxies.figured(args.migration_id, measured)
            await self._provisioner.remove_volumes(args.volumes, leaving.spec)
            if args.belongings:
                await self._provisioner.remove_belongings(args.vm_id)
            await self._clearing.clear(leaving, args.migration_id, figures)
            await self._proxies.end(args.migration_id)
        return figures

    async def reclaim(self, args: moving.Reclaim) -> MachineReport:
        """Make it run as before, at whatever moment of the transfer. Absent: its last report.

        :raise StaleGeneration: the ownership has moved. :raise NotFound: it was never here.
        :raise Unavailable: see agent.member.Member.check.
        :raise StateConflict: it works, or may, with the copies of its disks.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or holding.role not in (Role.OWNED, Role.LEAVING):
                raise NotFound(f"machine {args.vm_id} is not this node's own")
            if holding.pivoting:
                raise StateConflict.of(f"machine {args.vm_id}", "on its new disks", ("on its old disks",), "reclaim")
            if holding.role is Role.LEAVING:
                self._machines.check(args.vm_id, args.generation, args.epoch, holding.generation)
            seen = self._driver.report(args.vm_id)
            if holding.at_rest:
                return await self._cold.close_disks(holding, args)
            halted = holding.halted == args.migration_id
            if seen is not None and seen.status not in ENDED and not halted:
                await self._driver.reclaim(args.vm_id, args.migration_id)
            await self._proxies.end(args.migration_id)
            if holding.elsewhere is not None:
                await self._provisioner.remove_volumes(holding.received, holding.elsewhere)
            own = msgspec.structs.replace(
                holding,
                role=Role.OWNED,
                received=(),
                elsewhere=None,
                generation=args.generation,
                migration_id="",
                called_off=args.migration_id,
                halted="",
                ended=None if halted else holding.ended,
            )
            await (self._cold.revive(own) if halted else self._ledger.put(own))
        report = self._machines.report(args.vm_id)
        if report is None:
            raise NotFound(f"machine {args.vm_id} went away meanwhile")
        return report
