"""Performs one step of a migration, or takes one back, by calling the agent it concerns.

A step that was begun before is simply asked for again. What must not be stored (the key of the stream) is asked of
the target again after a restart: `accept` gives the same answer for the same migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from novacron.clock import Clock
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.migrations.bandwidth import BandwidthTeller
from novacron.control.migrations.comparison import watched
from novacron.control.migrations.copying import Copying, goes_on, kept_s, told, volumes_of
from novacron.control.migrations.disks import relocated
from novacron.control.migrations.examination import Examination
from novacron.control.migrations.journal import Journal
from novacron.control.migrations.progress import ProgressWriter
from novacron.control.migrations.reachable import Reachability
from novacron.control.migrations.transport import scope_of
from novacron.control.networks.states import snapshot, stamped, states
from novacron.control.orders import epoch_of
from novacron.control.store.kinds import NETWORKS, NODES, VMS
from novacron.control.store.records import Records
from novacron.errors import NotFound, StateConflict
from novacron.failpoint import reach
from novacron.model.kept_copies import keeps_copies
from novacron.model.machine import MachineReport
from novacron.model.migration import Figures, Migration, MigrationKind, Transport, tactics_of
from novacron.model.migration_steps import Do, Step, Undo, next_action
from novacron.model.network import Flow
from novacron.model.vm import Vm, cards_of, running_protection, running_spec
from novacron.wire import moving
from novacron.wire.network import NetworkApply

VERB_DEADLINE_S = 30.0
SEND_SLACK_S = 30.0
SHUTDOWN_DEADLINE_S = 60.0
"""How long a guest that is asked to shut down for a cold migration may take before it is made to."""
BOOT_DEADLINE_S = 120.0
REST_DEADLINE_S = 3600.0
"""One wait for the rest of a post-copy; it is asked for again as long as it takes."""
LINK_RETRY_S = 1.0


Perform = Callable[[Migration, Step], Awaitable[None]]
"""Does a step and writes it down; what comes before the commit hands over in the same write."""


class _Departure(msgspec.Struct, frozen=True):
    """When the source stood still, by this process's clock, and the conversations that the target is to go on with."""

    stopped_at_s: float
    flows: tuple[Flow, ...]


class Performer:
    """Holds only what may be lost: where targets listen, when sources stopped and what they left behind."""

    def __init__(
        self,
        records: Records,
        agents: Agents,
        clock: Clock,
        journal: Journal,
        distribution: Distribution | None = None,
    ) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._journal = journal
        self._distribution = distribution or Distribution(records, agents)
        self._receptions: dict[str, moving.ReceptionAt] = {}
        self._departures: dict[str, _Departure] = {}
        self._reachability = Reachability(records, agents, clock)
        self._examination = Examination(records, agents, clock)
        self._progress = ProgressWriter(agents, clock, journal)
        self._bandwidth = BandwidthTeller(records, agents, clock)
        copying = Copying(records, agents, journal, self._progress, self._bandwidth, self._distribution, self.reception)
        self._steps: dict[str, Perform] = {
            "accept": self._accept,
            "copy_disks": copying.copy_disks,
            "copy_here": copying.copy_here,
            "copy_belongings": copying.copy_belongings,
            "pivot": copying.pivot,
            "send": self._send,
            "halt": self._halt,
            "commit": self._commit,
            "open_postcopy": self._open_postcopy,
            "take_over": self._take_over,
            "fetch_rest": self._fetch_rest,
            "settle": copying.settle,
            "verify": self._verify,
            "release": self._release,
            "tidy": copying.tidy,
        }

    async def do(self, migration: Migration, step: Step) -> None:
        """Perform the step and write it down.

        :raise NodeUnreachable, DeadlineExceeded: not known to be done; ask again.
        :raise NovaCronError: the agent's refusal: the step failed.
        """
        await self._journal.begin(migration, step)
        reach(f"conductor.{step.name}:began")
        await self._do(migration, step)
        reach(f"conductor.{step.name}:did")

    async def _do(self, migration: Migration, step: Step) -> None:
        perform = self._steps.get(step.name)
        if perform is None:
            raise NotFound(f"migration step {step.name!r} has no performer")
        await perform(migration, step)

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._reachability.close()

    async def undo(self, migration: Migration, step: Step) -> None:
        """Take the step back and write it down. Raises as `do`."""
        match step.undo:
            case "discard":
                verb = moving.Discard(
                    vm_id=migration.vm_id,
                    generation=self._vm(migration).generation,
                    migration_id=migration.id,
                    keep_s=kept_s(self._records, migration),
                )
                await self._agents.call(migration.target_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
                self._receptions.pop(migration.id, None)
                await self._journal.undid(migration.id, step)
            case "reclaim":
                await self._reclaim(migration, step)
            case "retake":
                await self._journal.retake(migration.id, step)
            case _:
                raise NotFound(f"undo {step.undo!r} of migration step {step.name!r} has no performer")

    async def do_without_source(self, migration: Migration) -> bool:
        """The machine runs on the target and only the source is silent: let it be told when it returns."""
        upcoming = next_action(migration)
        if not isinstance(upcoming, Do) or upcoming.step.name != "release":
            return False
        note = "the source did not answer; what is left there is removed when it returns"
        await self._journal.did(migration.id, upcoming.step, note=note)
        return True

    async def undo_without_target(self, migration: Migration) -> bool:
        """The machine runs on the source and only the target is silent: let it be told when it returns."""
        upcoming = next_action(migration)
        if not isinstance(upcoming, Undo) or upcoming.step.name != "accept":
            return False
        note = "the target did not answer; what is left there is removed when it returns"
        await self._journal.undid(migration.id, upcoming.step, note)
        return True

    # -- the steps ------------------------------------------------------------------------------------------

    async def reception(self, migration: Migration, *, anew: bool = False) -> moving.ReceptionAt:
        """Where the target listens; starts it there when it does not yet. anew: with disks that hold nothing yet."""
        known = self._receptions.get(migration.id)
        if known is not None and not anew:
            return known
        vm = self._vm(migration)
        runs = msgspec.structs.replace(running_spec(vm), ha=running_protection(vm))
        verb = moving.Accept(
            migration_id=migration.id,
            spec=told(self._records, vm, relocated(runs, migration.disks)),
            boots=migration.kind is MigrationKind.COLD,
            receives=volumes_of(migration),
            belongings=migration.belongings,
            paused=migration.paused,
            proxy=self._proxy(migration, vm),
            channels=migration.channels,
            anew=anew or not goes_on(self._records, migration),
        )
        await self._spread_networks(migration, vm)
        await self._distribution.bring_all(migration.target_node, verb.spec)
        answer = await self._agents.call(migration.target_node, verb, moving.ReceptionAt, deadline_s=VERB_DEADLINE_S)
        self._receptions[migration.id] = answer
        return answer

    def _proxy(self, migration: Migration, vm: Vm) -> moving.Proxy | None:
        """What the target's stream proxy is told; None: it needs none."""
        if migration.goals.transport is not Transport.PROXY or migration.kind is MigrationKind.COLD:
            return None
        facts = self._records.find(NODES, migration.source_node).record.facts
        return moving.Proxy(peer=facts.migration_address if facts else "", scope=scope_of(vm))

    async def _spread_networks(self, migration: Migration, vm: Vm) -> None:
        """The target has the machine's networks before the machine comes. What it refuses refuses the move."""
        for network_id in dict.fromkeys(nic.network_id for nic in cards_of(vm)):
            network = self._records.find(NETWORKS, network_id).record
            state = states(snapshot(self._records, network)).get(migration.target_node)
            if state is not None:
                verb = NetworkApply(state=stamped(state, self._records.revision))
                await self._agents.call(migration.target_node, verb, type(None), deadline_s=VERB_DEADLINE_S)

    async def _accept(self, migration: Migration, step: Step) -> None:
        await self.reception(migration)
        await self._journal.did(migration.id, step)

    async def _send(self, migration: Migration, step: Step) -> None:
        verb = moving.Send(
            vm_id=migration.vm_id,
            generation=migration.generation,
            migration_id=migration.id,
            to=await self.reception(migration),
            goals=migration.goals,
            tactics=tactics_of(migration),
            volumes=volumes_of(migration),
        )
        deadline_s = migration.goals.finish_within_s + SEND_SLACK_S
        async with self._progress.of(migration.id), self._bandwidth.of(migration):
            departed = await self._agents.call(migration.source_node, verb, moving.Departed, deadline_s=deadline_s)
        self._note_departure(migration, departed)
        await self._journal.departed(migration, step)

    def _note_departure(self, migration: Migration, departed: moving.Departed) -> None:
        stopped_at_s = self._clock.monotonic_s() - departed.stopped_ago_ms / 1e3
        self._departures[migration.id] = _Departure(stopped_at_s, departed.flows)

    async def _commit(self, migration: Migration, step: Step) -> None:  # noqa: ARG002
        await self._journal.hand_over(migration.id, None)

    async def _halt(self, migration: Migration, step: Step) -> None:
        verb = moving.Halt(
            vm_id=migration.vm_id,
            generation=migration.generation,
            migration_id=migration.id,
            deadline_s=SHUTDOWN_DEADLINE_S,
            volumes=volumes_of(migration),
        )
        deadline_s = SHUTDOWN_DEADLINE_S + VERB_DEADLINE_S
        departed = await self._agents.call(migration.source_node, verb, moving.Departed, deadline_s=deadline_s)
        self._note_departure(migration, departed)
        await self._journal.departed(migration, step)

    async def _open_postcopy(self, migration: Migration, step: Step) -> None:
        generation = self._vm(migration).generation
        verb = moving.OpenPostcopy(vm_id=migration.vm_id, generation=generation, migration_id=migration.id)
        await self._agents.call(migration.source_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        await self._journal.did(migration.id, step)

    async def _fetch_rest(self, migration: Migration, step: Step) -> None:
        await self._fetch_all(migration)
        await self._journal.did(migration.id, step)

    async def _fetch_all(self, migration: Migration) -> None:
        """Until the target has all memory. A link that broke is replaced by another for as long as that takes: there
        is no way back, and the guest waits for no more than the pages it misses.
        """
        generation, to, broke = self._vm(migration).generation, None, False
        while True:
            verb = moving.FetchRest(vm_id=migration.vm_id, generation=generation, migration_id=migration.id, to=to)
            async with self._progress.of(migration.id), self._bandwidth.of(migration):
                rest = await self._agents.call(
                    migration.source_node, verb, moving.RestFetched, deadline_s=REST_DEADLINE_S
                )
            if rest.done:
                return
            if not broke:
                broke = True
                await self._journal.note(migration.id, f"the link broke in post-copy ({rest.why}); it is made anew")
            else:
                await self._clock.sleep(LINK_RETRY_S)
            again = moving.Reopen(vm_id=migration.vm_id, generation=generation, migration_id=migration.id)
            try:
                to = await self._agents.call(
                    migration.target_node, again, moving.ReceptionAt, deadline_s=VERB_DEADLINE_S
                )
            except StateConflict:
                return  # nothing is missing: what broke was the word that all had come

    async def _take_over(self, migration: Migration, step: Step) -> None:
        vm, epoch = self._vm(migration), epoch_of(self._records, migration.target_node)
        departure = self._departures.get(migration.id)
        if departure is not None and not migration.paused:
            self._reachability.begin(migration, vm, departure.stopped_at_s)
        flows = departure.flows if departure is not None else ()
        verb = moving.TakeOver(
            vm_id=vm.id,
            generation=vm.generation,
            migration_id=migration.id,
            flows=flows,
            watch=watched(migration),
            epoch=epoch,
        )
        deadline_s = BOOT_DEADLINE_S if migration.kind is MigrationKind.COLD else VERB_DEADLINE_S
        arrived = await self._agents.call(migration.target_node, verb, moving.Arrived, deadline_s=deadline_s)
        resumed_at_s = self._clock.monotonic_s() - arrived.resumed_ago_ms / 1e3
        figures = migration.figures
        if departure is not None and not migration.paused:
            stopped_ms = (resumed_at_s - departure.stopped_at_s) * 1e3
            figures = msgspec.structs.replace(figures, downtime_stopped_ms=stopped_ms)
        self._receptions.pop(migration.id, None)
        self._departures.pop(migration.id, None)
        await self._journal.did(migration.id, step, figures=figures)

    async def _verify(self, migration: Migration, step: Step) -> None:
        vm = self._vm(migration)
        verb = moving.Verify(vm_id=vm.id, generation=vm.generation, migration_id=migration.id)
        report = await self._agents.call(migration.target_node, verb, MachineReport, deadline_s=VERB_DEADLINE_S)
        await self._journal.saw(migration, migration.target_node, report)
        found, signs = await asyncio.gather(
            self._reachability.finding(migration.id), self._examination.look(migration, vm)
        )
        figures = msgspec.structs.replace(
            migration.figures, network_gap_ms=found.gap_ms, network_checked_by=found.checked_by or None
        )
        verdict = self._examination.verdict(migration, report, found, signs)
        await self._journal.did(migration.id, step, figures=figures, note=found.note, verdict=verdict)
        await self._examination.end(migration, vm)

    async def _release(self, migration: Migration, step: Step) -> None:
        vm = self._vm(migration)
        copies = () if keeps_copies(migration) else volumes_of(migration)
        verb = moving.Release(
            vm_id=vm.id,
            generation=vm.generation,
            migration_id=migration.id,
            volumes=copies,
            belongings=migration.belongings,
        )
        measured = await self._agents.call(migration.source_node, verb, Figures, deadline_s=VERB_DEADLINE_S)
        seen = migration.figures
        figures = msgspec.structs.replace(
            measured,
            downtime_qemu_ms=None if migration.paused else measured.downtime_qemu_ms,  # nobody's time was lost
            downtime_stopped_ms=seen.downtime_stopped_ms,
            disk_bytes=seen.disk_bytes,
            network_gap_ms=seen.network_gap_ms,
            network_checked_by=seen.network_checked_by,
        )
        await self._journal.did(migration.id, step, figures=figures)

    async def _reclaim(self, migration: Migration, step: Step) -> None:
        vm, epoch = self._vm(migration), epoch_of(self._records, migration.source_node)
        verb = moving.Reclaim(vm_id=vm.id, generation=vm.generation, migration_id=migration.id, epoch=epoch)
        deadline_s = SHUTDOWN_DEADLINE_S + BOOT_DEADLINE_S if step.name == "halt" else VERB_DEADLINE_S
        report = await self._agents.call(migration.source_node, verb, MachineReport, deadline_s=deadline_s)
        await self._journal.saw(migration, migration.source_node, report)
        self._departures.pop(migration.id, None)
        await self._journal.undid(migration.id, step)

    def _vm(self, migration: Migration) -> Vm:
        return self._records.find(VMS, migration.vm_id).record


def _volumes(migration: Migration) -> tuple[str, ...]:
    return tuple(disk.volume_id for disk in migration.disks)
