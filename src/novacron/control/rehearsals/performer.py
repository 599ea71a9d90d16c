"""Performs what a rehearsal needs next, by calling the agents, and writes it down: every step may be asked for again.

copy → boot → examine → (kept) → clean: the copy is received and begun as a cold migration's machine is, under the
rehearsal's id; the original is only read from, and held by its task until nothing reads from it any more.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence

import msgspec

from novacron.clock import Clock
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents, Answer
from novacron.control.migrations.copying import told
from novacron.control.orders import epoch_of
from novacron.control.rehearsals import decide
from novacron.control.rehearsals.decide import Seen
from novacron.control.store.kinds import NETWORKS, NODES, REHEARSALS, VMS
from novacron.control.store.records import Records, Write, remove, update
from novacron.control.store.records import Seen as Change
from novacron.control.store.shelf import Stored
from novacron.control.vms import decide as vm_decide
from novacron.control.vms import hardware
from novacron.errors import (
    CompareFailed,
    Conflict,
    NotFound,
    NovaCronError,
    Reason,
    StaleGeneration,
    StateConflict,
    Unsupported,
)
from novacron.failpoint import reach
from novacron.model import rehearsal as model
from novacron.model.machine import MachineReport
from novacron.model.rehearsal import Rehearsal, RehearsalState
from novacron.model.verdict import RUNS, Signs, Verdict
from novacron.model.vm import Desired, Task, TaskKind, Vm
from novacron.wire import agent as wire
from novacron.wire import moving

VERB_DEADLINE_S = 30.0
COPY_DEADLINE_S = 6 * 3600.0
BOOT_DEADLINE_S = 120.0
LOOK_DEADLINE_S = 15.0
LOOK_S = 1.0
"""How often the copy is looked at."""
CONSOLE_BYTES = 16384


class Performer:
    """Holds nothing. Each method returns once the record says that its state is over."""

    def __init__(self, records: Records, agents: Agents, clock: Clock, distribution: Distribution) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._distribution = distribution

    async def perform(self, rehearsal: Rehearsal) -> None:
        """What its state asks for.

        :raise NodeUnreachable, DeadlineExceeded: not known to be done; ask again.
        :raise NovaCronError: a refusal: it came to no boot.
        """
        match rehearsal.state:
            case RehearsalState.COPYING:
                await self._copy(rehearsal)
            case RehearsalState.BOOTING:
                await self._boot(rehearsal)
            case RehearsalState.EXAMINING:
                await self._examine(rehearsal)
            case RehearsalState.KEEPING:
                await self._keep(rehearsal)
            case _:
                await self._clean(rehearsal)
        reach(f"rehearsal.{rehearsal.state.value}:did")

    async def give_up(self, rehearsal: Rehearsal, error: NovaCronError) -> None:
        """It met a refusal: the record says which, and it is cleaned up."""
        name = decide.COPIED if rehearsal.state is RehearsalState.COPYING else RUNS
        check = decide.broke(name, error)

        def change(now: Rehearsal) -> Rehearsal | None:
            return model.failed(now, check, error, self._now()) if now.state is rehearsal.state else None

        await self._records.change(REHEARSALS, rehearsal.id, change)

    # -- forwards ------------------------------------------------------------------------------------------

    async def _copy(self, rehearsal: Rehearsal) -> None:
        """Fill the copy's disks; then the copy is the target's alone, under the next generation, and may boot."""
        original, copy = self._held_original(rehearsal), self._copy_of(rehearsal).record
        verb = moving.Accept(
            migration_id=rehearsal.id,
            spec=told(self._records, copy, copy.spec),
            boots=True,
            receives=tuple(rehearsal.copies.values()),
        )
        await self._distribution.bring_all(rehearsal.target_node, verb.spec)
        reception = await self._agents.call(rehearsal.target_node, verb, moving.ReceptionAt, deadline_s=VERB_DEADLINE_S)
        reach("rehearsal.accept:did")
        copied_bytes, began_s = 0, self._clock.monotonic_s()
        if reception.disks is not None:
            order = moving.CopyOut(
                vm_id=original.id,
                generation=rehearsal.generation,
                rehearsal_id=rehearsal.id,
                to=reception.disks,
                exports=rehearsal.copies,
                bandwidth_bytes_per_s=rehearsal.bandwidth_bytes_per_s,
            )
            done = await self._agents.call(rehearsal.source_node, order, moving.DisksCopied, deadline_s=COPY_DEADLINE_S)
            copied_bytes = done.copied_bytes
        took_ms = (self._clock.monotonic_s() - began_s) * 1e3
        check = decide.copied(len(rehearsal.copies), copied_bytes, took_ms)
        stored, held = self._stored(rehearsal), self._copy_of(rehearsal)
        new = model.copied(stored.record, copied_bytes, took_ms, self._now())
        new = msgspec.structs.replace(new, checks=(*stored.record.checks, check))
        free = msgspec.structs.replace(
            vm_decide.booting(held.record), migration_id="", generation=2, updated_at=self._now()
        )
        await self._records.commit(update(REHEARSALS, stored, new), update(VMS, held, free))

    async def _boot(self, rehearsal: Rehearsal) -> None:
        """Begin it, which closes the door behind what is copied; then let the original go."""
        copy = self._copy_of(rehearsal).record
        began_s = self._clock.monotonic_s()
        epoch = epoch_of(self._records, rehearsal.target_node)
        verb = moving.TakeOver(vm_id=copy.id, generation=copy.generation, migration_id=rehearsal.id, epoch=epoch)
        arrived = await self._agents.call(rehearsal.target_node, verb, moving.Arrived, deadline_s=BOOT_DEADLINE_S)
        took_ms = (self._clock.monotonic_s() - began_s) * 1e3
        reach("rehearsal.take_over:did")
        await self._drop(rehearsal)
        stored, held = self._stored(rehearsal), self._copy_of(rehearsal)
        writes = [update(REHEARSALS, stored, model.booted(stored.record, took_ms, self._now()))]
        if held.record.observed is None:
            seen = vm_decide.observed(held.record, arrived.report, self._now())
            writes.append(update(VMS, held, seen))
        await self._records.commit(*writes, *self._release(rehearsal))

    async def _examine(self, rehearsal: Rehearsal) -> None:
        """Look at the copy until there is nothing more to wait for."""
        while True:
            seen = await self._look(rehearsal)
            found = decide.looked_at(seen)
            if decide.is_enough(seen, found, watch_for_s=rehearsal.watch_for_s, boot_within_s=rehearsal.boot_within_s):
                break
            await self._clock.sleep(LOOK_S)
        signs, now = seen.signs or Signs(checks=()), self._now()
        verdict = Verdict(
            at=now,
            checks=(*rehearsal.checks, *found),
            clock_off_ms=signs.clock_off_ms,
            clock_off_after_ms=signs.clock_off_after_ms,
        )

        def change(record: Rehearsal) -> Rehearsal | None:
            return model.judged(record, verdict, now) if record.state is RehearsalState.EXAMINING else None

        await self._records.change(REHEARSALS, rehearsal.id, change)

    async def _look(self, rehearsal: Rehearsal) -> Seen:
        """Whoever does not answer has found nothing out, and `why` says so. :raise NotFound: the copy was deleted."""
        copy = self._copy_of(rehearsal).record
        booted_at = rehearsal.booted_at or self._now()
        seen = Seen(
            age_s=(self._now() - booted_at).total_seconds(),
            node=self._records.name(NODES, copy.node_id),
            has_agent=copy.spec.guest_agent,
        )
        where = moving.Whereabouts(vm_id=copy.id, generation=copy.generation)
        vitals = moving.Examine(vm_id=copy.id, generation=copy.generation, migration_id=rehearsal.id)
        says = wire.Console(vm_id=copy.id, generation=copy.generation, max_bytes=CONSOLE_BYTES)
        try:
            report = await self._ask(copy.node_id, where, MachineReport)
            signs = await self._ask(copy.node_id, vitals, Signs)
            text = await self._ask(copy.node_id, says, wire.ConsoleText)
        except NovaCronError as error:
            return msgspec.structs.replace(seen, why=error.message)
        speaks = bool(text.text.strip()) or await self._speaks(rehearsal)
        return msgspec.structs.replace(seen, report=report, signs=signs, console=text.text, speaks=speaks)

    async def _speaks(self, rehearsal: Rehearsal) -> bool:
        """Whether the original has anything on its serial line. One that cannot be asked has nothing."""
        original = self._records.get(VMS, rehearsal.vm_id)
        if original is None:
            return False
        vm = original.record
        verb = wire.Console(vm_id=vm.id, generation=vm.generation, max_bytes=CONSOLE_BYTES)
        try:
            return bool((await self._ask(vm.node_id, verb, wire.ConsoleText)).text.strip())
        except NovaCronError:
            return False

    async def _keep(self, rehearsal: Rehearsal) -> None:
        left_s = (rehearsal.kept_until - self._now()).total_seconds() if rehearsal.kept_until else 0.0
        if left_s > 0:
            await self._clock.sleep(left_s)

        def change(now: Rehearsal) -> Rehearsal | None:
            return model.kept(now, self._now()) if now.state is RehearsalState.KEEPING else None

        await self._records.change(REHEARSALS, rehearsal.id, change)

    # -- back ----------------------------------------------------------------------------------------------

    async def _clean(self, rehearsal: Rehearsal) -> None:
        """Let the original go, delete the copy with its disks, then its network. Each may be done already."""
        if not rehearsal.let_go:
            await self._drop(rehearsal)
            stored = self._stored(rehearsal)
            free = msgspec.structs.replace(stored.record, let_go=True)
            await self._records.commit(update(REHEARSALS, stored, free), *self._release(rehearsal))
        if self._records.get(VMS, rehearsal.copy_id) is not None:
            await self._discard(rehearsal)
            await self._gone(rehearsal)
        reach("rehearsal.copy:gone")
        stored = self._stored(rehearsal)
        writes: list[Write] = [update(REHEARSALS, stored, model.cleaned(stored.record, self._now()))]
        network = self._records.get(NETWORKS, rehearsal.network_id) if rehearsal.network_id else None
        if network is not None:
            writes.append(remove(NETWORKS, network))
        await self._records.commit(*writes)

    async def _drop(self, rehearsal: Rehearsal) -> None:
        """Nothing reads from the original's disks any more. A node that was forgotten took that along."""
        if not rehearsal.copies or self._records.get(NODES, rehearsal.source_node) is None:
            return
        verb = moving.DropCopy(vm_id=rehearsal.vm_id, generation=rehearsal.generation, rehearsal_id=rehearsal.id)
        try:
            await self._agents.call(rehearsal.source_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        except (NotFound, StaleGeneration, Unsupported):
            return  # it has ended there since, and its copying with it; or that agent is older, and copied nothing

    def _release(self, rehearsal: Rehearsal) -> list[Write]:
        """The original without the task that held it, unless other work was forced upon it."""
        stored = self._records.get(VMS, rehearsal.vm_id)
        if stored is None or stored.record.task is None or stored.record.task.id != rehearsal.task_id:
            return []
        return [update(VMS, stored, hardware.settle(stored.record, self._now()))]

    async def _discard(self, rehearsal: Rehearsal) -> None:
        """What waits at the target to be begun is gone with its disks; what has begun is left to `_gone`."""
        copy = self._copy_of(rehearsal).record
        if self._records.get(NODES, rehearsal.target_node) is None:
            return
        verb = moving.Discard(vm_id=copy.id, generation=copy.generation, migration_id=rehearsal.id)
        try:
            await self._agents.call(rehearsal.target_node, verb, type(None), deadline_s=VERB_DEADLINE_S)
        except StateConflict:
            return  # it has begun

    async def _gone(self, rehearsal: Rehearsal) -> None:
        """Have it deleted, and wait until its record is gone; asked for again when that met a refusal.

        One that somebody is migrating meanwhile is deleted once it has arrived.
        """
        copy_id, news = rehearsal.copy_id, asyncio.Event()

        def notice(seen: Sequence[Change]) -> None:
            if any(change.kind is VMS and (change.now or change.before).id == copy_id for change in seen):  # type: ignore[union-attr]
                news.set()

        stop = self._records.subscribe(notice)
        try:
            while (stored := self._records.get(VMS, copy_id)) is not None:
                news.clear()
                if stored.record.problem is not None and stored.record.desired is Desired.DELETED:
                    await self._clock.sleep(LOOK_S)
                moves = stored.record.migration_id not in ("", rehearsal.id)
                if not moves and (stored.record.task is None or stored.record.desired is not Desired.DELETED):
                    await self._records.change(VMS, copy_id, self._doomed)
                    continue
                await news.wait()
        except NotFound:
            return
        finally:
            stop()

    def _doomed(self, copy: Vm) -> Vm | None:
        """It as it is to be deleted, whatever it does. One whose node was forgotten has its record alone left."""
        if copy.desired is Desired.DELETED and copy.task is not None:
            return None
        known = self._records.get(NODES, copy.node_id) is not None
        now = self._now()
        task = Task(id=self._records.new_id(), kind=TaskKind.DELETE, requested_at=now, force=True)
        return msgspec.structs.replace(
            copy,
            desired=Desired.DELETED,
            task=task,
            migration_id="",
            problem=None,
            node_id=copy.node_id if known else "",
            updated_at=now,
        )

    # -- parts ---------------------------------------------------------------------------------------------

    async def _ask(self, node_id: str, verb: msgspec.Struct, answer: type[Answer]) -> Answer:
        return await self._agents.call(node_id, verb, answer, deadline_s=LOOK_DEADLINE_S)

    def _held_original(self, rehearsal: Rehearsal) -> Vm:
        """:raise NotFound: it was deleted. :raise Conflict: other work was forced upon it."""
        vm = self._records.find(VMS, rehearsal.vm_id).record
        if vm.task is None or vm.task.id != rehearsal.task_id:
            reason = Reason("rehearsal.pushed_aside", "other work was forced upon the VM", vm.name, "rehearse it again")
            raise Conflict(f"the rehearsal of {vm.name} gave way to other work on it", [reason])
        return vm

    def _copy_of(self, rehearsal: Rehearsal) -> Stored[Vm]:
        """:raise NotFound: it was deleted by others."""
        return self._records.find(VMS, rehearsal.copy_id)

    def _stored(self, rehearsal: Rehearsal) -> Stored[Rehearsal]:
        """:raise CompareFailed: it was called off, or another server did this: look again."""
        stored = self._records.find(REHEARSALS, rehearsal.id)
        if stored.record.state is not rehearsal.state:
            raise CompareFailed(f"rehearsal {rehearsal.id} is {stored.record.state.value} by now")
        return stored

    def _now(self) -> datetime.datetime:
        return self._clock.wall()
