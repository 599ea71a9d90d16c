"""The migration verbs of this node: one step at a time, no states; each finds its work done when asked again.

    target   accept → (disks) → (stream) → take_over → verify           discard undoes accept
    source   (copy_disks) → send or halt → (stands still) → release     reclaim undoes these

What a move without memory (agent.cold) and one that ends in post-copy (agent.postcopy) need beside is in their files.

Before the commit the source holds the machine under its generation, after it the target does under the next. The
roles in the ledger (LEAVING, INCOMING) keep ordinary verbs from running a copy whose other half may run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import msgspec

from novacron.agent.bandwidth import Bandwidth
from novacron.agent.carry import Carry
from novacron.agent.cold import Cold, bare
from novacron.agent.copier import Copier, place_of
from novacron.agent.drivers.base import Driver, Launch, ProgressListener
from novacron.agent.drivers.handoff import Departure, Reception
from novacron.agent.examiner import Examiner
from novacron.agent.kept import going_on
from novacron.agent.ledger import Holding, Kept, Ledger, Role
from novacron.agent.machines import Machines
from novacron.agent.network import StayAtHome, Travel
from novacron.agent.postcopy import Announce, Postcopy
from novacron.agent.provisioner import Provisioner
from novacron.agent.proxies import Proxies
from novacron.agent.rehouse import Rehouse
from novacron.agent.undo import Undo
from novacron.clock import Clock
from novacron.errors import MigrationFailed, NotFound, NovaCronError, StaleGeneration, StateConflict
from novacron.model.machine import ENDED, MachineReport, MachineStatus
from novacron.model.migration import Figures
from novacron.wire import agent as wire
from novacron.wire import moving


class Mover:
    """Verbs take their wire struct and answer its result."""

    def __init__(
        self,
        ledger: Ledger,
        provisioner: Provisioner,
        driver: Driver,
        machines: Machines,
        *,
        proxies: Proxies,
        announce: Announce,
        clock: Clock,
        travel: Travel | None = None,
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._machines = machines
        self._proxies = proxies
        self._announce = announce
        self._travel = travel or StayAtHome()
        self.examiner = Examiner(ledger, provisioner, driver, machines)
        self.carry = Carry(ledger, provisioner, driver)
        self.cold = Cold(ledger, provisioner, driver, machines, clock)
        self.rehouse = Rehouse(ledger, provisioner, driver, self.cold, self._teller)
        self.copier = Copier(ledger, driver, self._teller)
        self.bandwidth = Bandwidth(ledger, driver, proxies)
        self.postcopy = Postcopy(ledger, driver, host=proxies.host, announce=announce)

    # -- target --------------------------------------------------------------------------------------------

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
                await self.cold.rehearse(spec, args.receives)
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
            at = await self._proxies.accept(
                self._driver,
                launch,
                incoming.migration_id,
                args.proxy,
                received,
                channels=args.channels,
                paused=args.paused,
            )
            if at.disks is None or not incoming.resumed:
                return at
            disks = msgspec.structs.replace(at.disks, resumed=incoming.resumed, resumes=incoming.resumes)
            return msgspec.structs.replace(at, disks=disks)

        if again:
            return await listen(await self._provisioner.prepare(spec, Undo(), fresh=received))
        async with Undo() as undo:
            gone = Holding(vm_id=spec.vm_id, generation=spec.generation, role=Role.GONE)
            undo.add("forget it", lambda: self._ledger.put(gone))
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
        :raise NotFound: the migration's machine is not here.
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
            await self.cold.boot_here(owned)
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
                await self._depart(holding)

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
        await self._depart(holding, kept=kept)
        return True

    async def settle(self, args: moving.Settle) -> None:
        """Of a machine at rest whose disks have come: they stay, and nothing else of it is here any more."""
        async with self._ledger.turn(args.vm_id):
            holding = await self._ledger.admit(args.vm_id, args.generation)
            if holding.role is Role.INCOMING and holding.migration_id == args.migration_id:
                await self._driver.settle(args.vm_id, args.migration_id)
                await self._depart(holding)

    # -- source --------------------------------------------------------------------------------------------

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
                await self.cold.open_disks(holding, args)
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

    def _teller(self, migration_id: str) -> ProgressListener:
        return lambda progress: self._announce(wire.MigrationProgress(migration_id=migration_id, progress=progress))

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
            await self._depart(leaving, args.migration_id, figures)
            await self._proxies.end(args.migration_id)
        return figures

    async def reclaim(self, args: moving.Reclaim) -> MachineReport:
        """Make it run as before, at whatever moment of the transfer. Absent: its last report.

        :raise StaleGeneration: the ownership has moved. :raise NotFound: it was never here.
        :raise StateConflict: it works, or may, with the copies of its disks.
        """
        async with self._ledger.turn(args.vm_id):
            holding = self._ledger.check(args.vm_id, args.generation)
            if holding is None or holding.role not in (Role.OWNED, Role.LEAVING):
                raise NotFound(f"machine {args.vm_id} is not this node's own")
            if holding.pivoting:
                raise StateConflict.of(f"machine {args.vm_id}", "on its new disks", ("on its old disks",), "reclaim")
            seen = self._driver.report(args.vm_id)
            if holding.at_rest:
                return await self.cold.close_disks(holding, args)
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
            await (self.cold.revive(own) if halted else self._ledger.put(own))
        report = self._machines.report(args.vm_id)
        if report is None:
            raise NotFound(f"machine {args.vm_id} went away meanwhile")
        return report

    # -- inside --------------------------------------------------------------------------------------------

    async def _remove_copies(self, holding: Holding) -> None:
        """What was made here for a machine that did not come."""
        await self._provisioner.remove_volumes(holding.received, holding.spec)
        if holding.belongings:
            await self._provisioner.remove_belongings(holding.vm_id)

    async def _depart(
        self, holding: Holding, migration_id: str = "", figures: Figures | None = None, kept: Kept | None = None
    ) -> None:
        """Nothing of it runs here any more: clear away all but its volumes and the floor."""
        if self._driver.report(holding.vm_id) is not None:
            await self._driver.forget(holding.vm_id)
        await self._provisioner.clear_away(holding.vm_id, holding.spec)
        gone = Holding(
            vm_id=holding.vm_id,
            generation=holding.generation,
            role=Role.GONE,
            migration_id=migration_id,
            figures=figures,
            kept=kept,
        )
        await self._ledger.put(gone)


def _never_continued(seen: MachineReport | None, generation: int) -> bool:
    """Whether what was to be taken over certainly never ran: it has that generation before it is told to."""
    stands = seen is not None and (seen.status is MachineStatus.INCOMING or seen.status in ENDED)
    return seen is not None and stands and seen.generation < generation
