"""Has rehearsals done, one work each: troubles that pass are tried again, refusals lead to cleaning up.

Everything is in the record, so a restarted server continues where this one died; the verbs find their work done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.errands import Errands
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.rehearsals.performer import Performer
from novacron.control.store.kinds import REHEARSALS, VMS
from novacron.control.store.records import Records, Seen
from novacron.errors import PASSING, CompareFailed, NovaCronError
from novacron.model.rehearsal import Rehearsal, RehearsalState, is_final
from novacron.model.vm import Vm

FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0
PATIENCE_S = 60.0
"""So long may troubles that pass follow one another while the original is held."""
HOLDING = (RehearsalState.COPYING, RehearsalState.BOOTING)


class RehearsalWorker:
    """`run` until cancelled."""

    def __init__(
        self, records: Records, agents: Agents, clock: Clock, distribution: Distribution | None = None
    ) -> None:
        self._records = records
        self._clock = clock
        self._performer = Performer(records, agents, clock, distribution or Distribution(records, agents))
        self._errands = Errands[RehearsalState]("rehearsal", self._again)
        self._log = structlog.get_logger("rehearsals")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        try:
            async with self._errands:
                async for stored in breathing(self._records.all(REHEARSALS)):
                    self._again(stored.record.id)
                await asyncio.Event().wait()
        finally:
            stop()

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is REHEARSALS and change.now is not None:
                self._consider(change.now)
            elif change.kind is VMS and change.before is not None:
                self._pushed_aside(change.before, change.now)

    def _pushed_aside(self, before: Vm, now: Vm | None) -> None:
        """Other work was forced upon an original: what copies its disks has nothing to wait for any more."""
        if before.task is None or (now is not None and now.task is not None and now.task.id == before.task.id):
            return
        for rehearsal_id in self._errands:
            errand, stored = self._errands.under_way(rehearsal_id), self._records.get(REHEARSALS, rehearsal_id)
            if errand is None or errand.mark is not RehearsalState.COPYING or stored is None:
                continue
            if stored.record.task_id == before.task.id:
                self._errands.call_off(rehearsal_id)  # its end calls us again; the performer says why it cannot go on

    def _consider(self, rehearsal: Rehearsal) -> None:
        if (errand := self._errands.under_way(rehearsal.id)) is not None:
            if errand.mark is not rehearsal.state and rehearsal.state is RehearsalState.CLEANING:
                self._errands.call_off(rehearsal.id)  # its end calls us again
        elif not is_final(rehearsal):
            self._errands.begin(rehearsal.id, rehearsal.state, lambda: self._work(rehearsal))

    def _again(self, rehearsal_id: str) -> None:
        stored = self._records.get(REHEARSALS, rehearsal_id)
        if stored is not None:
            self._consider(stored.record)

    async def _work(self, rehearsal: Rehearsal) -> None:
        """Act until the state that it had is over."""
        state, retry_s, since_s = rehearsal.state, FIRST_RETRY_S, -1.0
        while (stored := self._records.get(REHEARSALS, rehearsal.id)) is not None and stored.record.state is state:
            began_s = self._clock.monotonic_s()
            try:
                await self._performer.perform(stored.record)
                continue
            except CompareFailed:
                await self._records.refresh()
                continue
            except PASSING as passing:
                self._log.info("will try again", rehearsal=rehearsal.id, state=state.value, why=passing.message)
                now_s = self._clock.monotonic_s()
                since_s = now_s if since_s < 0 or now_s - began_s > PATIENCE_S else since_s
                if state in HOLDING and now_s - since_s >= PATIENCE_S:
                    await self._performer.give_up(stored.record, passing)
            except NovaCronError as refusal:
                self._log.warning("refused", rehearsal=rehearsal.id, state=state.value, why=refusal.message)
                if state is not RehearsalState.CLEANING:
                    await self._performer.give_up(stored.record, refusal)
                    continue
            except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave a copy for ever)
                self._log.exception("a rehearsal broke; trying again", rehearsal=rehearsal.id)
            await self._clock.sleep(retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)
