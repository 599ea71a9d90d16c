"""The machines of this node: started, stopped and remembered; survivors of an agent restart are adopted.

A verb is refused when it speaks of an ownership older than the ledger's floor (R9). That the server may speak for an
ownership at all is its own duty (R2: it calls `start` only under the committed record). Nothing here deletes a volume
but `remove`, and only those it is told by name (R6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from novacron.agent import console
from novacron.agent.drivers.base import Driver, Launch
from novacron.agent.kept import Remains
from novacron.agent.ledger import Holding, Ledger, Role
from novacron.agent.orders import ELSEWHERE, Check, is_stale, start_floor, takes_no_part
from novacron.agent.parking import check_parkable
from novacron.agent.provisioner import Provisioner
from novacron.agent.undo import Undo
from novacron.clock import Clock
from novacron.errors import Busy, NotFound, NovaCronError, StateConflict, Unsupported
from novacron.model.ha import HaPolicy
from novacron.model.machine import ENDED, MachineReport, MachineSpec, MachineStatus, Nic, StopMode
from novacron.wire import agent as wire
from novacron.wire.verb import MachineVerb

TRIM_INTERVAL_S = 2.0
OWN = frozenset({MachineStatus.RUNNING, MachineStatus.PAUSED, MachineStatus.STALLED})
"""What an incoming machine never is before it is taken over."""

Listener = Callable[[MachineReport], None]


class Machines:
    """Verbs take their wire struct and answer its result. All are idempotent."""

    def __init__(
        self,
        ledger: Ledger,
        provisioner: Provisioner,
        driver: Driver,
        clock: Clock,
        boot_id: str = "",
        check: Check = takes_no_part,
    ) -> None:
        self._ledger = ledger
        self._provisioner = provisioner
        self._driver = driver
        self._clock = clock
        self.boot_id = boot_id
        self.check = check
        self.remains = Remains(ledger, provisioner, clock)
        self._listeners: list[Listener] = []
        self._writing: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("machines")

    # -- what is here --------------------------------------------------------------------------------------

    async def adopt(self) -> tuple[MachineReport, ...]:
        """Once, at the agent's start: read the ledger, find the processes that live, settle what ended meanwhile."""
        self._ledger.load()
        self._driver.subscribe(self._noticed)
        adopted = {report.vm_id: report for report in await self._driver.adopt(self._provisioner.run_dirs())}
        for holding in self._ledger.all():
            await self._settle(holding, adopted.get(holding.vm_id))
        for report in adopted.values():
            held = self._ledger.get(report.vm_id)
            if report.status not in ENDED and (held is None or held.role is Role.GONE):
                self._log.error("a machine runs that this node does not hold; it is left alone", vm_id=report.vm_id)
        return self.reports()

    async def _settle(self, holding: Holding, seen: MachineReport | None) -> None:
        """Bring a holding in step with what was found of it."""
        parked = holding.ended is not None and holding.ended.status is MachineStatus.PARKED
        if parked and not self._provisioner.parking.holds(holding.vm_id):
            lost = self._report_of(holding, MachineStatus.STOPPED, "what was parked of it went with the node's boot")
            await self._ledger.put(msgspec.structs.replace(holding, ended=lost))
        if holding.role is Role.GONE or holding.ended is not None or _waits_to_boot(holding):
            return
        if seen is None or (seen.status in ENDED and seen.generation <= holding.generation):
            ended = seen or self._report_of(holding, MachineStatus.CRASHED, self._how_it_ended(holding))
            await self._ledger.put(msgspec.structs.replace(holding, ended=ended))
        elif holding.role is Role.INCOMING and (seen.status in OWN or seen.generation > holding.generation):
            # Only `take_over` does that: the agent died before its ledger was written. The commit added one.
            generation = max(holding.generation + 1, seen.generation)
            await self._ledger.put(msgspec.structs.replace(holding, role=Role.OWNED, generation=generation))

    def _how_it_ended(self, holding: Holding) -> str:
        if holding.boot_id and holding.boot_id != self.boot_id:
            return "its node was restarted"
        return "its process ended while the agent was not running"

    def subscribe(self, listener: Listener) -> None:
        """`listener` is called in the event loop at every change of a machine's status."""
        self._listeners.append(listener)

    def report(self, vm_id: str) -> MachineReport | None:
        """The machine as it is now; None: nothing of it is here."""
        holding = self._ledger.get(vm_id)
        seen = self._driver.report(vm_id)
        if holding is None or holding.role is Role.GONE:
            return seen
        if seen is None:
            waits = _waits_to_boot(holding)
            seen = holding.ended or self._report_of(holding, MachineStatus.INCOMING if waits else MachineStatus.ABSENT)
        moves = holding.migration_id if _waits_to_boot(holding) else ""
        return msgspec.structs.replace(seen, generation=holding.generation, migration_id=seen.migration_id or moves)

    def report_or_absent(self, vm_id: str, generation: int) -> MachineReport:
        """As `report`; one of which nothing is here is absent under `generation`."""
        absent = MachineReport(
            vm_id=vm_id, generation=generation, status=MachineStatus.ABSENT, since=self._clock.wall()
        )
        return self.report(vm_id) or absent

    def reports(self) -> tuple[MachineReport, ...]:
        """All machines of this node, those it does not hold but whose process lives included."""
        vm_ids = {holding.vm_id: None for holding in self._ledger.all()}
        vm_ids |= {report.vm_id: None for report in self._driver.reports()}
        return tuple(report for report in map(self.report, vm_ids) if report is not None)

    # -- verbs ---------------------------------------------------------------------------------------------

    async def start(self, args: wire.Start) -> MachineReport:
        """Boot it, or find it booted (paused counts).

        :raise StateConflict: a copy is here that a migration brought or took away.
        :raise Busy: likewise, and nothing of it runs; its migration must end first.
        :raise StaleGeneration, Unavailable: the order does not count (see agent.member.Member.check).
        After a failure nothing of it runs; its volumes stay.
        """
        spec = args.spec
        async with self._ledger.turn(spec.vm_id):
            before = self._ledger.get(spec.vm_id)
            floor = start_floor(before, args)
            self.check(spec.vm_id, spec.generation, args.epoch, floor)
            if is_stale(before, self._driver.report(spec.vm_id), args):
                await self._driver.kill(spec.vm_id, "its migration has ended, and it is started anew")
            holding = await self._ledger.admit(spec.vm_id, spec.generation)
            seen = self._driver.report(spec.vm_id)
            if seen is not None and seen.status not in ENDED:
                self._refuse_elsewhere(holding, seen.status, "start")
                return self._must_report(spec.vm_id)
            if before is not None and spec.generation < floor:
                self._refuse_held(before, "start")
            await self.remains.drop(holding)  # it is no disk
            await self.boot(spec, lambda launch: self._launch_ordered(launch, args))
        return self._must_report(spec.vm_id)

    async def _launch_ordered(self, launch: Launch, args: wire.Start) -> MachineReport:
        """Boot it if the order still counts, now that all is prepared, and once more when it runs."""
        spec = args.spec
        self.check(spec.vm_id, spec.generation, args.epoch, spec.generation)
        report = await self.launch(launch)
        try:
            if spec.ha.policy is not HaPolicy.NONE:
                self.check(spec.vm_id, spec.generation, args.epoch, spec.generation)
        except NovaCronError as late:
            await self._driver.kill(spec.vm_id, late.message)
            raise
        return report

    async def boot(self, spec: MachineSpec, act: Callable[[Launch], Awaitable[MachineReport]]) -> None:
        """Hold it as this node's own and have the driver `act`; for who has its turn, and knows that it has ended.

        After a failure nothing of it runs; its volumes stay.
        """
        await self._begin(spec)
        try:
            await self._provisioner.boot(spec, act)
        except BaseException as error:
            await self._end(spec.vm_id, MachineStatus.ABSENT, str(error) or "its start was cancelled")
            raise

    async def launch(self, launch: Launch) -> MachineReport:
        """Have the driver boot it, or have it begin as a copy, which gets its cards once it is a machine of its own."""
        outfitted = await asyncio.to_thread(self._provisioner.parking.outfitted, launch)
        if outfitted.state is None:
            return await self._driver.start(outfitted)
        report = await self._driver.start(msgspec.structs.replace(outfitted, nics=()))
        try:
            return await self._give_cards(launch) if launch.nics else report
        except BaseException:
            await self._driver.stop(launch.spec.vm_id, StopMode.FORCED, 0.0)
            raise

    async def _give_cards(self, launch: Launch) -> MachineReport:
        adjusted = await self._driver.adjust(launch)
        if adjusted.pending:
            raise Unsupported("a copy of a parked machine could not be given its cards", adjusted.pending)
        return adjusted.report

    async def _begin(self, spec: MachineSpec) -> None:
        if self._driver.report(spec.vm_id) is not None:
            await self._driver.forget(spec.vm_id)
        await self._ledger.put(
            Holding(vm_id=spec.vm_id, generation=spec.generation, role=Role.OWNED, spec=spec, boot_id=self.boot_id)
        )

    async def stop(self, args: wire.Stop) -> MachineReport:
        """End it. Holds no turn while the guest takes its time, so that a forced stop can overtake a graceful one.

        :raise StateConflict: graceful, and a migration has it.
        """
        async with self._ledger.turn(args.vm_id):
            holding = await self._ledger.admit(args.vm_id, args.generation)
            seen = self._driver.report(args.vm_id)
            if seen is not None and args.mode is StopMode.GRACEFUL:
                self._refuse_elsewhere(holding, seen.status, "stop")
        if seen is not None:
            await self._driver.stop(args.vm_id, args.mode, args.deadline_s)
        async with self._ledger.turn(args.vm_id):
            seen = self._driver.report(args.vm_id)
            if seen is None or seen.status in ENDED:
                await self._provisioner.unplug(holding.spec)
                await self.keep_end(args.vm_id)
        return self.report_or_absent(args.vm_id, args.generation)

    async def pause(self, args: wire.Pause) -> MachineReport:
        """:raise NotFound: nothing of it is here. :raise StateConflict: a migration has it."""
        await self._own(args, "pause")
        await self._driver.pause(args.vm_id)
        return self._must_report(args.vm_id)

    async def resume(self, args: wire.Resume) -> MachineReport:
        """:raise NotFound: nothing of it is here. :raise StateConflict: a migration has it."""
        await self._own(args, "resume")
        await self._driver.resume(args.vm_id)
        return self._must_report(args.vm_id)

    async def park(self, args: wire.Park) -> MachineReport:
        """Keep its memory and its devices' state for copies, and end it.

        :raise NotFound: nothing of it is here. :raise StateConflict: it does not run, or a migration has it.
        :raise Unsupported: it was not made for that, or has cards, which copies would share.
        """
        async with self._ledger.turn(args.vm_id):
            held = self.report(args.vm_id)
            if held is not None and held.status is MachineStatus.PARKED:
                return held
            await self._own(args, "park")
            holding = self._ledger.get(args.vm_id)
            parking = self._provisioner.parking
            check_parkable(holding.spec if holding else None, may_hold=parking.may_hold(args.vm_id))
            await self._driver.park(args.vm_id, parking.state(args.vm_id))
            await self.keep_end(args.vm_id)
        return self._must_report(args.vm_id)

    async def adjust(self, args: wire.Adjust) -> wire.Adjusted:
        """Make the running machine as the spec says, as far as that can be. Holds no turn while a guest takes its time.

        What is about to be plugged in is in the ledger first, so that it can be taken away whatever happens.

        :raise NotFound: nothing of it is here. :raise StateConflict: it does not run, or a migration has it.
        """
        verb = MachineVerb(vm_id=args.spec.vm_id, generation=args.spec.generation)
        await self._own(verb, "adjust")
        spec = msgspec.structs.replace(args.spec, ha=self._held(args.spec).ha)  # it is guarded from its start, or not
        async with self._ledger.turn(spec.vm_id):
            await self._own(verb, "adjust")
            before = await self._hold(spec, self._held(spec).nics)
            launch = await self._provisioner.prepare(spec, Undo(), running=True)  # undone, it would unplug what runs
        done = await self._driver.adjust(launch)
        async with self._ledger.turn(spec.vm_id):
            if self._held(spec) == before:  # else another verb has begun something since
                await self._provisioner.unplug(before, but=done.now.nics)
                await self._hold(done.now, ())
        report = self._must_report(spec.vm_id)
        return wire.Adjusted(report=report, now=done.now, pending=done.pending)

    def _held(self, spec: MachineSpec) -> MachineSpec:
        holding = self._ledger.get(spec.vm_id)
        return holding.spec if holding and holding.spec else spec

    async def _hold(self, spec: MachineSpec, nics: tuple[Nic, ...]) -> MachineSpec:
        """Note the spec in the ledger, with the cards of `nics` that it has not."""
        mine = {nic.id for nic in spec.nics}
        noted = msgspec.structs.replace(spec, nics=(*spec.nics, *(nic for nic in nics if nic.id not in mine)))
        holding = self._ledger.get(spec.vm_id)
        if holding is not None and holding.spec != noted:
            await self._ledger.put(msgspec.structs.replace(holding, spec=noted))
        return noted

    async def remove(self, args: wire.Remove) -> None:
        """Forget it and delete the volumes named. Its floor is kept.

        :raise StateConflict: it has not ended.
        """
        async with self._ledger.turn(args.vm_id):
            holding = await self._ledger.admit(args.vm_id, args.generation)
            seen = self._driver.report(args.vm_id)
            if seen is not None and seen.status not in ENDED:
                raise StateConflict.of(f"machine {args.vm_id}", seen.status, sorted(ENDED), "remove")
            if seen is not None:
                await self._driver.forget(args.vm_id)
            await self.remains.drop(holding)
            await self._provisioner.clear_away(args.vm_id, holding.spec)
            await asyncio.to_thread(self._provisioner.parking.clear, args.vm_id)
            await self._provisioner.remove_volumes(args.volumes, holding.spec)
            await self._provisioner.remove_belongings(args.vm_id)
            await self._ledger.put(Holding(vm_id=args.vm_id, generation=holding.generation, role=Role.GONE))

    async def trim_consoles(self) -> None:
        """For as long as the agent runs: no guest fills the disk through its serial line."""
        while True:
            for run_dir in self._provisioner.run_dirs():
                try:
                    await asyncio.to_thread(console.trim, run_dir)
                except OSError as wrong:
                    self._log.warning("a console log was not trimmed", log=str(run_dir), why=str(wrong))
            await self._clock.sleep(TRIM_INTERVAL_S)

    async def console(self, args: wire.Console) -> wire.ConsoleText:
        """The last bytes of its serial log. :raise NotFound: nothing of it is here."""
        if self._ledger.check(args.vm_id, args.generation) is None:
            raise NotFound(f"no machine {args.vm_id} on this node")
        return await asyncio.to_thread(console.tail, self._provisioner.run_dir(args.vm_id), args.max_bytes)

    # -- inside --------------------------------------------------------------------------------------------

    async def _own(self, args: MachineVerb, verb: str) -> None:
        seen = self._driver.report(args.vm_id)
        if seen is None:
            self._ledger.check(args.vm_id, args.generation)
            raise NotFound(f"no machine {args.vm_id} runs on this node")
        holding = await self._ledger.admit(args.vm_id, args.generation)
        self._refuse_elsewhere(holding, seen.status, verb)
        if seen.status in ENDED:
            raise StateConflict.of(f"machine {args.vm_id}", seen.status, ("running", "paused"), verb)

    def _refuse_elsewhere(self, holding: Holding, status: MachineStatus, verb: str) -> None:
        if status in ELSEWHERE:
            raise StateConflict.of(f"machine {holding.vm_id}", status, ("running", "paused"), verb)
        self._refuse_held(holding, verb)

    def _refuse_held(self, holding: Holding, verb: str) -> None:
        if holding.role in (Role.LEAVING, Role.INCOMING):
            raise Busy(f"cannot {verb} machine {holding.vm_id}: migration {holding.migration_id} has it")

    def _noticed(self, report: MachineReport) -> None:
        """The driver saw a change. An end is written down, so that it is known after a restart too."""
        if report.status in ENDED:
            task = asyncio.create_task(self.keep_end(report.vm_id))
            self._writing.add(task)
            task.add_done_callback(self._written)
        seen = self.report(report.vm_id)
        for listener in self._listeners if seen is not None else ():
            listener(seen or report)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._log.error("could not write down how a machine ended", exc_info=failure)

    async def keep_end(self, vm_id: str) -> None:
        """Write down how it ended, if it has."""
        holding, seen = self._ledger.get(vm_id), self._driver.report(vm_id)
        if holding is None or holding.role is Role.GONE or seen is None or seen.status not in ENDED:
            return
        if holding.ended != seen:
            await self._ledger.put(msgspec.structs.replace(holding, ended=seen))
        if seen.status is not MachineStatus.PARKED:
            await asyncio.to_thread(self._provisioner.parking.clear, vm_id)

    async def _end(self, vm_id: str, status: MachineStatus, reason: str) -> None:
        holding = self._ledger.get(vm_id)
        if holding is not None:
            ended = self._report_of(holding, status, reason)
            await self._ledger.put(msgspec.structs.replace(holding, ended=ended))

    def _report_of(self, holding: Holding, status: MachineStatus, reason: str = "") -> MachineReport:
        return MachineReport(
            vm_id=holding.vm_id, generation=holding.generation, status=status, since=self._clock.wall(), reason=reason
        )

    def _must_report(self, vm_id: str) -> MachineReport:
        report = self.report(vm_id)
        if report is None:
            raise NotFound(f"machine {vm_id} went away meanwhile")
        return report


def _waits_to_boot(holding: Holding) -> bool:
    """Whether it came by a move without memory and was not taken over: nothing of it was ever started here."""
    return holding.role is Role.INCOMING and holding.boots


def running(reports: Iterable[MachineReport]) -> int:
    """How many of them run."""
    return sum(report.status is MachineStatus.RUNNING for report in reports)
