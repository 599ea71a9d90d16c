"""The migration verbs of a target: a machine is awaited, taken over and looked at, or what came of it goes again.

accept → (disks) → (stream) → take_over → verify, or settle            discard undoes accept
"""

from __future__ import annotations

import asyncio

import msgspec

from novacron.agent.clearing import Clearing
from novacron.agent.cold import Cold, bare
from novacron.agent.drivers.base import Driver, Launch
from novacron.agent.kept import going_on
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.network import Travel
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.agent.undo import Undo
from novacron.agent.warrant import floor_of
from novacron.errors import NotFound, NovaCronError, StaleGeneration, StateConflict
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.wire import moving


class Arrivals:
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
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._machines = machines
        self._cold = cold
        self._proxies = proxies
        self._travel = travel
        self._clearing = Clearing(ledger, provisioner, driver)

    async def accept(self, args: moving.Accept) -> moving.ReceptionAt:
        """Start it paused, waiting for its stream; one that `boots`: see that it can be started, and wait for that.

        Leftovers of an older migration of the machine are cleared first.

        :raise StateConflict: the machine lives here as this node's own.
        After a failure nothing of it is left but volumes, which are shared.
        """
        spec, migration_id = args.spec, args.migration_id
        async with self._ledger.turn(spec.vm_id):
            before = await self._ledger.admit(spec.vm_id, spec.generation)
            again = await self._clear_for(before, migration_id, anew=args.anew)
            resumed, resumes = (before.resumed, before.resumes) if again else ((), "")
            if not again:
                resumed = () if args.anew else going_on(before.kept, spec, args.receives)
                resumes = before.kept.migration_id if before.kept and resumed else ""
                await self._machines.remains.drop(before, resumed)
                made = tuple(volume_id for volume_id in args.receives if volume_id not in resumed)
                await self._provisioner.check_absent(spec, made)
                if args.belongings:
                    await self._provisioner.check_no_belongings(spec.vm_id)
            incoming = Holding(
                vm_id=spec.vm_id,
                generation=spec.generation,
                role=Role.INCOMING,
                spec=spec,
                migration_id=migration_id,
                boot_id=self._machines.boot_id,
                boots=args.boots,
                received=args.receives,
                belongings=args.belongings,
                resumable=before.resumable if again else (),
                resumed=resumed,
                resumes=resumes,
            )
            if args.boots and not again:
                await self._ledger.put(incoming)
                await self._cold.rehearse(spec, args.receives)
            if args.boots and not args.receives:
                return moving.ReceptionAt(host="", port=0, key_hex="")
            return await self._listen(incoming, args, again=again)

    async def _listen(self, incoming: Holding, args: moving.Accept, *, again: bool) -> moving.ReceptionAt:
        """Started and waiting, or found so. After a failure nothing of it is left, nor a volume that was to be filled
        (undone in reverse: its floor stays).
        """
        spec = incoming.spec if incoming.spec and not incoming.boots else bare(incoming.spec)
        received = incoming.received

        async def listen(launch: Launch) -> moving.ReceptionAt:
            at = await self._proxies.accept(self._driver, launch, args)
            if at.disks is None or not incoming.resumed:
                return at
            disks = msgspec.structs.replace(at.disks, resumed=incoming.resumed, resumes=incoming.resumes)
            return msgspec.structs.replace(at, disks=disks)

        if again:
            return await listen(await self._provisioner.prepare(spec, Undo(), fresh=received))
        async with Undo() as undo:
            undo.add("clear it away", lambda: self._clearing.clear(incoming))
            undo.add("delete its copies", lambda: self._remove_copies(incoming))
            undo.add("close its proxy", lambda: self._proxies.end(incoming.migration_id))
            await self._ledger.put(incoming)
            reception = await self._provisioner.boot(spec, listen, fresh=received)
            if reception.disks is not None:
                await self._ledger.put(msgspec.structs.replace(incoming, resumable=reception.disks.resumable))
            undo.success()
            return reception

    async def _clear_for(self, before: Holding, migration_id: str, *, anew: bool) -> bool:
        """Make room for an incoming machine; whether this very one is here already, and may stay (not `anew`)."""
        seen = self._driver.report(before.vm_id)
        alive = seen is not None and seen.status not in ENDED
        if before.role is Role.INCOMING:
            if before.migration_id == migration_id and alive and not (anew and before.resumed):
                return True
            await self._driver.discard(before.vm_id, before.migration_id)
            await self._remove_copies(before)
        elif alive:
            status = seen.status if seen else MachineStatus.UNKNOWN
            raise StateConflict.of(f"machine {before.vm_id}", status, sorted(ENDED), "accept")
        if self._driver.report(before.vm_id) is not None:
            await self._driver.forget(before.vm_id)
        return False

    async def take_over(self, args: moving.TakeOver) -> moving.Arrived:
        """Continue it as this node's own, under the generation that the commit wrote.

        The ledger is written while the guest resumes, not before: this is the guest's downtime. An agent that dies
        in between finds an incoming machine that runs, and knows what that means (`Machines.adopt`).

        :raise StaleGeneration: `generation` is not newer than the one it was accepted under.
        :raise NotFound: the migration's machine is not here. :raise Unavailable: see agent.member.Member.check.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or holding.migration_id != args.migration_id or holding.spec is None:
                raise NotFound(f"migration {args.migration_id} brought no machine {args.vm_id} here")
            if holding.role is Role.INCOMING and args.generation <= holding.spec.generation:
                raise StaleGeneration(
                    f"machine {args.vm_id} was accepted under generation {holding.spec.generation}; "
                    f"taking over needs a newer one, not {args.generation}"
                )
            if holding.role is Role.INCOMING:
                self._machines.check(args.vm_id, args.generation, args.epoch, floor_of(holding))
            spec = msgspec.structs.replace(holding.spec, generation=args.generation)
            # Its copied disks stay noted as received until it continued: one that never did is discarded with them.
            owned = msgspec.structs.replace(holding, role=Role.OWNED, generation=args.generation, spec=spec)
            if holding.boots:
                if holding.role is Role.INCOMING:
                    await self._driver.settle(args.vm_id, args.migration_id)  # what took in its disks
                return await self._boot(
                    holding, msgspec.structs.replace(owned, ended=None, received=(), belongings=False)
                )
            writing = asyncio.create_task(self._ledger.put(owned))
            try:
                await self._travel.arriving(spec, args.flows)
                arrival = await self._driver.take_over(args.vm_id, args.migration_id, args.generation, args.watch)
            except NovaCronError:
                await writing
                if self._still_incoming(args.vm_id):
                    await self._ledger.put(holding)
                    await self._travel.not_arrived(holding.spec)
                raise
            finally:
                await writing
            if owned.received or owned.belongings:
                await self._ledger.put(msgspec.structs.replace(owned, received=(), belongings=False))
            await self._travel.arrived(spec)
        report = msgspec.structs.replace(arrival.report, generation=args.generation)
        return moving.Arrived(resumed_ago_ms=arrival.resumed_ago_ms, report=report)

    async def _boot(self, holding: Holding, owned: Holding) -> moving.Arrived:
        try:
            await self._cold.boot_here(owned)
        except BaseException:
            await self._ledger.put(holding)  # nothing of it runs, for sure: it may be discarded
            raise
        report = self._machines.report(owned.vm_id)
        if report is None:
            raise NotFound(f"machine {owned.vm_id} went away meanwhile")
        return moving.Arrived(resumed_ago_ms=0.0, report=report)

    async def verify(self, args: moving.Verify) -> MachineReport:
        """Ask the hypervisor whether it really runs. :raise NotFound: nothing of it is here."""
        holding = self._ledger.check(args.vm_id, args.generation)
        if holding is None or holding.role is not Role.OWNED:
            raise NotFound(f"machine {args.vm_id} is not this node's own")
        report = await self._driver.verify(args.vm_id)
        if holding.spec is not None:  # after this the source's may be deleted
            await self._provisioner.flush_belongings(holding.spec)
        await self._proxies.end(args.migration_id)
        return msgspec.structs.replace(report, generation=holding.generation)

    def _still_incoming(self, vm_id: str) -> bool:
        """Whether the driver knows for sure that the machine never continued here."""
        seen = self._driver.report(vm_id)
        return seen is not None and seen.status is MachineStatus.INCOMING

    async def discard(self, args: moving.Discard) -> None:
        """End what `accept` started. What came with another migration is not touched.

        When this returns, the machine never continued here and never will under that migration.

        :raise StateConflict: it has taken over, or may have: its source must not continue.
        """
        async with self._ledger.turn(args.vm_id):
            holding = await self._ledger.admit(args.vm_id, args.generation)
            seen = self._driver.report(args.vm_id)
            ours = holding.role is Role.OWNED and holding.migration_id == args.migration_id
            if ours and not _never_continued(seen, args.generation):
                raise StateConflict.of(f"machine {args.vm_id}", "this node's own by now", ("incoming",), "discard")
            if not args.keep_s:
                holding = await self._machines.remains.drop(holding)
            if holding.role in (Role.OWNED, Role.LEAVING) and not ours:
                return
            if args.keep_s and await self._keep(holding, seen, args):
                return
            if holding.migration_id == args.migration_id or (seen and seen.migration_id == args.migration_id):
                await self._driver.discard(args.vm_id, args.migration_id)
                await self._proxies.end(args.migration_id)
                await self._remove_copies(holding)
                await self._clearing.clear(holding)

    async def _keep(self, holding: Holding, seen: MachineReport | None, args: moving.Discard) -> bool:
        """Whether what has come of its disks stays, and nothing else of it is here: only what its hypervisor closed in
        order, so that all of it is on its storage.
        """
        incoming = holding.role is Role.INCOMING and holding.migration_id == args.migration_id
        kept = self._machines.remains.kept(holding, args.keep_s)
        if not incoming or kept is None or seen is None or seen.status is not MachineStatus.INCOMING:
            return False
        try:
            closed = await self._driver.settle(args.vm_id, args.migration_id)
        except NovaCronError:  # it dies this moment, or hangs: `discard` ends it whatever it does
            closed = False
        if not closed:
            return False
        await self._proxies.end(args.migration_id)
        others = tuple(volume_id for volume_id in holding.received if volume_id not in kept.volumes)
        await self._provisioner.remove_volumes(others, holding.spec)
        await self._clearing.clear(holding, kept=kept)
        return True

    async def settle(self, args: moving.Settle) -> None:
        """Of a machine at rest whose disks have come: they stay, and nothing else of it is here any more."""
        async with self._ledger.turn(args.vm_id):
            holding = await self._ledger.admit(args.vm_id, args.generation)
            if holding.role is Role.INCOMING and holding.migration_id == args.migration_id:
                await self._driver.settle(args.vm_id, args.migration_id)
                await self._clearing.clear(holding)

    async def _remove_copies(self, holding: Holding) -> None:
        """What was made here for a machine that did not come."""
        await self._provisioner.remove_volumes(holding.received, holding.spec)
        if holding.belongings:
            await self._provisioner.remove_belongings(holding.vm_id)


def _never_continued(seen: MachineReport | None, generation: int) -> bool:
    """Whether what was to be taken over certainly never ran: it has that generation before it is told to."""
    stands = seen is not None and (seen.status is MachineStatus.INCOMING or seen.status in ENDED)
    return seen is not None and stands and seen.generation < generation
