"""Has nodes do what volumes need: one work a volume; troubles that pass are tried again, refusals are written down.

Everything is in the record, so a restarted server continues where this one died; the verbs find their work done.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from novacron.clock import Clock
from novacron.control.breath import breathing
from novacron.control.errands import Errands
from novacron.control.images.distribution import Distribution
from novacron.control.link import Agents
from novacron.control.pools.reach import spec_for
from novacron.control.store.kinds import NODES, POOLS, VMS, VOLUMES
from novacron.control.store.records import Records, Seen, remove, unchanged, update
from novacron.control.store.shelf import Stored
from novacron.control.volumes import decide
from novacron.errors import PASSING, NotFound, NovaCronError, Unavailable
from novacron.model.pool import Pool, is_own
from novacron.model.vm import Vm
from novacron.model.volume import Volume, VolumeTask, disk_of
from novacron.wire.storage import VolumeClone, VolumeCreate, VolumeDelete, VolumeGrow, VolumeInspect, VolumeReport

MAKE_DEADLINE_S = 3600.0
VERB_DEADLINE_S = 120.0
INSPECT_DEADLINE_S = 10.0
FIRST_RETRY_S = 0.25
LAST_RETRY_S = 5.0
LOOK_INTERVAL_S = 300.0


class VolumeWorker:
    """`run` until cancelled; the work on each volume is a task of its own."""

    def __init__(
        self, records: Records, agents: Agents, clock: Clock, distribution: Distribution | None = None
    ) -> None:
        self._records = records
        self._agents = agents
        self._clock = clock
        self._distribution = distribution or Distribution(records, agents)
        self._errands = Errands[VolumeTask | None]("volume", self._again)
        self._log = structlog.get_logger("volumes")

    async def run(self) -> None:
        stop = self._records.subscribe(self._notice)
        looking = asyncio.create_task(self._look_for_ever(), name="volumes-look")
        try:
            async with self._errands:
                async for stored in breathing(self._records.all(VOLUMES)):
                    self._again(stored.record.id)
                await asyncio.Event().wait()
        finally:
            stop()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def _notice(self, seen: Sequence[Seen]) -> None:
        for change in seen:
            if change.kind is VOLUMES and change.now is not None:
                self._consider(change.now)
            elif change.kind is VMS and (vm := change.now or change.before) is not None:
                for stored in self._records.of_vm(VOLUMES, vm.id):
                    self._consider(stored.record)

    def _consider(self, volume: Volume) -> None:
        if (errand := self._errands.under_way(volume.id)) is not None:
            if errand.mark is not volume.task and volume.task is not None:
                self._errands.call_off(volume.id)  # its end calls us again
        elif decide.next_step(volume, self._vm(volume)) is not None:
            self._errands.begin(volume.id, volume.task, lambda: self._work(volume.id))

    def _again(self, volume_id: str) -> None:
        stored = self._records.get(VOLUMES, volume_id)
        if stored is not None:
            self._consider(stored.record)

    async def _work(self, volume_id: str) -> None:
        """Act until there is nothing to do."""
        retry_s = FIRST_RETRY_S
        while (stored := self._records.get(VOLUMES, volume_id)) is not None:
            volume = stored.record
            step = decide.next_step(volume, self._vm(volume))
            if step is None:
                return
            try:
                await self._attempt(stored, step)
                retry_s = FIRST_RETRY_S
            except PASSING as passing:
                self._log.info("will try again", volume=volume.name, step=type(step).__name__, why=passing.message)
                await self._clock.sleep(retry_s)
                retry_s = min(retry_s * 2, LAST_RETRY_S)
            except Exception:  # noqa: BLE001  (a fault of ours must be seen, and must not leave a task undone for ever)
                self._log.exception("work on a volume broke; trying again", volume=volume.name)
                await self._clock.sleep(LAST_RETRY_S)

    async def _attempt(self, stored: Stored[Volume], step: decide.Step) -> None:
        volume = stored.record
        try:
            await self._act(stored, step)
        except PASSING:
            raise
        except NovaCronError as error:
            if volume.task is None:
                raise
            self._log.warning("task failed", volume=volume.name, task=volume.task.value, why=error.message)
            change = functools.partial(decide.failed, task=volume.task, error=error, now=self._now())
            await self._change(volume.id, change)

    async def _act(self, stored: Stored[Volume], step: decide.Step) -> None:
        volume = stored.record
        match step:
            case decide.Make() | decide.Grow():
                report = await self._call(volume, self._verb(volume, step), VolumeReport, MAKE_DEADLINE_S)
                await self._done(volume, report.used_bytes)
            case decide.Delete():
                await self._delete(volume)
            case decide.Settle():
                await self._done(volume, volume.used_bytes)
            case decide.Release():
                await self._release(stored)

    def _verb(self, volume: Volume, step: decide.Step) -> msgspec.Struct:
        lies_in = self._pool(volume)
        pool, disk = spec_for(self._records, lies_in), disk_of(volume, pool_id="" if is_own(lies_in) else lies_in.id)
        if isinstance(step, decide.Grow):
            return VolumeGrow(pool=pool, disk=disk)
        if volume.task is VolumeTask.CLONE:
            return VolumeClone(
                pool=pool,
                disk=disk,
                source_volume_id=volume.source_volume_id,
                source_snapshot_id=volume.source_snapshot_id,
            )
        return VolumeCreate(pool=pool, disk=disk)

    async def _delete(self, volume: Volume) -> None:
        """Where it lies, then its record. A node that was forgotten has taken it along."""
        if not volume.node_id or self._records.get(NODES, volume.node_id) is not None:
            verb = VolumeDelete(pool=spec_for(self._records, self._pool(volume)), volume_id=volume.id)
            await self._call(volume, verb, type(None), VERB_DEADLINE_S)
        stored = self._records.get(VOLUMES, volume.id)
        if stored is not None:
            await self._records.commit(remove(VOLUMES, stored))

    async def _release(self, stored: Stored[Volume]) -> None:
        """Under the VM's record as it was judged: one that takes it up again meanwhile keeps it."""
        vm = self._records.get(VMS, stored.record.vm_id)
        if decide.next_step(stored.record, vm.record if vm else None) != decide.Release():
            return
        free = msgspec.structs.replace(stored.record, vm_id="", updated_at=self._now())
        await self._records.commit(update(VOLUMES, stored, free), *([unchanged(VMS, vm)] if vm else []))

    async def _done(self, volume: Volume, used_bytes: int) -> None:
        if volume.task is not None:
            change = functools.partial(decide.done, task=volume.task, used_bytes=used_bytes, now=self._now())
            await self._change(volume.id, change)

    async def _call(self, volume: Volume, verb: msgspec.Struct, answer: Any, deadline_s: float) -> Any:
        """Asked of a node that can work on it and has a line. :raise Unavailable: there is none now."""
        pool, vm = self._pool(volume), self._vm(volume)
        nodes = [stored.record for stored in self._records.all(NODES)]
        able = decide.doers(volume, vm, pool, nodes)
        node_id = next((node_id for node_id in able if self._agents.is_connected(node_id)), None)
        if node_id is None:
            raise Unavailable(f"no node that reaches pool {pool.name} can work on volume {volume.name} now")
        if isinstance(verb, VolumeCreate):
            await self._distribution.bring(node_id, [verb.disk], [verb.pool])
        return await self._agents.call(node_id, verb, answer, deadline_s=deadline_s)

    # -- what they take ------------------------------------------------------------------------------------

    async def _look_for_ever(self) -> None:
        """What volumes at rest take in their pools is asked now and then."""
        while True:
            await self._clock.sleep(LOOK_INTERVAL_S)
            async for stored in breathing(self._records.all(VOLUMES)):
                try:
                    await self._look(stored.record)
                except NotFound:
                    self._log.info("a volume is not there", volume=stored.record.name)
                except NovaCronError as error:
                    self._log.info("a volume was not looked at", volume=stored.record.name, why=error.message)

    async def _look(self, volume: Volume) -> None:
        if volume.task is not None or volume.problem is not None or not decide.is_quiet(self._vm(volume)):
            return
        verb = VolumeInspect(pool=spec_for(self._records, self._pool(volume)), volume_id=volume.id)
        report: VolumeReport = await self._call(volume, verb, VolumeReport, INSPECT_DEADLINE_S)
        if report.used_bytes != volume.used_bytes:
            await self._change(volume.id, lambda now: msgspec.structs.replace(now, used_bytes=report.used_bytes))

    # -- records -------------------------------------------------------------------------------------------

    def _vm(self, volume: Volume) -> Vm | None:
        stored = self._records.get(VMS, volume.vm_id) if volume.vm_id else None
        return stored.record if stored else None

    def _pool(self, volume: Volume) -> Pool:
        stored = self._records.get(POOLS, volume.pool_id)
        if stored is None:
            raise NotFound(f"the pool of volume {volume.name} ({volume.pool_id}) is gone")
        return stored.record

    async def _change(self, volume_id: str, change: Any) -> None:
        if self._records.get(VOLUMES, volume_id) is not None:
            await self._records.change(VOLUMES, volume_id, change)

    def _now(self) -> datetime.datetime:
        return self._clock.wall()
